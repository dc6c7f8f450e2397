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
from nbutils.data.row_filter import as_messages, loaded_tokenizer
from nbutils.data.shapes import read_rows
from tests.conftest import sentencepiece_tokenizer
from tests.data.making import Made, make, write_lines

SPECIAL = [IM_END, IM_START, PAD, "<|im_start|>assistant\n", "<s>", "</s>", "<|endoftext|>", "<unk>", "<file_sep>"]
TEXTS = [
    "Hi!", "How are you?", "", " ", "\n\t", "I am fine, thanks.",
    "été ☃ 東京 🙂‍↔️", "e\u0301", "\u202eabc\u202c", "\x00\x01",
    "\ufeffx", "a\u2028b", "ﬁ", "١٢٣", "x" * 3_000, "word " * 1_500, "#" * 70, "{\"a\": 1}", "▁▁",
]  # fmt: skip
ROLES = ["user", "assistant", "user", "assistant", "system", "human", "gpt", "tool", "User", "", "narrator"]


def nested(depth: int) -> bytes:
    """Content in parts, in parts, in parts …"""
    return b'[{"type": "text", "text": ' * depth + b'"Hi"' + b"}]" * depth


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
    if rng.random() < 0.08:
        return rng.choice(BROKEN)
    if shape in ("messages", "sharegpt"):
        column, role, content = (
            ("messages", "role", "content") if shape == "messages" else ("conversations", "from", "value")
        )
        found = {column: [{role: name, content: said} for name, said in turns(rng)]}
    else:
        names = {"alpaca": ("instruction", "input", "output"), "completion": ("prompt", "completion"),
                 "preference": ("prompt", "chosen", "rejected")}[shape]  # fmt: skip
        found = {name: text(rng) for name in names}
        if shape == "preference" and rng.random() < 0.5:
            found["chosen"] = [{"role": name, "content": said} for name, said in turns(rng)]
    if rng.random() < 0.1:
        found |= {"extra": rng.random()}
    if rng.random() < 0.04:
        found.pop(next(iter(found)))
    return found


def sure(shape: str, number: int) -> Any:
    """A well-formed short row of a shape."""
    asked, answered = f"{number}?", f"{number}!"
    return {
        "messages": {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
        "alpaca": {"instruction": asked, "input": "", "output": answered},
        "completion": {"prompt": asked, "completion": answered},
        "preference": {"prompt": asked, "chosen": answered, "rejected": "?"},
    }[shape]


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
        rows += [rng.choice(rows), *(sure(shape, i) for i in range(len(rows) + 10))]
        rng.shuffle(rows)
        if rng.random() < 1 / 6:
            path = write_parquet(folder / f"{number}.parquet", rows)
        else:
            path = write_lines(folder / f"{number}.jsonl", rows)
        specs.append({"path": path, "fraction": rng.choice((1.0, 1.0, 0.7))})
    return specs


def check(made: Made, specs: list[Any]) -> None:
    """Ledger, summary, sets and source agree; every kept row is true ChatML."""
    summary, ledger = made.summary, made.ledger
    assert set(ledger["fate"]) <= set(FATES)
    assert not ledger.duplicated(["source", "index"]).any()
    for spec in specs:
        all_rows = rows_in(Path(spec["path"]))
        mine = ledger[ledger["source"] == spec["path"]]["index"].tolist()
        assert mine == sorted(mine)
        if spec["fraction"] == 1:
            assert mine == list(range(all_rows))
        else:
            assert set(mine) <= set(range(all_rows))
    assert summary["rows"] == len(ledger) == sum(counts["rows"] for counts in summary["fates"].values())
    everything = sum(rows_in(Path(spec["path"])) for spec in specs)
    assert summary["rows"] + summary["rows_not_taken"] == everything
    kept = ledger[ledger["fate"] == "kept"].set_index(["source", "index"])
    assert set(kept.index) == set(made.kept)
    assert kept["hash"].is_unique
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    specials = set(tokenizer.all_special_ids)
    im_end = tokenizer.convert_tokens_to_ids(IM_END)
    for origin, found in made.kept.items():
        said = found["messages"]
        encoding = encode(tokenizer, said)
        assert (found["input_ids"], found["supervised"]) == (encoding.input_ids, encoding.supervised)
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

    check_too_long(made)


def check_too_long(made: Made) -> None:
    """Rows dropped as too long are, read to their end; what the ledger says of their length is true."""
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    dropped = made.ledger[made.ledger["fate"] == "too_long"]
    for source in made.sources:
        rows = [row for batch in source.batches() for row, _ in read_rows(batch.read(), source.shape)]
        for row in dropped[dropped["source"] == source.label].itertuples():
            length = len(encode(tokenizer, as_messages(judge(rows[row.index]).turns)))
            assert length > made.summary["max_length"]
            assert row.tokens <= length if row.tokens_is_lower_bound else row.tokens == length


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


def check_seeds(seeds: range, run: Path, folder: Path) -> None:
    """Generates, runs and checks a dataset for each seed; the two tokenizers get other ones."""
    for seed in seeds:
        rng = random.Random(f"{run.name} {seed}")
        specs = dataset(rng, folder / str(seed))
        asked = {"max_length": rng.choice((40, 64, 300, 2_000)), "data_processes": 2 if seed % 10 == 0 else 1}
        check(make(run, specs, same_tokenizer=True, eval_fraction=0.5, **asked), specs)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Several batches for each of the small files."""
    for module in (sources, lines):
        monkeypatch.setattr(module, "BATCH_ROWS", 11)


def test_generated_datasets(run_folder, tmp_path):
    check_seeds(range(30), run_folder, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("first", (30, 80, 130, 180, 230))
def test_generated_datasets_up_to_five_hundred(run_folder, tmp_path, first):
    """With the 30 datasets above, these are 250 for each of the two tokenizers."""
    check_seeds(range(first, min(first + 50, 250)), run_folder, tmp_path)
