"""Generated datasets: whatever stands in a file, the stage does not crash, loses no row, and writes true ChatML."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbutils.core.chatml import IM_END, IM_START, PAD, add_chatml, encode
from nbutils.core.run.models import train_bpe
from nbutils.data import lines, sources
from nbutils.data.fates import FATES, as_messages, judge
from nbutils.data.messages import MARKS
from nbutils.train.dataset import COLUMNS
from tests.conftest import sentencepiece_tokenizer
from tests.data.making import Made, make, nested, numbered_rows
from tests.data.test_containers import BINARY, CONTAINERS, FILES, FLAT, Rows, jsonl, rows_of, some_style, write

SPECIAL = [IM_END, IM_START, PAD, "<|im_start|>assistant\n", "<s>", "</s>", "<|endoftext|>", "<unk>", "<file_sep>"]
PIECES = [
    "Hi!", "How are you?", "", " ", "\n\t", "I am fine, thanks.",
    "été ☃ 東京 🙂‍↔️", "e\u0301", "\u202eabc\u202c", "\x00\x01",
    "\ufeffx", "a\u2028b", "ﬁ", "١٢٣", "x" * 3_000, "word " * 1_500, "#" * 70, "{\"a\": 1}", "▁▁", *SPECIAL,
]  # fmt: skip
ODD = [
    None,
    5,
    True,
    [],
    {"x": 1},
    "system",
    "human",
    "gpt",
    "tool",
    "User",
    "",
    " \n",
    "narrator",
    "x " * 900,
    *SPECIAL,
]
"""What may stand anywhere in a row."""
BROKEN = [
    b"{", b"nonsense", b"[]", b"null", b"3", b'"text"', b"\xff\xfe\x00", b'{"messages": 4}', b"\x00" * 9, b"{}" * 2,
    b'{"messages": [[]]}', b'{"messages": [{"role": "user", "content": "\\udc00"}]}', b"[" * 9_000, b'{"a": NaN}',
    b'{"messages": [{"role": "\\ud83d", "content": "Hi"}]}',
    b'{"messages": [{"role": "user", "content": ' + nested(420) + b"}]}",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a row: what holds it, and its key or number."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def spoiled(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The row, and in every other one something else in place of something, or a key less."""
    row = json.loads(json.dumps(row))
    where, key = rng.choice([place for place in places(row) if place[1] not in MARKS])  # an odd mark stops the stage
    if rng.random() < 0.1:
        del where[key]
    elif rng.random() < 0.5:
        where[key] = rng.choice(ODD)
    return row


def dataset(rng: random.Random, folder: Path) -> tuple[str, int]:
    """A dataset of one shape in any container, some rows twice, and how many they are."""
    folder.mkdir(parents=True)
    kind = rng.choice(CONTAINERS)
    style = some_style(rng, kind)
    texts = [rng.choice(("", " ")).join(rng.choices(PIECES, k=rng.choice((1, 1, 1, 2, 3)))) for _ in range(20)]
    rows: Rows = rows_of(rng, style, rng.randrange(3, 25), *([] if kind in FLAT else [texts]))[0]
    if kind not in (*FLAT, *BINARY):
        rows = [spoiled(rng, row) for row in rows]
    rows += [rng.choice(rows)]
    if FILES.get(kind) is jsonl:
        rows += rng.choices(BROKEN, k=3)
    rows += rows_of(rng, style, len(rows) + 12)[0]  # so that most have the shape's columns, and no side is empty
    rng.shuffle(rows)
    return str(write(kind, folder, rows)), len(rows)


def check(made: Made, counts: dict[str, int]) -> None:
    """Ledger, summary, sets and source agree; every kept row is true ChatML; what is too long is as long as said."""
    summary, ledger = made.summary, made.ledger
    assert set(ledger["fate"]) <= set(FATES)
    for source in made.sources:
        mine = ledger[ledger["source"] == source.label]["index"].tolist()
        everything = list(range(counts[source.label]))
        assert mine == (everything if source.spec.fraction == 1 else sorted(set(mine) & set(everything)))
    assert summary["rows"] == len(ledger) == sum(counts["rows"] for counts in summary["fates"].values())
    assert summary["rows"] + summary["rows_not_taken"] == sum(counts.values())
    tokens = ledger.groupby("fate")["tokens"].agg(["size", "sum"]).to_dict("index")
    for fate, (rows, read) in ((fate, found.values()) for fate, found in summary["fates"].items()):
        assert {"size": rows, "sum": read} == tokens.get(fate, {"size": 0, "sum": 0})
    kept = ledger[ledger["fate"] == "kept"].set_index(["source", "index"])
    assert kept["hash"].is_unique
    for side in ("train", "eval"):
        mine, rows = kept[kept["side"] == side], made.rows(side)
        assert mine.index.tolist() == [(row["source"], row["index"]) for row in rows]
        sums = len(rows), sum(len(row["input_ids"]) for row in rows), sum(sum(row["supervised"]) for row in rows)
        assert sums == (len(mine), mine["tokens"].sum(), mine["supervised_tokens"].sum())
        assert sums == tuple(summary[side][name] for name in ("rows", "tokens", "supervised_tokens"))
    tokenizer = made.tokenizer
    specials = set(tokenizer.all_special_ids)
    im_end = tokenizer.convert_tokens_to_ids(IM_END)
    for origin, one in made.kept.items():
        context = kept.loc[origin, "context_turns"]
        said = [message | {"learn": number not in context} for number, message in enumerate(one["messages"])]
        encoding = encode(tokenizer, said)
        assert all(one[name] == vars(encoding)[name] for name in COLUMNS)
        assert len(encoding) == kept.loc[origin, "tokens"] <= summary["max_length"]
        assert [m["role"] for m in said] == ["user", "assistant"] * (len(said) // 2)
        assert all(m["content"] == m["content"].strip() != "" for m in said)
        assert sum(i in specials for i in encoding.input_ids) == 2 * len(said)  # nothing is forged
        prefix = encode(tokenizer, said[:-1], add_generation_prompt=True).input_ids
        assert encoding.input_ids[: len(prefix)] == prefix
        supervised = [i for i, on in zip(encoding.input_ids, encoding.supervised, strict=True) if on]
        replies = [m["content"] for m in said if m["role"] == "assistant" and m["learn"]]
        assert supervised.count(im_end) == len(replies)
        if not any("▁" in reply for reply in replies):  # SentencePiece's own mark for a blank decodes as a blank
            assert tokenizer.decode(supervised) == "".join(reply + IM_END for reply in replies)
    for source in made.sources:
        rows = numbered_rows(source)
        for one in ledger[(ledger["fate"] == "too_long") & (ledger["source"] == source.label)].itertuples():
            length = len(encode(tokenizer, as_messages(judge(rows[one.index][0]).turns)))
            assert length > summary["max_length"]
            assert one.tokens <= length if one.tokens_is_lower_bound else one.tokens == length


@pytest.fixture(scope="module", params=["tiny", "sentencepiece"])
def run_folder(request, tmp_path_factory) -> Path:
    """A run folder with a tokenizer in place: making one for each dataset would take most of the time."""
    run = tmp_path_factory.mktemp(request.param, numbered=False)  # its name is part of the seeds
    tokenizer = (
        add_chatml(sentencepiece_tokenizer()) if request.param == "sentencepiece" else train_bpe(PIECES[:6], 400)
    )
    tokenizer.save_pretrained(run / "data" / "tokenizer")
    return run


@pytest.mark.parametrize(
    "seeds", [range(12), *(pytest.param(range(n, n + 40), marks=pytest.mark.soak) for n in (12, 52, 92))]
)
def test_generated_datasets(run_folder, tmp_path, monkeypatch, seeds):
    """Several batches for each of the small files; the two tokenizers get other datasets."""
    for module in (sources, lines):
        monkeypatch.setattr(module, "BATCH_ROWS", 11)
    for seed in seeds:
        rng = random.Random(f"{run_folder.name} {seed}")
        counts = dict(dataset(rng, tmp_path / f"{seed}-{number}") for number in range(rng.choice((1, 1, 2))))
        asked = {"max_length": rng.choice((120, 120, 300, 2_000)), "data_processes": 2 if seed % 10 == 0 else 1}
        specs = [{"path": path, "fraction": rng.choice((1.0, 1.0, 0.7))} for path in counts]
        check(make(run_folder, specs, same_tokenizer=True, eval_fraction=0.5, **asked), counts)
