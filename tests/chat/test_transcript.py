"""Saved conversations: written, checked, taken over by sessions of other settings and lengths."""

from __future__ import annotations

import json

import pytest

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.engine import Measured
from nbutils.core.chat_engine.window import MessageTooLongError
from nbutils.core.errors import UserError
from tests.chat.models import byte_tokenizer, random_model

TOKENIZER = byte_tokenizer()
MODEL = random_model(TOKENIZER, context=128)
GREEDY = {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": 12}
COST = Measured(
    read_tokens=5, reused_tokens=2, new_tokens=3, seconds_to_first_token=0.1, seconds=0.4, ended="end"
).model_dump()
TURN = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'


def test_save_and_load(tmp_path):
    session = ChatSession(MODEL, TOKENIZER, **GREEDY)
    for turn in range(10):
        list(session.reply(f"turn {turn} é🌙"))
    path = session.save(tmp_path / "t.json")
    other = ChatSession(MODEL, TOKENIZER, **GREEDY)
    other.load(path)
    assert other.messages == session.messages
    assert other.context.dropped == session.context.dropped > 0
    assert "".join(other.reply("go on")) == "".join(session.reply("go on"))
    assert json.loads(path.read_text())["messages"][1]["measured"]["new_tokens"] > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ('{"schema": 99, "messages": []}', "newer smallchat"),
        ('{"messages": [{"role": "user"}]}', "messages.0.content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "alternate"),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]}', "alternate"),
        ("[1]", "no conversation"),
        ("{}", "messages"),
        (f'{{"messages": {TURN}, "turns_dropped": 2}}', "turns_dropped is 2, but it has 1 turns"),
        (f'{{"messages": {TURN}, "turns_dropped": -1}}', "turns_dropped is -1"),
        (f'{{"messages": {TURN}, "turns_dropped": "x"}}', "turns_dropped is 'x'"),
        (f'{{"messages": {TURN}, "replies_started": 1.5}}', "replies_started is 1.5"),
        (f'{{"messages": {TURN}, "schema": "new"}}', "schema is 'new'"),
        (f'{{"messages": {TURN}, "schema": null}}', "schema is None"),
    ],
)
def test_what_is_no_transcript_is_refused(tmp_path, content, words):
    path = tmp_path / "t.json"
    path.write_text(content)
    session = ChatSession(MODEL, TOKENIZER, **GREEDY)
    with pytest.raises(UserError, match=words):
        session.load(path)
    assert session.messages == []


@pytest.mark.parametrize("wrong", [7, {"seconds": "x"}, {"ended": "?"}, {"read_tokens": 10**400}, {"new_tokens": True}])
def test_a_cost_that_makes_no_sense_is_named(wrong):
    session = ChatSession(MODEL, TOKENIZER, **GREEDY)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "measured": wrong}]
    with pytest.raises(UserError, match=r"messages\.1\.measured"):
        session.restore({"messages": talk})
    assert session.messages == []


def test_a_sound_remark_on_cost_is_kept_and_half_characters_become_question_marks():
    session, cost = ChatSession(MODEL, TOKENIZER, **GREEDY), COST
    session.restore({"messages": [{"role": "user", "content": "a\ud83d"},
                                  {"role": "assistant", "content": "b", "measured": cost}]})  # fmt: skip
    assert session.transcript()["messages"][1]["measured"] == cost
    assert session.messages[0]["content"] == "a?"
    list(session.reply("\ude00 c"))
    assert session.messages[2]["content"] == "? c"


def test_a_system_message_of_its_own_stays_when_a_transcript_is_loaded(tmp_path):
    plain, other = (ChatSession(MODEL, TOKENIZER, system=system, **GREEDY) for system in ("", "Be rude."))
    for session in (plain, other):
        list(session.reply("hello"))
    for said in (plain, other):
        session = ChatSession(MODEL, TOKENIZER, system="Be brief.", **GREEDY)
        session.load(said.save(tmp_path / "t.json"))
        assert [m["content"] for m in session.messages[:2]] == ["Be brief.", "hello"]
    plain.restore(other.transcript())
    assert plain.messages[0]["content"] == "Be rude."


def test_a_conversation_is_fitted_to_a_context_of_another_length():
    wide = ChatSession(random_model(TOKENIZER, context=512), TOKENIZER, **GREEDY)
    narrow = ChatSession(MODEL, TOKENIZER, **GREEDY)
    for turn in range(12):
        list(wide.reply(f"turn {turn}, some words"))
    assert wide.context.dropped == 0 and wide.context.used > narrow.context.limit
    narrow.restore(wide.transcript())
    assert narrow.context.dropped > 0 and narrow.context.used <= narrow.context.room
    wide.restore(narrow.transcript())
    assert wide.context.dropped == 0, "there is room for all of it again"
    assert narrow.messages == wide.messages


def test_a_system_message_that_leaves_no_room_is_told_with_the_next_message(capsys):
    session = ChatSession(MODEL, TOKENIZER, **GREEDY)
    talk = [{"role": r, "content": c} for r, c in (("system", "s" * 300), ("user", "a"), ("assistant", "b"))]
    session.restore({"messages": talk})
    session.engine.wait()
    with pytest.raises(MessageTooLongError, match="there is room for 0"):
        session.reply("hi")
    assert "Traceback" not in capsys.readouterr().err
