"""The five shapes: detected from columns, read row by row, and what is broken in a row named."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.core.errors import UserError
from nbutils.data.fates import MALFORMED, NOT_TEXT, TOOL_USE
from nbutils.data.messages import Malformed
from nbutils.data.shapes import BY_NAME, LINE, detect, read_rows
from tests.data.making import FIVE, rows_of


def read(shape: str, rows: list, *, as_lines: bool = False) -> list:
    if as_lines:
        table = pa.table({LINE: [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]})
    else:  # where messages are unlike, the type of their column says that it holds JSON
        table = Dataset.from_list(rows, on_mixed_types="use_json").with_format("arrow")[:]
    return [row for row, _ in read_rows(table, BY_NAME[shape])]


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize("shape", FIVE)
def test_every_shape_reads_the_same_conversation(shape, as_lines):
    rows = rows_of(shape)
    assert detect(list(rows[0]), "x").name == shape
    for row, messages in zip(rows, read(shape, rows, as_lines=as_lines), strict=True):
        spoken = [(role, text) for role, text in messages if role != "system"]
        assert [role for role, _ in spoken] == ["user", "assistant"]
        assert spoken[0][1].startswith(f"({shape}) What is the capital of")
        assert spoken[1][1].startswith("The capital of")
        assert row


def test_alpaca_puts_the_input_below_the_instruction():
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert read("alpaca", [row]) == [[("user", "Translate.\n\nHund"), ("assistant", "dog")]]


def test_conversational_prompt_and_completion():
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    assert read("completion", [row]) == [[("user", "a"), ("assistant", "b")]]


def test_a_chosen_answer_that_repeats_the_prompt():
    asked = [{"role": "user", "content": "a"}]
    chosen = [*asked, {"role": "assistant", "content": "b"}]
    assert read("preference", [{"prompt": asked, "chosen": chosen}]) == [[("user", "a"), ("assistant", "b")]]
    assert read("preference", [{"prompt": "a", "chosen": chosen}]) == [[("user", "a"), ("assistant", "b")]]


def test_conversations_with_chosen():
    row = {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}}
    assert detect(list(row), "x").name == "preference"
    assert read("preference", [row]) == [[("user", "a"), ("assistant", "b")]]
    assert read("preference", [row | {"chosen": [row["chosen"]]}]) == [[("user", "a"), ("assistant", "b")]]


def test_content_in_parts_counts_its_text_and_refuses_pictures():
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    rows = [
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    ]
    good, bad = read("messages", rows, as_lines=True)
    assert good == [("user", "Hi there")]
    assert "'image'" in str(bad)


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
        (
            b'{"messages": [{"role": "user", "content": '
            + b'[{"type": "text", "text": ' * 420
            + b'"Hi"'
            + b"}]" * 420
            + b"}]}",
            "nested too deeply",
        ),
    ],
)
def test_a_broken_line_is_one_malformed_row_that_says_why(line, reason):
    good, bad = read("messages", [{"messages": [{"role": "user", "content": "Hi"}]}, line], as_lines=True)
    assert good == [("user", "Hi")]
    assert isinstance(bad, Malformed)
    assert reason in str(bad)


def test_bytes_that_are_no_text_in_a_column_of_text_are_one_malformed_row():
    """As other programs write Parquet: nobody checks."""
    texts = pa.array([b"Hi", b"\xff\xfe", b"Hello"], pa.binary()).cast(pa.string(), safe=False)
    roles = pa.array(["user"] * 3)
    one_each = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([roles, texts], ["role", "content"]))
    (good, _), (bad, _), (other, _) = read_rows(pa.table({"messages": one_each}), BY_NAME["messages"])
    assert (good, other) == ([("user", "Hi")], [("user", "Hello")])
    assert isinstance(bad, Malformed) and "no UTF-8" in str(bad)


def test_role_names_of_other_people():
    row = {"conversations": [{"from": name, "value": "x"} for name in ("Human", "gpt", "system", "narrator")]}
    assert [role for role, _ in read("sharegpt", [row])[0]] == ["user", "assistant", "system", "narrator"]


SAID = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Let me look."}]


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize(
    ("messages", "fate", "words"),
    [
        ([SAID[0], SAID[1] | {"tool_calls": [{"type": "function"}]}], TOOL_USE, "calls a tool"),
        ([SAID[0], SAID[1] | {"function_call": {"name": "weather"}}], TOOL_USE, "calls a tool"),
        ([*SAID, {"role": "tool", "content": "Sunny."}], TOOL_USE, "what a tool answered"),
        ([{"from": "human", "value": "Hi"}, {"from": "observation", "value": "x"}], TOOL_USE, "what a tool answered"),
        ([SAID[0] | {"content": [{"type": "image_url", "text": None}]}, SAID[1]], NOT_TEXT, "'image_url'"),
        ([SAID[0] | {"content": [{"type": "tool_result", "content": "x"}]}], TOOL_USE, "'tool_result'"),
        ([SAID[0] | {"content": [{"type": "riddle", "text": "x"}]}], MALFORMED, "'riddle'"),
        ([SAID[0] | {"value": "something else"}], MALFORMED, "two different texts"),
        ([SAID[0] | {"from": "gpt"}], MALFORMED, "two different roles"),
    ],
)
def test_what_is_no_plain_text_has_a_reason_of_its_own(messages, fate, words, as_lines):
    (found,) = read("messages", [{"messages": messages}], as_lines=as_lines)
    assert isinstance(found, Malformed) and found.fate == fate and words in str(found)


def test_history_and_system_of_alpaca_are_turns():
    row = {"instruction": "And Spain?", "input": "", "output": "Madrid.", "system": "Be brief."}
    turns = [("system", "Be brief."), ("user", "France?"), ("assistant", "Paris."), ("user", "And Spain?"),
             ("assistant", "Madrid.")]  # fmt: skip
    history = [["France?", "Paris."]]
    for given in (history, json.dumps(history)):
        assert read("alpaca", [row | {"history": given}], as_lines=True) == [turns]
    for given in (None, [], "", float("nan")):
        assert read("alpaca", [row | {"history": given}], as_lines=True) == [[turns[0], *turns[3:]]]
    (bad,) = read("alpaca", [row | {"history": ["France?"]}], as_lines=True)
    assert "`history`" in str(bad)


def test_an_answer_in_json_stays_the_text_that_it_is():
    said = [
        {"role": "user", "content": "As JSON?"},
        {"role": "assistant", "content": '[{"type": "text", "text": "x"}]'},
    ]
    for as_lines in (False, True):
        assert read("messages", [{"messages": said}], as_lines=as_lines) == [[(m["role"], m["content"]) for m in said]]


def test_no_shape_fits_names_columns_and_the_five_shapes():
    with pytest.raises(UserError) as error:
        detect(["note", "label"], "my/set")
    for word in ("my/set", "note, label", "text", "messages", "sharegpt", "alpaca", "completion", "preference"):
        assert word in str(error.value)


def test_arrow_columns_give_what_lines_give():
    """The fast way over Arrow columns, lists of structs with nulls and the slow way agree."""
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
        {"messages": []},
        {"messages": [{"role": "User", "content": "é"}]},
    ]
    assert read("messages", rows) == read("messages", rows, as_lines=True)
    with_null = [*rows, {"messages": None}]
    slow, lines = read("messages", with_null), read("messages", with_null, as_lines=True)
    assert slow[:3] == lines[:3]
    assert isinstance(slow[3], Malformed)
    sliced = [row for row, _ in read_rows(pa.Table.from_pylist(rows).slice(1), BY_NAME["messages"])]
    assert sliced == read("messages", rows)[1:]
