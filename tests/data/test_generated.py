"""Generated datasets: whatever stands in a file, the stage does not crash, loses no row, and writes true ChatML."""

import json
import random

import pytest

from nbutils.core.chatml import add_chatml, encode
from nbutils.core.errors import UserError
from nbutils.core.run.models import train_bpe
from nbutils.data.messages import MARKS
from nbutils.data.shapes import LABELS
from nbutils.train.dataset import COLUMNS
from tests.conftest import sentencepiece_tokenizer
from tests.core.test_chatml import SPECIALS
from tests.data.making import jsonl, make
from tests.data.test_containers import BINARY, CONTAINERS, FILES, FLAT, TEXTS, row_of, some_style, write
from tests.data.test_shapes import BROKEN

PIECES = [
    "Hi!", "How are you?", "", " ", "\n\t", "I am fine, thanks.",
    "été ☃ 東京 🙂‍↔️", "e\u0301", "\u202eabc\u202c", "\x00\x01",
    "\ufeffx", "a\u2028b", "ﬁ", "١٢٣", "x" * 3_000, "word " * 1_500, "#" * 70, "{\"a\": 1}", "▁▁", *SPECIALS,
]  # fmt: skip
ODD = [
    None, 5, True, [], {"x": 1}, "system", "human", "gpt", "tool", "User", "", " \n", "narrator", "x " * 900, *SPECIALS,
]  # fmt: skip
"""What may stand anywhere in a row."""
NO_ROWS = [
    *(line for line, _ in BROKEN), b"null", b'"text"', b"\x00" * 9, b"{}" * 2, b'{"messages": [[]]}', b'{"a": NaN}',
]  # fmt: skip


def places(value):
    """Everything in a row: what holds it, and its key or number."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def spoil(rng, row):
    """Puts something else in place of something in every other row, or takes a key away."""
    where, key = rng.choice([place for place in places(row) if place[1] not in (*MARKS, *LABELS)])  # an odd mark stops
    if rng.random() < 0.1:
        del where[key]
    elif rng.random() < 0.5:
        where[key] = rng.choice(ODD)


def dataset(rng, folder):
    """A dataset of one shape in any container, some rows twice, and how many they are."""
    folder.mkdir(parents=True)
    kind = rng.choice(CONTAINERS)
    style = some_style(rng, kind)
    texts = ["".join(rng.choices(PIECES, k=pieces)) for pieces in (*[1] * 12, *[2] * 4, *[3] * 4)]
    rows = [row_of(rng, style, TEXTS if kind in FLAT else texts)[0] for _ in range(rng.randrange(3, 25))]
    if kind not in (*FLAT, *BINARY, "lists.json", "pandas.json"):  # there an object is the one row's message
        for row in rows:
            spoil(rng, row)
    mark, off, on = map(json.dumps, style["mark"] or "???")
    rows += [rng.choice(rows), json.loads(json.dumps(rng.choice(rows)).replace(f"{mark}: {on}", f"{mark}: {off}"))]
    if FILES.get(kind) is jsonl:
        rows += rng.choices(NO_ROWS, k=3)
    rows += [row_of(rng, style)[0] for _ in range(len(rows) + 12)]  # most have the columns, and no side is empty
    rng.shuffle(rows)
    return str(write(kind, folder, rows)), len(rows)


def check(made, counts):
    """Ledger, summary, sets and sources agree, and every kept row is true ChatML."""
    summary, ledger = made.summary, made.ledger.set_index(["source", "index"])
    assert ledger.index.tolist() == [
        (source.label, number)
        for source in made.sources
        for number in range(counts[source.label])
        if source.spec.fraction == 1 or (source.label, number) in ledger.index
    ]
    assert summary["rows"] == len(ledger) == sum(counts.values()) - summary["rows_not_taken"]
    fates = ledger.groupby("fate")["tokens"].agg(rows="size", tokens="sum").to_dict("index")
    assert fates == {fate: facts for fate, facts in summary["fates"].items() if facts["rows"]}
    assert (ledger["detail"] != "")[ledger["fate"].isin(["malformed", "bad_roles", "empty_message"])].all()
    kept = ledger[ledger["fate"] == "kept"]
    assert kept["hash"].is_unique
    assert (ledger[ledger["hash"] != ""]["context_turns"].map(str).groupby(ledger["hash"]).nunique() == 1).all()
    for side in ("train", "eval"):
        mine, rows = kept[kept["side"] == side], made.rows(side)
        assert mine.index.tolist() == [(row["source"], row["index"]) for row in rows]
        sums = mine[["turns", "tokens", "supervised_tokens"]].sum()
        assert (sums.to_dict() | {"rows": len(mine)}).items() <= summary[side].items()
        assert mine["tokens"].max() <= summary["max_length"]
        for row, (_, facts) in zip(rows, mine.iterrows(), strict=True):
            check_row(row, facts, made.tokenizer)


def check_row(row, facts, tokenizer):
    """A kept row is what `encode` makes of its messages (`tests/core`), and what the ledger says of it holds."""
    said = [message | {"learn": n not in facts["context_turns"]} for n, message in enumerate(row["messages"])]
    encoding = encode(tokenizer, said)
    assert all(row[name] == vars(encoding)[name] for name in COLUMNS)
    assert not facts["tokens_is_lower_bound"]
    assert (len(encoding), sum(encoding.supervised)) == (facts["tokens"], facts["supervised_tokens"])
    assert [m["role"] for m in said] == ["user", "assistant"] * (len(said) // 2)
    assert all(m["content"] == m["content"].strip() != "" for m in said)


@pytest.fixture(scope="module", params=["tiny", "sentencepiece"])
def run_folder(request, tmp_path_factory):
    """A run folder with a tokenizer in place: making one for each dataset would take most of the time."""
    run = tmp_path_factory.mktemp(request.param, numbered=False)  # its name is part of the seeds
    tokenizer = train_bpe(PIECES[:6], 400) if request.param == "tiny" else add_chatml(sentencepiece_tokenizer())
    tokenizer.save_pretrained(run / "data" / "tokenizer")
    return run


@pytest.mark.parametrize(
    "seeds", [range(8), *(pytest.param(range(n, n + 40), marks=pytest.mark.soak) for n in (8, 48, 88))]
)
def test_generated_datasets(run_folder, tmp_path, small_batches, seeds):
    """Several batches for each of the small files; the two tokenizers get other datasets."""
    for seed in seeds:
        rng = random.Random(f"{run_folder.name} {seed}")
        counts = dict(dataset(rng, tmp_path / f"{seed}-{number}") for number in range(rng.choice((1, 1, 2))))
        asked = {"max_length": rng.choice((120, 120, 300, 2_000)), "data_processes": 2 if seed % 10 == 0 else 1}
        specs = [{"path": path, "fraction": rng.choice((1.0, 1.0, 0.7))} for path in counts]
        try:
            made = make(run_folder, specs, same_tokenizer=True, eval_fraction=0.5, **asked)
        except UserError as error:  # a side may be empty by chance, of so few
            assert "that were kept" in str(error)
        else:
            check(made, counts)
