"""How much of the replies stands in the training data: counted by hand, beside what people repeat."""

import pytest

from nbutils.core.origin.index import Index
from nbutils.core.text import memorised_table
from nbutils.evaluate.memorised import PEOPLE, memorised
from nbutils.evaluate.report import NAMES
from tests.core.test_origin import _cache, run_of  # noqa: F401

PLANTED = "the zebra of my aunt sings in tune"


def said(model, decoding, *replies):
    return [{"model": model, "decoding": decoding, "prompt": "Hi", "reply": reply} for reply in replies]


def test_the_shares_are_those_of_a_count_by_hand(tmp_path):
    index = Index(run_of(tmp_path, [["Who?", f"{PLANTED}!"], ["So", "aunt sings in tune with his dog"]]))
    people = [f"Well, {PLANTED}", "no idea"]  # 8 of 11 words
    model = [f"{PLANTED}!", "zebra of my aunt sings in tune with his dog"]  # whole; two passages that overlap
    rows = [*said(PEOPLE, "", *people), *said("run", "greedy", *model), *said("run", "sampled", "", "")]
    own, greedy, sampled = memorised(rows, index, 200, 0)["rows"]
    assert (own["share"]["value"], own["longest"], own["whole"]["value"]) == (8 / 11, 8, 0)
    assert (greedy["share"]["value"], greedy["longest"], greedy["whole"]["value"]) == (1, 8, 0.5)
    assert (sampled["share"]["value"], sampled["longest"]) == (0, 0)
    assert greedy["against_people"]["value"] == pytest.approx(3 / 11)
    assert greedy["against_people"]["word"] == "too few items" and "against_people" not in own
    assert own["share"]["low"] <= 8 / 11 <= own["share"]["high"] and own["whole"]["high"] > 0.5


@pytest.mark.parametrize("reply,word", [(PLANTED, "more"), ("no idea at all", "less"), (None, "not distinguishable")])
def test_people_are_the_yardstick(tmp_path, reply, word):
    index = Index(run_of(tmp_path, [["Who?", PLANTED]]))
    people = [PLANTED, "I have no idea"] * 12
    rows = said(PEOPLE, "", *people) + said("run", "greedy", *([reply] * 24 if reply else reversed(people)))
    found = memorised(rows, index, 500, 0)
    assert found["rows"][1]["against_people"]["word"] == word
    table = memorised_table(found, NAMES)
    assert "| people | 24 | 66.7% [" in table and f"], {word} |" in table and "this run's model, greedy" in table
