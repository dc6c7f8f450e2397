"""The five shapes: detected from columns, read row by row, and what is broken in a row named."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.data.fates import MALFORMED, NOT_TEXT, TOOL_USE
from nbutils.data.messages import Malformed
from nbutils.data.shapes import LINE, SHAPES, detect, read_rows
from tests.data.making import COUNTRIES, SIX, nested, rows_of

BY_NAME = {shape.name: shape for shape in SHAPES}


def read(shape: str, rows: list, *, as_lines: bool = False) -> list:
    if as_lines:
        table = pa.table({LINE: [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]})
    else:  # where messages are unlike, the type of their column says that it holds JSON
        table = Dataset.from_list(rows, on_mixed_types="use_json").with_format("arrow")[:]
    return [row for row, _ in read_rows(table, BY_NAME[shape])]


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
ASKED, ANSWERED = said("user", "a"), said("assistant", "b")
AB = [("user", "a"), ("assistant", "b")]
AS_JSON = '[{"type": "text", "text": "x"}]'
SPAIN = {"instruction": "And Spain?", "input": "", "output": "Madrid.", "system": "Be brief."}
FRANCE = [["France?", "Paris."]]
ALONE = [("system", "Be brief."), ("user", "And Spain?"), ("assistant", "Madrid.")]
AFTER = [ALONE[0], ("user", "France?"), ("assistant", "Paris."), *ALONE[1:]]


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize("shape", SIX)
def test_every_shape_reads_the_same_conversation(shape, as_lines):
    rows = rows_of(shape)
    assert detect(list(rows[0]), "x").name == shape
    for messages, (country, city) in zip(read(shape, rows, as_lines=as_lines), COUNTRIES.items(), strict=True):
        (asker, asked), (answerer, answered) = messages
        assert (asker, answerer) == ("user", "assistant")
        assert asked == f"({shape}) What is the capital of {country}?"
        assert answered == f"The capital of {country} is {city}."


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize(
    ("row", "shape", "turns"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, "alpaca", [("user", "a\n\nb"), ("assistant", "c")]),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, "completion", AB),
        ({"prompt": [ASKED], "chosen": [ASKED, ANSWERED]}, "preference", AB),  # the answer repeats the prompt
        ({"prompt": "a", "chosen": [ASKED, ANSWERED]}, "preference", AB),
        ({"conversations": [HUMAN], "chosen": GPT}, "preference", AB),
        ({"conversations": [HUMAN], "chosen": [GPT]}, "preference", AB),
        ({"messages": [said("user", [{"type": "text", "text": "a"}, "b"])]}, "messages", [("user", "ab")]),
        ({"messages": [ASKED, said("assistant", AS_JSON)]}, "messages", [AB[0], ("assistant", AS_JSON)]),  # stays text
        (
            {"conversations": [{"from": name, "value": "x"} for name in ("Human", "gpt", "system", "narrator")]},
            "sharegpt",
            [(role, "x") for role in ("user", "assistant", "system", "narrator")],
        ),
        *((SPAIN | {"history": history}, "alpaca", AFTER) for history in (FRANCE, json.dumps(FRANCE))),
        *((SPAIN | {"history": history}, "alpaca", ALONE) for history in (None, [], "", float("nan"))),
    ],
)
def test_spellings_of_a_shape(row, shape, turns, as_lines):
    assert detect(list(row), "x").name == shape
    assert read(shape, [row], as_lines=as_lines) == [turns]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "no JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[1, 2]", "no JSON object but a value of type list"),
        (b'{"other": 1}', "'messages' is missing"),
        (b'{"messages": null}', "missing"),
        (b'{"messages": "Hi"}', "is no JSON"),
        (b'{"messages": "5"}', "of type int"),
        (b'{"messages": ["Hi"]}', "a message is of type str"),
        (b'{"messages": [{"content": "Hi"}]}', "no role"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "of type int"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"messages": [{"role": "\\ud800", "content": "Hi"}]}', "surrogate"),
        (b"[" * 100_000, "no JSON"),
        (b'{"messages": [{"role": "user", "content": ' + nested(420) + b"}]}", "nested too deeply"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "'image'"),
    ],
)
def test_a_broken_line_is_one_malformed_row_that_says_why(line, reason):
    good, bad = read("messages", [{"messages": [ASKED]}, line], as_lines=True)
    assert good == AB[:1]
    assert isinstance(bad, Malformed) and reason in str(bad)


def test_bytes_that_are_no_text_in_a_column_of_text_are_one_malformed_row():
    """As other programs write Parquet: nobody checks."""
    texts = pa.array([b"Hi", b"\xff\xfe", b"Hello"], pa.binary()).cast(pa.string(), safe=False)
    roles = pa.array(["user"] * 3)
    one_each = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([roles, texts], ["role", "content"]))
    (good, _), (bad, _), (other, _) = read_rows(pa.table({"messages": one_each}), BY_NAME["messages"])
    assert (good, other) == ([("user", "Hi")], [("user", "Hello")])
    assert isinstance(bad, Malformed) and "no UTF-8" in str(bad)


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize(
    ("messages", "fate", "words"),
    [
        ([ASKED, ANSWERED | {"tool_calls": [{"type": "function"}]}], TOOL_USE, "calls a tool"),
        ([ASKED, ANSWERED | {"function_call": {"name": "weather"}}], TOOL_USE, "calls a tool"),
        ([ASKED, ANSWERED, {"role": "tool", "content": "Sunny."}], TOOL_USE, "what a tool answered"),
        ([{"from": "human", "value": "Hi"}, {"from": "observation", "value": "x"}], TOOL_USE, "what a tool answered"),
        ([ASKED | {"content": [{"type": "image_url", "text": None}]}, ANSWERED], NOT_TEXT, "'image_url'"),
        ([ASKED | {"content": ["Hi", {"type": "input_audio"}]}, ANSWERED], NOT_TEXT, "'input_audio'"),
        ([ASKED | {"content": [{"type": "tool_result", "content": "x"}]}], TOOL_USE, "'tool_result'"),
        ([ASKED | {"content": [{"type": "riddle", "text": "x"}]}], MALFORMED, "'riddle'"),
        ([ASKED | {"value": "something else"}], MALFORMED, "two different texts"),
        ([ASKED | {"from": "gpt"}], MALFORMED, "two different roles"),
    ],
)
def test_what_is_no_plain_text_has_a_reason_of_its_own(messages, fate, words, as_lines):
    (found,) = read("messages", [{"messages": messages}], as_lines=as_lines)
    assert isinstance(found, Malformed) and found.fate == fate and words in str(found)


@pytest.mark.parametrize("history", [["France?"], [["France?"]], 5, True, {"France?": "Paris."}])
def test_a_history_of_something_else_is_malformed(history):
    (bad,) = read("alpaca", [SPAIN | {"history": history}], as_lines=True)
    assert "`history`" in str(bad)


def test_arrow_columns_give_what_lines_give():
    """The fast way over Arrow columns, lists of structs with nulls and the slow way agree."""
    rows = [{"messages": of} for of in ([ASKED, said("assistant", None)], [], [said("User", "é")], None)]
    by_line = read("messages", rows, as_lines=True)
    for some in (rows, rows[:3]):
        slow = read("messages", some)
        assert slow[:3] == by_line[:3]
        assert all(isinstance(row, Malformed) for row in slow[3:])
    sliced = read_rows(pa.Table.from_pylist(rows[:3]).slice(1), BY_NAME["messages"])
    assert [row for row, _ in sliced] == by_line[1:3]
