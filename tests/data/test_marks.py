"""Meaning beside the text: marks on messages and rows, reasoning, text with a template; and what a stop says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from datasets import Dataset

from nbutils.core.chatml import CHATML, IM_END, encode
from nbutils.core.errors import UserError
from nbutils.data.display import beside_line
from nbutils.train.dataset import COLUMNS, TokenRows
from nbutils.train.loss import IGNORED
from tests.data.making import chat, chats, make, make_of, messages, write_lines


def marked(row: dict[str, Any], turn: int, mark: str, value: Any) -> dict[str, Any]:
    """The row, with a mark on one of its messages."""
    said = [dict(message) for message in row["messages"]]
    said[turn][mark] = value
    return {"messages": said}


@pytest.mark.parametrize("mark", ["weight", "train", "loss", "loss_mask"])
def test_a_message_that_is_marked_is_context_whatever_is_supervised(tmp_path, mark):
    """A wrong answer that is marked, in every third row its question too, and the right one."""
    rows = [chat("Oh?", f"wrong {i}", f"Sure about {i}?", f"no, {i}") for i in range(30)]
    rows = [marked(row, 1, mark, i % 2 == 0 and 0) for i, row in enumerate(rows)]
    rows[::3] = [marked(row, 0, mark, 0) for row in rows[::3]]
    made = make_of(tmp_path, rows)
    assert len(made.kept) == 30
    for (_, number), row in made.kept.items():
        said = [m | {"learn": mark not in m} for m in rows[number]["messages"]]
        assert {name: row[name] for name in COLUMNS} == {
            name: vars(encode(made.tokenizer, said))[name] for name in COLUMNS
        }
        for name, text in (
            ("supervised", f"no, {number}{IM_END}"),
            ("context", CHATML.render([m for m in said if not m["learn"]])),
        ):
            assert made.tokenizer.decode([i for i, on in zip(row["input_ids"], row[name], strict=True) if on]) == text
    both = {name: TokenRows.load(made.folder / "train", name) for name in ("assistant", "all")}
    for number, row in enumerate(made.rows("train")):
        learnt = {
            "assistant": [i for i, on in zip(row["input_ids"], row["supervised"], strict=True) if on],
            "all": [i for i, left_out in zip(row["input_ids"], row["context"], strict=True) if not left_out],
        }
        for name, one in both.items():
            labels = one.tensors([number]).labels[0].tolist()
            assert [i for i in labels if i != IGNORED] == learnt[name]
            assert one.supervised_counts()[number] == sum(i != IGNORED for i in labels[1:])
    assert "40 messages are marked not to be learnt" in beside_line(made.summary)


@pytest.mark.parametrize("weight", [0.5, 2, "0", [0]])
def test_a_fraction_of_a_weight_is_a_stop_that_names_the_row(tmp_path, weight):
    with pytest.raises(
        UserError, match=r"Row 3 of \S+ cannot be used: a message's weight is " + re.escape(repr(weight))
    ):
        make_of(tmp_path, [*chats(3), marked(chat("a", "b"), 1, "weight", weight)])


def test_marks_that_leave_nothing_to_learn_or_part_what_belongs_together(tmp_path):
    answer = marked(chat("a", "b"), 1, "train", False)
    made = make_of(tmp_path, [*chats(30), answer, {"messages": answer["messages"] + messages([("assistant", "c")])}])
    assert (made.fate(30), made.fate(31)) == ("rejected", "bad_roles")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_label_that_is_false_rejects_and_what_held_text_and_was_not_read_is_counted(tmp_path, kind):
    rows = [row | {"source": "web", "empty": "", "label": True} for row in chats(40)]
    for row in rows[:7]:
        row["messages"][1]["reasoning_content"] = "They want a number."
    rows[10] |= {"label": False}
    rows[20] |= {"label": None}
    if kind == "jsonl":
        for row in rows[:5]:
            thought = {"type": "thinking", "thinking": "A number."}
            row["messages"][1]["content"] = [thought, {"type": "text", "text": row["messages"][1]["content"]}]
        write_lines(tmp_path / "a.jsonl", rows)
    else:
        Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / "a.parquet")
    made = make(tmp_path / "run", [str(tmp_path / f"a.{kind}")])
    assert made.ledger["fate"].tolist() == ["kept"] * 10 + ["rejected"] + ["kept"] * 29
    thoughts = {"message part thinking: thinking": 5} if kind == "jsonl" else {}
    assert made.summary["unread"] == {"source": 40, "message: reasoning_content": 7} | thoughts
    assert "message: reasoning_content (7 rows)" in beside_line(made.summary)
    assert all("number" not in json.dumps(row["messages"]) for row in made.kept.values())


@pytest.mark.parametrize("column", ["completion", "chosen", "text"])
def test_chatml_in_a_text_is_the_messages_that_it_was(tmp_path, column):
    rows, said = [], [chat(f"{i}?", "Hm.", "So?", f"{i}!")["messages"] for i in range(30)]
    for *asked, last in said:
        prompt = CHATML.render([*messages([("system", "Be kind.")]), *asked]) + CHATML.open("assistant")
        answer = last["content"] + IM_END
        rows.append({"text": prompt + answer} if column == "text" else {"prompt": prompt, column: answer})
    for (_, i), row in make_of(tmp_path, rows).kept.items():
        assert row["messages"] == said[i]


def test_a_question_about_chatml_stays_a_question(tmp_path):
    asked = "<|im_start|>user\nHi<|im_end|> is what?"
    made = make_of(tmp_path, [{"prompt": asked, "completion": str(i)} for i in range(9)])
    assert {row["messages"][0]["content"] for row in made.kept.values()} == {asked}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "<s>[INST] Hi [/INST]", "completion": "Hello</s>"}, ["of Mistral or Llama 2 already"]),
        ({"prompt": "<|begin_of_text|><|start_header_id|>user", "chosen": "x"}, ["of Llama 3 already"]),
        ({"instruction": "<start_of_turn>user\nHi<end_of_turn>", "output": "x"}, ["of Gemma already"]),
        ({"text": "<bos><start_of_turn>user\nHi<end_of_turn>"}, ["of Gemma already"]),
        (
            {"text": "Once upon a time"},
            ["plain text ('Once upon a time')", "messages: [{role", "text: a conversation in ChatML"],
        ),
    ],
)
def test_text_without_roles_is_a_stop_that_names_its_template_or_the_shapes(tmp_path, row, words):
    with pytest.raises(UserError) as error:
        make_of(tmp_path, [row] * 5)
    assert all(word in str(error.value) for word in ["Row 0 of", *words])


@pytest.mark.parametrize(
    ("rows", "side", "words"),
    [
        ([{"messages": messages([("Frage", f"{i}?"), ("Antwort", "!")])} for i in range(9)], "train",
         ["9 of 9 rows", "no_user_turn", "first is row 0 of", "names of the roles"]),
        ([chat("x " * 300, f"{i}") for i in range(9)], "train",
         ["9 of 9 rows", "too_long", "tokens", "Raise max_length"]),
        ([b"{", *[{"messages": [{"role": "user", "text": 1}]}] * 3], "train",
         ["4 of 4 rows", "malformed", "row 0", "is no JSON"]),
        (chats(5), "eval", ["the other one has all 5"]),
        ([chat("Hi", "Hello", *("x", "y") * i) for i in range(1, 6)], "eval",
         ["5 of 5", "same exchange", "row 0 of", "differently"]),
    ],
)  # fmt: skip
def test_a_stop_says_what_the_ledger_says(tmp_path, rows, side, words):
    with pytest.raises(UserError, match=f"No conversation is left for the {side} set") as error:
        make_of(tmp_path, rows, eval_fraction=0.0001)
    assert all(word in str(error.value) for word in words), error.value
