"""The same conversations, however people write them and whatever they put them into, come back as the same texts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.data import lines, sources
from nbutils.data.fates import Context
from nbutils.data.messages import MARKS
from tests.data.making import numbered_rows, opened

TEXTS = [
    "Hi!", "How are you?", "two\nlines", 'a "quoted", text; with\tmarks', "été ☃ 東京 🙂", "[1, 2]", '{"type": "text"}',
    '[{"type": "text", "text": "no part"}]', "null", "NaN", "12", "[", '"', "\\n", "<b>", "a,b",
]  # fmt: skip
NAMES = {"user": ("user", "User", "human", "prompter"), "assistant": ("assistant", "gpt", "bot", "model")}
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
BESIDE = ("name", "reasoning_content", "thinking")
Turns = list[tuple[str, str]]
Rows = list[dict[str, Any]]


def conversation(rng: random.Random, exchanges: int, texts: Sequence[str]) -> Turns:
    roles = ("user", "assistant") * exchanges
    return [(role, f"{rng.choice(texts)} {rng.randrange(10**9)}"[:: rng.choice((1, 1, 1, -1))]) for role in roles]


def content(rng: random.Random, text: str, parts: bool) -> Any:
    """A text, or one cut into parts of any known form."""
    if not parts or rng.random() < 0.5:
        return text
    cut = rng.randrange(len(text) + 1)
    return [rng.choice((
        piece, {"type": "text", "text": piece}, {"type": "input_text", "text": piece}, {"text": piece},
        {"type": "output_text", "value": piece}, {"type": "text", "content": piece, "image_url": None},
    )) for piece in (text[:cut], text[cut:])]  # fmt: skip


def message(rng: random.Random, turn: tuple[str, str], style: dict[str, Any]) -> dict[str, Any]:
    """One way to write a turn; a mark that it is not to be learnt is part of what it means."""
    role, text = turn
    keys = style["keys"] or (rng.choice(ROLE_KEYS), rng.choice(TEXT_KEYS))
    found = {keys[0]: rng.choice(NAMES[role]), keys[1]: content(rng, text, style["parts"])}
    for name in style["nulls"]:
        found.setdefault(name, rng.choice(style["absent"]))
    if style["extra"] and rng.random() < 0.5:
        found |= {rng.choice(BESIDE): "somebody", "tool_calls": rng.choice((None, []))}
    if style["mark"]:
        found[style["mark"]] = rng.choice((0, 0.0) if isinstance(role, Context) else (1, None, 1.0))
        if style["mark"] == "train":
            found["train"] = None if found["train"] is None else bool(found["train"])
    return dict(rng.sample(sorted(found.items(), key=lambda item: item[0]), len(found)))


def messages(rng: random.Random, turns: Turns, style: dict[str, Any]) -> Any:
    found = [message(rng, turn, style) for turn in turns]
    return json.dumps(found) if style["as_json"] else found


def rows_of(
    rng: random.Random, style: dict[str, Any], count: int, texts: Sequence[str] = TEXTS
) -> tuple[Rows, list[Turns]]:
    """Rows of one shape, and the turns that they mean."""
    rows, meant = [], []
    for _ in range(count):
        exchanges = rng.choice((1, 2, 3)) if style["shape"] in ("messages", "sharegpt", "alpaca") else 1
        turns = conversation(rng, exchanges, texts)
        asked, answer = turns[-2][1], turns[-1][1]
        if style["mark"]:
            turns = [(Context(role) if rng.random() < 0.3 else role, text) for role, text in turns]
        if style["shape"] == "messages":
            row = {"messages": messages(rng, turns, style)}
        elif style["shape"] == "sharegpt":
            row = {rng.choice(style["columns"]): messages(rng, turns, style)}
        elif style["shape"] == "alpaca":
            history = [[q, a] for (_, q), (_, a) in zip(turns[:-2:2], turns[1:-2:2], strict=True)]
            row = {"instruction": asked.strip(), "output": answer, "input": rng.choice(("", None))}
            row |= {"history": json.dumps(history) if style["as_json"] else history}
            turns[-2] = ("user", asked.strip())
        else:
            answers = ("chosen", "rejected") if style["shape"] == "preference" else ("completion",)
            row = {"prompt": asked} | dict.fromkeys(answers[1:], "No.") | {answers[0]: answer}
        rows.append(row | ({"id": rng.randrange(99), "source": "web"} if style["extra"] else {}))
        meant.append(turns)
    return rows, meant


def dumps(value: Any, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()


def jsonl(rows: Rows) -> bytes:
    """A line for each row; one that is bytes stands as it is."""
    return b"".join((row if isinstance(row, bytes) else dumps(row, ensure_ascii=False)) + b"\n" for row in rows)


def columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for one in rows for name in one}


def separated(sign: str, rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=sign)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FILES: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": jsonl,
    "a.ndjson": jsonl,
    "lines.json": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: pa.compress(jsonl(rows), "zstd", asbytes=True),
    "a.json": lambda rows: dumps(rows, indent=1),
    "nested.json": lambda rows: dumps({"version": 1, "data": rows}),
    "array.jsonl": dumps,
    "array_lines.jsonl": lambda rows: b"[\n" + b",\n".join(map(dumps, rows)) + b"\n]\n",
    "lists.json": lambda rows: dumps(columns(rows)),
    "pandas.json": lambda rows: dumps({name: dict(enumerate(column)) for name, column in columns(rows).items()}),
    "a.csv": partial(separated, ","),
    "a.tsv": partial(separated, "\t"),
    "a.csv.gz": lambda rows: gzip.compress(separated(",", rows)),
}
FLAT = ("a.csv", "a.tsv", "a.csv.gz")
BINARY = ("a.parquet", "a.arrow", "saved", "parquets", "folder_of_json")
CONTAINERS = (*FILES, *BINARY, "folder")


def write(kind: str, folder: Path, rows: Rows) -> Path:
    """The rows in a container of that kind."""
    half, path = len(rows) // 2, folder / kind
    if kind in FILES:
        path.write_bytes(FILES[kind](rows))
    elif kind.startswith("folder"):
        path.mkdir()
        (path / "b.json").write_bytes(dumps(rows if kind == "folder_of_json" else rows[half:]))
        if kind == "folder":
            (path / "b.json").rename(path / "b.jsonl")
            (path / "a.jsonl").write_bytes(jsonl(rows[:half]))
    else:
        table = Dataset.from_list(rows, on_mixed_types="use_json")
        if kind == "a.arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.data.schema) as writer:
                writer.write_table(table.data.table)
        elif kind == "parquets":
            for number, some in enumerate((range(half), range(half, len(rows)))):
                table.select(some).to_parquet(path / f"train-{number}.parquet")
        else:
            (table.save_to_disk if kind == "saved" else table.to_parquet)(path)
    return path


def some_style(rng: random.Random, kind: str) -> dict[str, Any]:
    shape = rng.choice(("messages", "messages", "sharegpt", "alpaca", "completion", "preference"))
    return {
        "shape": shape,
        "columns": (rng.choice(("conversations", "conversation")),),
        "keys": rng.choice((None, ("role", "content"), ("from", "value"), (rng.choice(ROLE_KEYS), "text"))),
        "parts": rng.random() < 0.3,
        "nulls": rng.sample(ROLE_KEYS + TEXT_KEYS, rng.choice((0, 0, 2, 6))),
        "absent": (None,) if kind in BINARY else (None, float("nan")),
        "extra": rng.random() < 0.3,
        "as_json": kind in FLAT or rng.random() < 0.2,
        "mark": rng.choice((*MARKS, None, None, None)) if shape in ("messages", "sharegpt") else None,
    }


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 2_200), marks=pytest.mark.soak)])
def test_conversations_come_back_as_the_texts_that_they_are(tmp_path, monkeypatch, seeds):
    for module in (sources, lines):
        monkeypatch.setattr(module, "BATCH_ROWS", 3)
    for seed in seeds:
        rng = random.Random(seed)
        kind = CONTAINERS[seed % len(CONTAINERS)]
        style = some_style(rng, kind)
        rows, meant = rows_of(rng, style, rng.choice((2, 3, 8)))
        folder = tmp_path / str(seed)
        folder.mkdir()
        streaming = kind == "parquets" and rng.random() < 0.5
        source = opened(write(kind, folder, rows), streaming=streaming)
        assert source.rows == (None if streaming else len(rows))
        found = numbered_rows(source)
        assert list(found) == list(range(len(rows)))
        for number, (turns, unread) in found.items():
            row, case = rows[number], (seed, kind, style, rows[number])
            assert turns == meant[number], case
            assert marked(turns) == marked(meant[number]), case
            beside = {f"message: {key}" for key in BESIDE if f'{key}": "somebody' in json.dumps(row).replace("\\", "")}
            assert set(unread) == beside | {key for key in ("source", "rejected") if row.get(key)}, case


def marked(turns: Turns) -> list[int]:
    """The places of turns that are not to be learnt."""
    return [number for number, (role, _) in enumerate(turns) if isinstance(role, Context)]
