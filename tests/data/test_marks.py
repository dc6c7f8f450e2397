"""Meaning beside the text: marks on messages and rows, reasoning, text with a template; and what a stop says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from nbutils.core.chatml import CHATML, IM_END, encode
from nbutils.core.errors import UserError
from nbutils.data.display import beside_line
from nbutils.data.row_filter import loaded_tokenizer
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import IGNORED
from tests.data.making import Made, chats, make, messages, write_lines


def corrected(mark: str, number: int) -> dict[str, Any]:
    """A wrong answer that is marked, and the right one."""
    wrong = {"role": "assistant", "content": f"wrong {number}", mark: number % 2 == 0 and 0}
    asked = (
        {"role": "user", "content": f"{number}?", mark: 0} if number % 3 == 0 else {"role": "user", "content": "Oh?"}
    )
    return {"messages": [asked, wrong, *messages([("user", f"Sure about {number}?"), ("assistant", f"no, {number}")])]}


def decoded(made: Made, ids: list[int], on: list[bool]) -> str:
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    return str(tokenizer.decode([token for token, counts in zip(ids, on, strict=True) if counts]))


@pytest.mark.parametrize("mark", ["weight", "train", "loss", "loss_mask"])
def test_a_message_that_is_marked_is_context_whatever_is_supervised(tmp_path, mark):
    rows = [corrected(mark, number) for number in range(30)]
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", rows)])
    assert made.summary["fates"]["kept"]["rows"] == 30
    for (_, number), row in made.kept.items():
        assert decoded(made, row["input_ids"], row["supervised"]) == f"no, {number}{IM_END}"
        said = rows[number]["messages"]
        left_out = [m for m in said if mark in m]
        assert decoded(made, row["input_ids"], row["context"]) == CHATML.render(left_out)
        given = [{"role": m["role"], "content": m["content"], "learn": mark not in m} for m in said]
        whole = encode(loaded_tokenizer(str(made.folder / "tokenizer")), given)
        assert (row["input_ids"], row["supervised"], row["context"]) == (
            whole.input_ids,
            whole.supervised,
            whole.context,
        )
    both = {name: TokenRows.load(made.folder / "train", name) for name in ("assistant", "all")}
    for number, row in enumerate(made.rows("train")):
        labels = {name: one.tensors([number]).labels[0].tolist() for name, one in both.items()}
        learnt = [i for i, left_out in zip(row["input_ids"], row["context"], strict=True) if not left_out]
        assert [i for i in labels["all"] if i != IGNORED] == learnt
        assert sum(i != IGNORED for i in labels["assistant"]) == sum(row["supervised"])
        for name, one in both.items():
            assert one.supervised_counts()[number] == sum(i != IGNORED for i in labels[name][1:])
    assert "40 messages are marked not to be learnt" in beside_line(made.summary)


@pytest.mark.parametrize("weight", [0.5, 2, "0", [0]])
def test_a_fraction_of_a_weight_is_a_stop_that_names_the_row(tmp_path, weight):
    odd = {"messages": [*messages([("user", "a")]), {"role": "assistant", "content": "b", "weight": weight}]}
    path = write_lines(tmp_path / "a.jsonl", [*chats(3), odd])
    with pytest.raises(UserError) as error:
        make(tmp_path / "run", [path])
    assert f"Row 3 of {path} cannot be used: a message's weight is {weight!r}" in str(error.value)


def test_marks_that_leave_nothing_to_learn_or_part_what_belongs_together(tmp_path):
    answer = {"role": "assistant", "content": "b", "train": False}
    rows = [
        {"messages": [*messages([("user", "a")]), answer]},
        {"messages": [*messages([("user", "a")]), answer, *messages([("assistant", "c")])]},
    ]
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", [*chats(30), *rows])])
    assert (made.fate(30), made.fate(31)) == ("rejected", "bad_roles")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_whose_label_is_false_is_rejected(tmp_path, kind):
    rows = [{"prompt": f"{i}?", "completion": f"{i}!", "label": i % 2 == 0} for i in range(40)]
    rows += [{"prompt": "x?", "completion": "x!", "label": None}]
    if kind == "jsonl":
        write_lines(tmp_path / "a.jsonl", rows)
    else:
        Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    made = make(tmp_path / "run", [str(tmp_path / f"a.{kind}")])
    assert made.ledger["fate"].tolist() == ["kept", "rejected"] * 20 + ["kept"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_held_text_and_was_not_read_is_counted(tmp_path, kind):
    rows = [row | {"source": "web", "empty": ""} for row in chats(40)]
    for row in rows[:7]:
        row["messages"][1]["reasoning_content"] = "They want a number."
    if kind == "jsonl":
        for row in rows[:5]:
            thought = {"type": "thinking", "thinking": "A number."}
            row["messages"][1]["content"] = [thought, {"type": "text", "text": row["messages"][1]["content"]}]
        write_lines(tmp_path / "a.jsonl", rows)
    else:
        Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / "a.parquet")
    made = make(tmp_path / "run", [str(tmp_path / f"a.{kind}")])
    thoughts = {"message part thinking: thinking": 5} if kind == "jsonl" else {}
    assert made.summary["unread"] == {"source": 40, "message: reasoning_content": 7} | thoughts
    assert "message: reasoning_content (7 rows)" in beside_line(made.summary)
    assert all("number" not in json.dumps(row["messages"]) for row in made.kept.values())


@pytest.mark.parametrize("column", ["completion", "chosen", "text"])
def test_chatml_in_a_text_is_the_messages_that_it_was(tmp_path, column):
    rows = []
    for i in range(30):
        asked = CHATML.render(
            messages([("system", "Be kind."), ("user", f"{i}?"), ("assistant", "Hm."), ("user", "So?")])
        )
        prompt, answer = asked + CHATML.open("assistant"), f"{i}!{IM_END}"
        rows.append({"text": prompt + answer} if column == "text" else {"prompt": prompt, column: answer})
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", rows)])
    for (_, i), row in made.kept.items():
        turns = [("user", f"{i}?"), ("assistant", "Hm."), ("user", "So?"), ("assistant", f"{i}!")]
        assert row["messages"] == messages(turns)


def test_a_question_about_chatml_stays_a_question(tmp_path):
    asked = "<|im_start|>user\nHi<|im_end|> is what?"
    made = make(
        tmp_path / "run",
        [write_lines(tmp_path / "a.jsonl", [{"prompt": asked, "completion": str(i)} for i in range(9)])],
    )
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
        make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", [row] * 5)])
    assert all(word in str(error.value) for word in ["Row 0 of", *words])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": messages([("Frage", f"{i}?"), ("Antwort", "!")])} for i in range(9)],
         ["9 of 9 rows", "no_user_turn", "first is row 0 of", "names of the roles"]),
        ([{"messages": messages([("user", "x " * 300), ("assistant", f"{i}")])} for i in range(9)],
         ["9 of 9 rows", "too_long", "tokens", "Raise max_length"]),
        ([*chats(0), b"{", *[{"messages": [{"role": "user", "text": 1}]}] * 3],
         ["4 of 4 rows", "malformed", "row 0", "is no JSON"]),
    ],
)  # fmt: skip
def test_a_stop_says_what_the_ledger_says(tmp_path, rows, words):
    with pytest.raises(UserError, match="No conversation is left for the train set") as error:
        make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", rows)])
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", ["a.txt", "a.parquet", "a.json.gz", "folder"])
def test_the_hub_is_no_advice_for_what_is_there(tmp_path, name):
    path = Path(tmp_path / name)
    if name == "folder":
        path.mkdir()
        path = path / "a.parquet"
    path.write_bytes(b"no data")
    with pytest.raises(UserError) as error:
        make(tmp_path / "run", [str(tmp_path / name)])
    assert str(tmp_path / name) in str(error.value)
    assert not any(word in str(error.value) for word in ("the hub", "network", "nbutils fetch", "revision"))
