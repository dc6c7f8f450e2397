"""The six shapes: detected from columns, read row by row, and what is broken in a row named."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset

from nbutils.core.chatml import CHATML
from nbutils.data.fates import MALFORMED, NOT_TEXT, TOOL_USE, as_messages
from nbutils.data.messages import Malformed
from nbutils.data.shapes import LINE, SHAPES, detect, read_rows
from tests.data.making import jsonl, nested

BY_NAME = {shape.name: shape for shape in SHAPES}


def read_table(shape, table):
    return [row for row, _ in read_rows(table, BY_NAME[shape])]


def read_lines(shape, rows):
    return read_table(shape, pa.table({LINE: [jsonl([row]) for row in rows]}))


def read(shape, rows):
    """What rows are read as: from lines and from Arrow columns alike, some of which say that they hold JSON."""
    found = read_lines(shape, rows)
    columns = Dataset.from_list(rows, on_mixed_types="use_json").with_format("arrow")[:]
    assert list(map(str, read_table(shape, columns))) == list(map(str, found))
    return found


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
AB = [("user", "a"), ("assistant", "b")]
ASKED, ANSWERED, NEXT = as_messages([*AB, ("user", "c")])
SPAIN = {"instruction": "And Spain?", "input": "", "output": "Madrid.", "system": "Be brief."}
BRIEF, *ALONE = [("system", "Be brief."), ("user", "And Spain?"), ("assistant", "Madrid.")]
AFTER = [BRIEF, ("user", "France?"), ("assistant", "Paris."), *ALONE]
WHOLE = CHATML.render(as_messages(AFTER))
PROMPT, ANSWER = WHOLE[: -len("Madrid.<|im_end|>\n")], "Madrid.<|im_end|>"
LISTED = json.dumps([ASKED, ANSWERED])
QUESTION = "<|im_start|>user\nHi<|im_end|> is what?"


@pytest.mark.parametrize(
    "shape,row,turns",
    [
        ("alpaca", {"instruction": "a", "input": "b", "output": "c"}, [("user", "a\n\nb"), ("assistant", "c")]),
        ("alpaca", SPAIN | {"history": [["France?", "Paris."]]}, AFTER),
        # The answer repeats the prompt, or its last message.
        ("preference", {"prompt": " a ", "chosen": [*as_messages([BRIEF]), ASKED, ANSWERED]}, [BRIEF, *AB]),
        ("preference", {"prompt": "c", "chosen": [ASKED, ANSWERED, NEXT, ANSWERED]}, [*AB, ("user", "c"), AB[1]]),
        ("completion", {"prompt": [ASKED, ANSWERED, NEXT], "completion": [NEXT, ANSWERED]},
         [*AB, ("user", "c"), AB[1]]),
        ("messages", {"messages": [ASKED | {"tool_calls": "[]", "function_call": {"name": None}}, ANSWERED]}, AB),
        ("preference", {"conversations": [HUMAN], "chosen": GPT}, AB),
        ("completion", {"prompt": [], "completion": "b"}, AB[1:]),
        ("completion", {"prompt": PROMPT, "completion": ANSWER}, AFTER),
        ("alpaca", {"instruction": PROMPT, "output": ANSWER}, AFTER),
        ("text", {"text": f"<s>{WHOLE}<|endoftext|>\n".replace("|>assistant", "|>gpt")}, AFTER),
        ("text", {"text": WHOLE.replace("\n", "\r\n")}, AFTER),  # as tables on Windows have it
        ("completion", {"prompt": "c", "completion": LISTED}, [("user", "c"), ("assistant", LISTED)]),  # asked for
        ("preference", {"prompt": "a", "chosen": LISTED}, AB),
        ("completion", {"prompt": "a", "completion": str([ANSWERED])}, AB),  # as pandas writes lists
        ("completion", {"prompt": "a", "completion": "[{'role': 0}]"}, [AB[0], ("assistant", "[{'role': 0}]")]),
        ("completion", {"prompt": QUESTION, "completion": "b"}, [("user", QUESTION), AB[1]]),  # stays a question
        ("sharegpt", {"conversations": [GPT | {"from": "system"}, GPT | {"from": "narrator"}, HUMAN]},
         [("system", "b"), ("narrator", "b"), AB[0]]),
    ],
)  # fmt: skip
def test_spellings_of_a_shape(shape, row, turns):
    assert detect(list(row), "x").name == shape
    assert read(shape, [row]) == [turns]


BROKEN = [
    (b'{"messages": [', "no JSON"),
    (b"\xff\xfe{}", "UTF-8"),
    (b"[1, 2]", "no JSON object but a value of type list"),
    (b'{"other": 1}', "'messages' is missing"),
    (b'{"messages": null}', "missing"),
    (b'{"messages": "Hi"}', "is no JSON"),
    (b'{"messages": "5"}', "of type int"),
    (b'{"messages": [], "messages": []}', "twice"),
    (b'{"messages": ["Hi"]}', "a message is of type str"),
    (b'{"messages": [{"content": "Hi"}]}', "no role"),
    (b'{"messages": [{"role": "user", "content": 7}]}', "of type int"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    (b'{"messages": [{"role": "\\ud800", "content": "Hi"}]}', "surrogate"),
    (b"[" * 100_000, "no JSON"),
    (b'{"messages": [{"role": "user", "content": ' + nested(420) + b"}]}", "nested too deeply"),
]
"""Lines that are no row, each with what its fate says."""


@pytest.mark.parametrize("line,reason", BROKEN)
def test_a_broken_line_is_one_malformed_row_that_says_why(line, reason):
    good, bad = read_lines("messages", [[ASKED], line])
    assert good == AB[:1]
    assert isinstance(bad, Malformed) and reason in str(bad)


def test_bytes_that_are_no_text_in_a_column_of_text_are_one_malformed_row():
    """As other programs write Parquet: nobody checks."""
    texts = pa.array([b"Hi", b"\xff\xfe", b"Hello"], pa.binary()).cast(pa.string(), safe=False)
    one_each = pa.ListArray.from_arrays(range(4), pa.StructArray.from_arrays([texts, texts], ["role", "content"]))
    good, bad, other = read_table("messages", pa.table({"messages": one_each}))
    assert (good, other) == ([("Hi", "Hi")], [("Hello", "Hello")])
    assert isinstance(bad, Malformed) and "no UTF-8" in str(bad)


def parts(*content):
    return ASKED | {"content": list(content)}


@pytest.mark.parametrize(
    "said,fate,words",
    [
        ([ASKED, ANSWERED | {"tool_calls": [{"type": "function"}]}], TOOL_USE, "calls a tool"),
        ([ASKED, ANSWERED | {"function_call": {"name": "weather"}}], TOOL_USE, "calls a tool"),
        ([HUMAN, GPT | {"from": "observation"}], TOOL_USE, "what a tool answered"),
        ([parts({"type": "image_url", "text": None}), ANSWERED], NOT_TEXT, "'image_url'"),
        ([parts("Hi", {"type": "input_audio"})], NOT_TEXT, "'input_audio'"),
        ([parts({"type": "tool_result", "content": "x"})], TOOL_USE, "'tool_result'"),
        ([parts({"type": "riddle", "text": "x"})], MALFORMED, "'riddle'"),
        ([ASKED | {"value": "something else"}], MALFORMED, "two different texts"),
        ([ASKED | {"from": "gpt"}], MALFORMED, "two different roles"),
        ([ASKED, parts("<s> [INST] Hi [/INST]")], MALFORMED, "Mistral"),
        ([parts(" Human: Hi\n\nAssistant: Hello"), ANSWERED], MALFORMED, "transcript"),
        ([parts(WHOLE), ANSWERED], MALFORMED, "ChatML"),
        ([parts(WHOLE + "<|endoftext|>"), ANSWERED], MALFORMED, "ChatML"),
        ([parts(WHOLE.replace("user\n", "user: ")), ANSWERED], MALFORMED, "ChatML"),
        ([parts("[gMASK]<sop><|user|>Hi"), ANSWERED], MALFORMED, "ChatGLM"),
        ([ASKED, parts("b</s>")], MALFORMED, "ends with </s>"),
        ([ASKED, parts("b <|eot_id|>\n")], MALFORMED, "ends with <|eot_id|>"),
    ],
)
def test_what_is_no_plain_text_has_a_reason_of_its_own(said, fate, words):
    (found,) = read("messages", [{"messages": said}])
    assert isinstance(found, Malformed) and found.fate == fate and words in str(found)


@pytest.mark.parametrize("text", ["b</s>", "b<|im_end|>", "<|header_start|>user", WHOLE])
def test_the_marks_of_a_template_are_seen_in_columns_too(text):
    (found,) = read("messages", [{"messages": [ASKED, ANSWERED | {"content": text}]}])
    assert isinstance(found, Malformed) and "ordinary characters" in str(found)


def test_a_line_through_a_text_is_no_end():
    assert read("messages", [{"messages": [ASKED, ANSWERED | {"content": "<s>b</s>"}]}]) == [
        [AB[0], ("assistant", "<s>b</s>")]
    ]


def test_where_an_end_is_missing_in_a_text_nothing_is_guessed():
    (found,) = read(
        "text", [{"text": WHOLE.replace("<|im_end|>\n<|im_start|>assistant", "\n<|im_start|>assistant", 1)}]
    )
    assert isinstance(found, Malformed) and "ChatML" in str(found)


@pytest.mark.parametrize("seen", [{"image": "0.jpg"}, {"images": ["0.jpg"]}])
def test_a_text_about_a_picture_that_stands_beside_it_is_no_text(seen):
    said = {"messages": [ASKED | {"content": "<image>\nWhat is it?"}, ANSWERED]}
    (found,) = read("messages", [said | seen])
    assert found.fate == NOT_TEXT and "<image>" in str(found)
    assert not isinstance(read("messages", [said])[0], Malformed)  # as somebody may write about HTML


def test_a_preferred_conversation_about_something_else_is_malformed():
    (found,) = read("preference", [{"prompt": "math", "chosen": [ASKED, ANSWERED]}])
    assert isinstance(found, Malformed) and "another question" in str(found)


def test_half_a_surrogate_in_a_key_can_be_told():
    line = b'{"messages": [{"role": "user", "content": "a", "\\ud83d": "b"}], "\\ud83d": "c"}'
    ((_, unread),) = read_rows(pa.table({LINE: [line]}), BY_NAME["messages"])
    assert "\\ud83d" in unread and "".join(unread).encode()


@pytest.mark.parametrize("beside", [{"history": ["France?"]}, {"history": [["?"]]}, {"history": 5}, {"output": ["a"]}])
def test_a_history_of_something_else_or_a_list_of_answers_is_malformed(beside):
    (bad,) = read("alpaca", [SPAIN | beside])
    assert f"`{min(beside)}`" in str(bad)


def test_empty_messages_no_messages_and_a_slice_of_a_table_are_read_fast_and_slowly_alike():
    *rows, null = [{"messages": of} for of in ([ASKED, ANSWERED | {"content": None}], [], [ASKED], None)]
    found = read("messages", rows)
    assert found == [[AB[0], ("assistant", "")], [], AB[:1]]
    assert read("messages", [*rows, null])[:3] == found  # the null takes the slow way
    assert read_table("messages", pa.Table.from_pylist(rows).slice(1)) == found[1:]
