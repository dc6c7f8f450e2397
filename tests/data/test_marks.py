"""Meaning beside the text: marks on messages and rows, reasoning, text with a template; and what a stop says."""

import json

import pytest

from nbutils.core.chatml import CHATML, IM_END, IM_START
from nbutils.data.display import beside_line
from nbutils.data.fates import as_messages
from nbutils.data.messages import MARKS
from nbutils.train.dataset import TokenRows
from tests.data.making import chat, chats, make, make_of, opened, refusal, rows_read
from tests.data.test_containers import rows_of, write


def test_a_message_that_is_marked_is_context_whatever_is_supervised(tmp_path):
    """A wrong answer that is marked, in every third row its question too, and the right one."""
    rows = [chat("Oh?", f"wrong {i}", f"Sure about {i}?", f"no, {i}") for i in range(30)]
    for i, row in enumerate(rows):
        row["messages"][1][MARKS[i % len(MARKS)]] = 0
        row["messages"][0] |= {"weight": 0} if i % 3 == 0 else {}
    made = make_of(tmp_path, rows)
    assert made.fates == ["kept"] * 30
    assert "40 messages are marked not to be learnt" in beside_line(made.summary)
    for supervise in ("assistant", "all"):
        tokens = TokenRows.load(made.folder / "train", supervise)
        for number, row in enumerate(made.rows("train")):
            said = [message for message in rows[row["index"]]["messages"] if len(message) == 2]
            targets = tokens.tensors([number]).targets
            whole = CHATML.render(said).removeprefix(IM_START if row["index"] % 3 else "")  # nothing predicts the first
            learnt = whole if supervise == "all" else f"no, {row['index']}{IM_END}"
            assert made.tokenizer.decode(targets) == learnt
            assert tokens.supervised_counts()[number] == len(targets)


def test_what_held_text_and_was_not_read_is_counted(tmp_path):
    rows = [row | {"source": "web", "empty": "", "images": ["0.jpg"]} for row in chats(40)]
    for row in rows[:5]:
        answer = row["messages"][1]
        thought = {"type": "thinking", "thinking": "A number."}
        answer["content"] = [thought, {"type": "text", "text": answer["content"]}]
        row["messages"].insert(0, {"role": "developer", "content": "Be brief."})
    made = make(tmp_path / "run", [str(write("a.parquet", tmp_path, rows))])
    assert made.fates == ["kept"] * 40
    found = {"source": 40, "images": 40, "message part thinking: thinking": 5, "system messages": 5}
    assert made.summary["unread"] == found
    assert "message part thinking: thinking (5 rows)" in beside_line(made.summary)
    assert all("number" not in json.dumps(row["messages"]) for row in made.rows("train"))


@pytest.mark.parametrize("kind", ["a.jsonl", "saved"])
@pytest.mark.parametrize("labels,rejected", [([1, 0], 20), ([0, 1, 2], 0), (["good", "bad"], 0)])
def test_a_label_of_0_rejects_where_all_labels_are_0_or_1_and_no_class_does(tmp_path, kind, labels, rejected):
    rows = [row | {"label": labels[n % len(labels)]} for n, row in enumerate(rows_of("completion", 40))]
    found = [str(read) for read, _ in rows_read(opened(write(kind, tmp_path, rows)))]
    assert found.count("its label is 0") == rejected


@pytest.mark.parametrize(
    "rows,words",
    [
        ([*chats(3), {"messages": [{"role": "assistant", "content": "b", "weight": 0.5}]}],
         ["Row 3 of", "cannot be used: a message's weight is 0.5"]),
        ([*chats(3), chat("a", "b") | {"loss_mask": [0, 1]}], ["Row 3 of", "the row's loss_mask is [0, 1]"]),
        ([chat("a", [{"text": "b", "train": False}])], ["a part of a message is marked"]),
        ([{"prompt": "Below is an instruction.\n\n### Response:", "completion": "x"}], ["of Alpaca already"]),
        ([{"text": "<bos><start_of_turn>user\nHi<end_of_turn>"}], ["row 0 of", "of Gemma already"]),
        ([{"text": "Once upon a time"}],
         ["plain text ('Once upon a time')", "messages: [{role", "text: a conversation in ChatML"]),
        ([{"messages": as_messages([("Frage", f"{i}?"), ("Antwort", "!")])} for i in range(9)],
         ["for the train set", "9 of 9 rows", "no_user_turn", "first is row 0 of", "names of the roles"]),
        ([chat("x " * 300, f"{i}") for i in range(9)],
         ["for the train set", "9 of 9 rows", "too_long", "tokens", "Raise max_length"]),
        ([b"{", *[{"messages": [{"role": "user", "text": 1}]}] * 3],
         ["for the train set", "4 of 4 rows", "malformed", "row 0", "is no JSON"]),
        (chats(5), ["for the eval set", "the other one has all 5"]),
        ([chat("Hi", "Hello", *("x", "y") * i) for i in range(1, 6)],
         ["for the eval set", "5 of 5", "same exchange", "row 0 of", "differently"]),
    ],
)  # fmt: skip
def test_a_stop_names_the_row_and_what_it_holds_or_says_what_the_ledger_says(tmp_path, rows, words):
    said = refusal(make_of, tmp_path, rows, eval_fraction=0.0001)
    assert all(word in said for word in words), said
