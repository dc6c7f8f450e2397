"""Generated datasets: whatever stands in a file, the stage does not crash, loses no row, and writes true ChatML."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbutils.core.chatml import IM_END, IM_START, PAD, add_chatml, encode
from nbutils.core.run.models import train_bpe
from nbutils.data import lines, sources
from nbutils.data.fates import FATES, judge
from nbutils.data.row_filter import as_messages
from tests.conftest import sentencepiece_tokenizer
from tests.data.making import Made, make, nested, numbered_rows, row_of, write_lines

SPECIAL = [IM_END, IM_START, PAD, "<|im_start|>assistant\n", "<s>", "</s>", "<|endoftext|>", "<unk>", "<file_sep>"]
TEXTS = [
    "Hi!", "How are you?", "", " ", "\n\t", "I am fine, thanks.",
    "été ☃ 東京 🙂‍↔️", "e\u0301", "\u202eabc\u202c", "\x00\x01",
    "\ufeffx", "a\u2028b", "ﬁ", "١٢٣", "x" * 3_000, "word " * 1_500, "#" * 70, "{\"a\": 1}", "▁▁",
]  # fmt: skip
ROLES = ["user", "assistant", "user", "assistant", "system", "human", "gpt", "tool", "User", "", "narrator"]


BROKEN = [
    b"{", b"nonsense", b"[]", b"null", b"3", b'"text"', b"\xff\xfe\x00", b'{"messages": 4}', b"\x00" * 9, b"{}" * 2,
    b'{"messages": [[]]}', b'{"messages": [{"role": "user", "content": "\\udc00"}]}', b"[" * 9_000, b'{"a": NaN}',
    b'{"messages": [{"role": "\\ud83d", "content": "Hi"}]}',
    b'{"messages": [{"role": "user", "content": ' + nested(420) + b"}]}",
]  # fmt: skip


def text(rng: random.Random) -> Any:
    pieces = [rng.choice(SPECIAL if rng.random() < 0.25 else TEXTS) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    joined = rng.choice(("", " ")).join(pieces)
    return rng.choice((joined,) * 12 + (None, 5, [{"type": "text", "text": joined}], [], {"x": 1}, True))


def turns(rng: random.Random) -> list[tuple[Any, Any]]:
    if rng.random() < 0.6:  # well formed but for its texts
        return [(("user", "assistant")[i % 2], text(rng)) for i in range(rng.choice((2, 2, 4, 7, 40)))]
    return [(rng.choice(ROLES), text(rng)) for _ in range(rng.randrange(8))]


def row(rng: random.Random, shape: str) -> Any:
    """A row of a shape, mostly; any of its texts may be something else, and any key may be missing."""
    if rng.random() < 0.08:
        return rng.choice(BROKEN)
    if shape in ("messages", "sharegpt"):
        ((column, ((role, content), _)),) = row_of(shape, "", "").items()
        found: dict[str, Any] = {column: [{role: name, content: said} for name, said in turns(rng)]}
    else:
        found = {name: text(rng) for name in row_of(shape, "", "")}
        if shape == "preference" and rng.random() < 0.5:
            found["chosen"] = [{"role": name, "content": said} for name, said in turns(rng)]
    if rng.random() < 0.1:
        found |= {"extra": rng.random()}
    if rng.random() < 0.04:
        found.pop(next(iter(found)))
    return found


def kind_of(value: Any) -> str:
    """What Arrow would make of a column's value: a text, turns, or something that fits neither."""
    if isinstance(value, list):
        return "turns" if all(set(map(kind_of, item.values())) <= {"text", "null"} for item in value) else "other"
    return {str: "text", type(None): "null"}.get(type(value), "other")


def write_parquet(path: Path, rows: list[Any]) -> str:
    """A Parquet file, in small row groups, of the rows whose columns are of the commonest kinds, or null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if isinstance(row, dict)]
    columns = dict.fromkeys(key for row in rows for key in row)
    kinds = {key: Counter(kind_of(row[key]) for row in rows if key in row).most_common(1)[0][0] for key in columns}
    fit = [row for row in rows if all(kind_of(row.get(key)) in (kinds[key], "null") for key in columns)]
    table = pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in fit])
    pq.write_table(table, path, row_group_size=7)
    return str(path)


def dataset(rng: random.Random, folder: Path) -> list[Any]:
    """One or two files of 15 to 60 rows, some rows twice, each file of one shape, one in six of them Parquet."""
    specs: list[Any] = []
    for number in range(rng.choice((1, 1, 2))):
        shape = rng.choice(("messages", "messages", "sharegpt", "alpaca", "completion", "preference"))
        rows = [row(rng, shape) for _ in range(rng.randrange(3, 25))]
        # Enough good rows that most lines have the shape's columns, and that neither side is left empty.
        rows += [rng.choice(rows), *(row_of(shape, f"{i}?", f"{i}!") for i in range(len(rows) + 10))]
        rng.shuffle(rows)
        if rng.random() < 1 / 6:
            path = write_parquet(folder / f"{number}.parquet", rows)
        else:
            path = write_lines(folder / f"{number}.jsonl", rows)
        specs.append({"path": path, "fraction": rng.choice((1.0, 1.0, 0.7))})
    return specs


def check(made: Made, specs: list[Any]) -> None:
    """Ledger, summary, sets and source agree; every kept row is true ChatML; what is too long is as long as said."""
    summary, ledger = made.summary, made.ledger
    assert set(ledger["fate"]) <= set(FATES)
    counts = {spec["path"]: rows_in(Path(spec["path"])) for spec in specs}
    for spec in specs:
        mine = ledger[ledger["source"] == spec["path"]]["index"].tolist()
        everything = list(range(counts[spec["path"]]))
        assert mine == (everything if spec["fraction"] == 1 else sorted(set(mine) & set(everything)))
    assert summary["rows"] == len(ledger) == sum(counts["rows"] for counts in summary["fates"].values())
    assert summary["rows"] + summary["rows_not_taken"] == sum(counts.values())
    kept = ledger[ledger["fate"] == "kept"].set_index(["source", "index"])
    assert kept["hash"].is_unique
    tokenizer = made.tokenizer
    specials = set(tokenizer.all_special_ids)
    im_end = tokenizer.convert_tokens_to_ids(IM_END)
    found = made.kept
    assert set(kept.index) == set(found)
    for origin, one in found.items():
        said = one["messages"]
        encoding = encode(tokenizer, said)
        assert (one["input_ids"], one["supervised"]) == (encoding.input_ids, encoding.supervised)
        assert len(encoding) == kept.loc[origin, "tokens"] <= summary["max_length"]
        assert [m["role"] for m in said] == ["user", "assistant"] * (len(said) // 2)
        assert all(m["content"] == m["content"].strip() != "" for m in said)
        assert sum(i in specials for i in encoding.input_ids) == 2 * len(said)  # nothing is forged
        prefix = encode(tokenizer, said[:-1], add_generation_prompt=True).input_ids
        assert encoding.input_ids[: len(prefix)] == prefix
        supervised = [i for i, on in zip(encoding.input_ids, encoding.supervised, strict=True) if on]
        replies = [m["content"] for m in said if m["role"] == "assistant"]
        assert supervised.count(im_end) == len(replies)
        if not any("▁" in reply for reply in replies):  # SentencePiece's own mark for a blank decodes as a blank
            assert tokenizer.decode(supervised) == "".join(reply + IM_END for reply in replies)
    for source in made.sources:
        rows = numbered_rows(source)
        for one in ledger[(ledger["fate"] == "too_long") & (ledger["source"] == source.label)].itertuples():
            length = len(encode(tokenizer, as_messages(judge(rows[one.index][0]).turns)))
            assert length > summary["max_length"]
            assert one.tokens <= length if one.tokens_is_lower_bound else one.tokens == length


def rows_in(path: Path) -> int:
    """Rows of a file: of Parquet as it says, else lines that are not blank."""
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


@pytest.fixture(scope="module", params=["tiny", "sentencepiece"])
def run_folder(request, tmp_path_factory) -> Path:
    """A run folder with a tokenizer in place: making one for each dataset would take most of the time."""
    run = tmp_path_factory.mktemp(request.param, numbered=False)  # its name is part of the seeds
    tokenizer = add_chatml(sentencepiece_tokenizer()) if request.param == "sentencepiece" else train_bpe(TEXTS[:6], 400)
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
        specs = dataset(rng, tmp_path / str(seed))
        asked = {"max_length": rng.choice((40, 64, 300, 2_000)), "data_processes": 2 if seed % 10 == 0 else 1}
        check(make(run_folder, specs, same_tokenizer=True, eval_fraction=0.5, **asked), specs)
