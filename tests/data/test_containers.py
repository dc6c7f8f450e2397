"""The same conversations, however people write them and whatever they put them into, come back as the same texts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.data.fates import Context
from nbutils.data.messages import MARKS
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import read_rows
from nbutils.data.sources import open_source

TEXTS = [
    "Hi!", "How are you?", "two\nlines", 'a "quoted", text; with\tmarks', "été ☃ 東京 🙂", "[1, 2]", '{"type": "text"}',
    '[{"type": "text", "text": "no part"}]', "null", "NaN", "12", "[", '"', "\\n", "<b>", "a,b",
]  # fmt: skip
NAMES = {"user": ("user", "User", "human", "prompter"), "assistant": ("assistant", "gpt", "bot", "model")}
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
BESIDE = ("name", "reasoning_content", "thinking")
Turns = list[tuple[str, str]]


def conversation(rng: random.Random, exchanges: int) -> Turns:
    roles = ("user", "assistant") * exchanges
    return [(role, f"{rng.choice(TEXTS)} {rng.randrange(10**9)}"[:: rng.choice((1, 1, 1, -1))]) for role in roles]


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


def rows_of(rng: random.Random, style: dict[str, Any], count: int) -> tuple[list[dict[str, Any]], list[Turns]]:
    """Rows of one shape, and the turns that they mean."""
    rows, meant = [], []
    for _ in range(count):
        turns = conversation(rng, rng.choice((1, 2, 3)) if style["shape"] in ("messages", "sharegpt", "alpaca") else 1)
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


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def write(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in a container of that kind."""
    data = jsonl(rows).encode()
    if kind in ("a.jsonl", "a.ndjson"):
        (folder / kind).write_bytes(data)
    elif kind == "a.jsonl.gz":
        (folder / kind).write_bytes(gzip.compress(data))
    elif kind == "a.jsonl.zst":
        (folder / kind).write_bytes(pa.compress(data, "zstd", asbytes=True))
    elif kind == "a.json":
        (folder / kind).write_text(json.dumps(rows, indent=1))
    elif kind == "nested.json":
        (folder / kind).write_text(json.dumps({"version": 1, "data": rows}))
    elif kind == "array.jsonl":
        (folder / kind).write_text(json.dumps(rows))
    elif kind == "array_lines.jsonl":
        (folder / kind).write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    elif kind == "lists.json":
        (folder / kind).write_text(json.dumps(columns(rows)))
    elif kind == "pandas.json":
        numbered = {name: {str(i): value for i, value in enumerate(column)} for name, column in columns(rows).items()}
        (folder / kind).write_text(json.dumps(numbered))
    elif kind.startswith(("a.csv", "a.tsv")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if "csv" in kind else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
        (folder / kind).write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    elif kind == "folder":
        half = len(rows) // 2
        (folder / "of_lines").mkdir()
        (folder / "of_lines" / "a.jsonl").write_text(jsonl(rows[:half]))
        (folder / "of_lines" / "b.jsonl").write_text(json.dumps(rows[half:]))
        return folder / "of_lines"
    elif kind == "folder_of_json":
        (folder / kind).mkdir()
        (folder / kind / "a.json").write_text(json.dumps(rows))
    else:
        saved = Dataset.from_list(rows, on_mixed_types="use_json")
        (saved.to_parquet if kind == "a.parquet" else saved.save_to_disk)(folder / kind)
    return folder / kind


FLAT = ["a.csv", "a.tsv", "a.csv.gz"]
CONTAINERS = ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.json", "nested.json", "array.jsonl",
              "array_lines.jsonl", "lists.json", "pandas.json", "folder", "folder_of_json", "a.parquet", "saved",
              *FLAT]  # fmt: skip


def some_style(rng: random.Random, kind: str) -> dict[str, Any]:
    shape = rng.choice(("messages", "messages", "sharegpt", "alpaca", "completion", "preference"))
    binary = kind in ("a.parquet", "saved", "folder_of_json")
    return {
        "shape": shape,
        "columns": (rng.choice(("conversations", "conversation")),),
        "keys": rng.choice((None, ("role", "content"), ("from", "value"), (rng.choice(ROLE_KEYS), "text"))),
        "parts": rng.random() < 0.3,
        "nulls": rng.sample(ROLE_KEYS + TEXT_KEYS, rng.choice((0, 0, 2, 6))),
        "absent": (None,) if binary else (None, float("nan")),
        "extra": rng.random() < 0.3,
        "as_json": kind in FLAT or rng.random() < 0.2,
        "mark": rng.choice((*MARKS, None, None, None)) if shape in ("messages", "sharegpt") else None,
    }


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 2_200), marks=pytest.mark.soak)])
def test_conversations_come_back_as_the_texts_that_they_are(tmp_path, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        kind = CONTAINERS[seed % len(CONTAINERS)]
        style = some_style(rng, kind)
        rows, meant = rows_of(rng, style, rng.choice((2, 3, 8)))
        folder = tmp_path / str(seed)
        folder.mkdir()
        source = open_source(DatasetSpec(path=str(write(kind, folder, rows))), False)
        found = [row for batch in source.batches() for row in read_rows(batch.read(), source.shape)]
        assert [turns for turns, _ in found] == meant, (seed, kind, style, rows[:2])
        assert [marked(turns) for turns, _ in found] == [marked(turns) for turns in meant], (seed, kind, style)
        for row, (_, unread) in zip(rows, found, strict=True):
            beside = {f"message: {key}" for key in BESIDE if f'{key}": "somebody' in json.dumps(row).replace("\\", "")}
            columns = {key for key in ("source", "rejected") if row.get(key)}
            assert set(unread) == beside | columns, (seed, kind, style, row)


def marked(turns: Turns) -> list[int]:
    """The places of turns that are not to be learnt."""
    return [number for number, (role, _) in enumerate(turns) if isinstance(role, Context)]
