"""The same conversations, however people write them and whatever they put them into, come back as the same texts."""

import gzip
import json
import random
from functools import partial

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.core.chatml import CHATML
from nbutils.data.fates import REJECTED, Context, as_messages
from nbutils.data.messages import MARKS, ROLE_KEYS, TEXT_KEYS
from nbutils.data.shapes import LABELS
from tests.data.making import jsonl, opened, rows_read

TEXTS = [
    "Hi!", "How are you?", "two\nlines", 'a "quoted", text; with\tmarks', "été ☃ 東京 🙂", "[1, 2]", '{"type": "text"}',
    '[{"type": "text", "text": "no part"}]', "null", "NaN", "12", "[", '"', "\\n", "<b>", "a,b",
]  # fmt: skip
NAMES = {"user": ("user", "User", "human", "prompter"), "assistant": ("assistant", "gpt", "bot", "model")}
BESIDE = ("name", "reasoning_content", "thinking")
OF_MESSAGES = ("messages", "conversations", "conversation")


def content(rng, text):
    """A text, or one cut into parts of any known form."""
    cut = rng.randrange(len(text) + 1)
    parts = [rng.choice((
        piece, {"type": "text", "text": piece}, {"type": "input_text", "text": piece}, {"text": piece},
        {"type": "output_text", "value": piece}, {"type": "text", "content": piece, "image_url": None},
    )) for piece in (text[:cut], text[cut:])]  # fmt: skip
    return rng.choice((text, parts))


def message(rng, turn, style):
    """One way to write a turn; a mark that it is not to be learnt is part of what it means."""
    role, text = turn
    in_role, in_text = style["keys"] or (rng.choice(ROLE_KEYS), rng.choice(TEXT_KEYS))
    found = dict.fromkeys(style["nulls"], rng.choice(style["absent"]))
    found |= {in_role: rng.choice(NAMES[role]), in_text: content(rng, text) if style["parts"] else text}
    if style["extra"] and rng.random() < 0.5:
        found |= {rng.choice(BESIDE): "somebody", "tool_calls": rng.choice((None, []))}
    if style["mark"]:
        name, off, on = style["mark"]
        found[name] = off if isinstance(role, Context) else rng.choice((on, None))
    return dict(rng.sample(list(found.items()), len(found)))


def row_of(rng, style, texts=TEXTS):
    """A row of one shape, and the turns that it means."""
    shape = style["shape"]
    roles = ("user", "assistant") * (1 if shape in ("completion", "preference") else rng.choice((1, 2, 3)))
    said = [f"{rng.choice(texts)} {rng.randrange(10**9)}"[:: rng.choice((1, 1, 1, -1))] for _ in roles]
    turns = list(zip(roles, said, strict=True))
    as_is = json.dumps if style["as_json"] else list
    *earlier, asked, answered = said
    sides = [as_is([message(rng, turn, style)]) for turn in turns] if style["listed"] else said
    if shape in OF_MESSAGES:
        if style["mark"]:
            turns = [(Context(role) if rng.random() < 0.3 else role, text) for role, text in turns]
        row = {shape: as_is([message(rng, turn, style) for turn in turns])}
    elif shape == "alpaca":
        history = as_is([earlier[place : place + 2] for place in range(0, len(earlier), 2)]) if earlier else None
        row = {"instruction": asked, "input": rng.choice(("", None)), "output": answered, "history": history}
    elif shape == "completion":
        row = dict(zip(("prompt", "completion"), sides, strict=True))
    elif shape == "preference":
        row = {"prompt": sides[0], "chosen": sides[1], "rejected": "No."}
    else:
        row = {"text": CHATML.render(as_messages(turns))}
    if style["row_mark"]:
        name, off, on = style["row_mark"]
        row[name] = rng.choice((off, on, on))
        turns = turns if row[name] == on else []
    if style["extra"]:
        more = {"conversations": "Before that."} if shape in ("messages", "preference") else {}
        row |= more | {"id": rng.randrange(99), "source": "web"}
    return row, turns


def rows_of(shape, count=10):
    """Different conversations in one of the six shapes, all of it to be learnt."""
    rng = random.Random(shape)
    style = some_style(rng, "a.parquet") | {"shape": shape, "mark": None, "row_mark": None}
    return [row_of(rng, style)[0] for _ in range(count)]


def dumps(value, **options):
    return json.dumps(value, **options).encode()


FILES = {
    "a.jsonl": jsonl,
    "a.ndjson": jsonl,
    "lines.json": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: pa.compress(jsonl(rows), "zstd", asbytes=True),
    "a.json": partial(dumps, indent=1, ensure_ascii=False),
    "nested.json": lambda rows: dumps({"version": 1, "data": rows}),
    "array.jsonl": dumps,
    "array_lines.jsonl": lambda rows: b"[\n" + b",\n".join(map(dumps, rows)) + b"\n]\n",
    "lists.json": lambda rows: dumps(pd.DataFrame(rows).to_dict("list")),
    "pandas.json": lambda rows: pd.DataFrame(rows).to_json().encode(),
}
FLAT = ("a.csv", "a.tsv", "a.csv.gz")
BINARY = ("a.parquet", "a.arrow", "saved", "parquets", "folder_of_json")
CONTAINERS = (*FILES, *FLAT, *BINARY, "folder")


def write(kind, folder, rows):
    """The rows in a container of that kind."""
    half, path = len(rows) // 2, folder / kind
    if kind in FILES:
        path.write_bytes(FILES[kind](rows))
    elif kind in FLAT:
        pd.DataFrame(rows).to_csv(path, sep="\t" if kind == "a.tsv" else ",", index=False)
    elif kind.startswith("folder"):
        path.mkdir()
        parts = {"a.json": rows} if kind == "folder_of_json" else {"a.jsonl": rows[:half], "array.jsonl": rows[half:]}
        for part, some in parts.items():
            write(part, path, some)
    else:
        table = Dataset.from_list(rows, on_mixed_types="use_json")
        if kind == "a.arrow":
            with pa.ipc.new_stream(str(path), table.data.schema) as writer:
                writer.write_table(table.data.table)
        elif kind == "parquets":
            for number in (0, 1):
                table.shard(2, number).to_parquet(path / f"train-{number}.parquet")
        else:
            (table.save_to_disk if kind == "saved" else table.to_parquet)(path)
    return path


def some_style(rng, kind):
    """How the rows of one dataset are written; what a container of the kind cannot hold is left out."""
    shape = rng.choice(("messages", *OF_MESSAGES, "alpaca", "completion", "preference"))
    mark = (rng.choice(MARKS), *rng.choice(((0, 1), (0.0, 1.0), (False, True))))
    return {
        "shape": shape,
        "keys": rng.choice((None, ("role", "content"), ("from", "value"), (rng.choice(ROLE_KEYS), "text"))),
        "parts": rng.random() < 0.3,
        "nulls": rng.sample(ROLE_KEYS + TEXT_KEYS, rng.choice((0, 0, 2, 6))),
        "absent": (None,) if kind in BINARY else (None, float("nan")),
        "extra": rng.random() < 0.3,
        "as_json": kind in FLAT or rng.random() < 0.2,
        "row_mark": (rng.choice(MARKS + LABELS), *mark[1:]) if rng.random() < 0.2 else None,
        "listed": rng.random() < 0.4,
        "mark": mark if shape in OF_MESSAGES and rng.random() < 0.5 else None,
    }


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 2_200), marks=pytest.mark.soak)])
def test_conversations_come_back_as_the_texts_that_they_are(tmp_path, small_batches, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        kind = CONTAINERS[seed % len(CONTAINERS)]
        style = some_style(rng, kind)
        rows, meant = zip(*(row_of(rng, style) for _ in range(rng.choice((2, 3, 8)))), strict=True)
        folder = tmp_path / str(seed)
        folder.mkdir()
        streaming = kind == "parquets" and rng.random() < 0.5
        source = opened(write(kind, folder, list(rows)), streaming=streaming)
        assert source.rows == (None if streaming else len(rows))
        for row, turns, (read, unread) in zip(rows, meant, rows_read(source), strict=True):
            case = (seed, kind, style, row)
            assert read.fate == REJECTED if not turns else as_messages(read) == as_messages(turns), case
            said = json.dumps(row).replace("\\", "") if turns else ""
            beside = {f"message: {key}" for key in BESIDE if f'{key}": "somebody' in said}
            assert set(unread) == beside | row.keys() & {"source", "rejected", "conversations"} - {style["shape"]}, case
