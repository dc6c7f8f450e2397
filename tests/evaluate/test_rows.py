"""What a planned row lets each scored token see is exactly what the request says, whatever shares the row."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.evaluate.rows import Request, batches, plan_rows

tokens = st.integers(0, 3)  # few different ones, so that prefixes are often shared
requests_of = st.lists(
    st.builds(Request, *(st.lists(tokens, min_size=1, max_size=most).map(tuple) for most in (16, 6))), max_size=12
)


def seen_by(row, position):
    """The tokens that a position of a row attends to, in the order of their places in the text."""
    begin = row.begins[position]
    return row.ids[: row.positions[begin]] + row.ids[begin : position + 1]


@given(
    requests_of,
    st.booleans(),
    st.sampled_from([8, 64, 1000]),
    st.sampled_from([1.0, 50.0, 5000.0]),
    st.integers(1, 200),
)
@settings(max_examples=100, deadline=None)
def test_every_request_is_scored_once_on_just_its_own_tokens(requests, share, longest, attention_even, budget):
    unique = list(dict.fromkeys(requests))
    rows = plan_rows(unique, longest=longest, attention_even=attention_even, share=share)
    assert Counter(index for row in rows for index, _ in row.scored) == Counter(range(len(unique)))
    for row in rows:
        assert not row.branched or (share and len(row) <= max(longest, len(row.trunk)))
        for index, positions in row.scored:
            request = unique[index]
            expected = [list(request.context + request.continuation[:k]) for k in range(len(request.continuation))]
            assert [seen_by(row, position) for position in positions] == expected
    planned = list(batches(rows, budget))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in planned for row in batch)
    for batch in planned:
        assert len({row.branched for row in batch}) == 1, "rows with a mask and rows without never meet"
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= budget
