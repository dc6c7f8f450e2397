"""Saved conversations: written, checked, taken over by sessions of other settings and lengths."""

import json

import pytest

from nbutils.chat.transcript import read_transcript, write_transcript
from nbutils.core.chat_engine.window import MessageTooLongError
from nbutils.core.errors import UserError
from tests.chat.models import TOKENIZER, chat, contents, random_model, say
from tests.core.test_chatml import turns

TURN = turns("a", "b")
NUMBERED = [f"turn {turn} é🌙" for turn in range(8)]


def test_save_and_load(tmp_path):
    session, other = chat(), chat()
    say(session, *NUMBERED)
    other.restore(read_transcript(write_transcript(tmp_path / "t.json", session.transcript())))
    assert other.transcript() == session.transcript()
    assert session.context.dropped > 0
    assert say(other, "go on") == say(session, "go on")


@pytest.mark.parametrize(
    "content,words",
    [
        ("{", "Invalid JSON"),
        ([1], "no transcript"),
        ({"schema": 99, "messages": []}, "newer smallchat"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": TURN[::-1]}, "alternate"),
        ({"messages": TURN, "turns_dropped": 2}, "turns_dropped is 2, but it has 1 turns"),
        ({"messages": TURN, "turns_dropped": -1}, "turns_dropped is -1"),
        ({"messages": [TURN[0], TURN[1] | {"measured": {"read_tokens": 10**400}}]}, r"messages\.1\.measured"),
    ],
)
def test_what_is_no_transcript_is_refused(tmp_path, content, words):
    path = tmp_path / "t.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    session = chat()
    with pytest.raises(UserError, match=words):
        session.restore(read_transcript(path))
    assert session.messages == []


def test_half_characters_become_question_marks():
    session = chat()
    session.restore({"messages": turns("a\ud83d", "b")})
    say(session, "\ude00 c")
    assert contents(session.messages)[::2] == ["a?", "? c"]


def test_a_system_message_of_its_own_stays_when_a_transcript_is_loaded():
    plain, rude = chat(), chat(system="Be rude.")
    for told in (plain, rude):
        say(told, "hello")
        brief = chat(system="Be brief.")
        brief.restore(told.transcript())
        assert contents(brief.messages)[:2] == ["Be brief.", "hello"]
    plain.restore(rude.transcript())
    assert plain.messages[0]["content"] == "Be rude."


def test_a_conversation_is_fitted_to_a_context_of_another_length():
    wide, narrow = chat(random_model(TOKENIZER, context=512)), chat()
    say(wide, *NUMBERED)
    assert wide.context.dropped == 0 and wide.context.used > narrow.context.limit
    narrow.restore(wide.transcript())
    assert narrow.context.dropped > 0 and narrow.context.used <= narrow.context.limit - 12
    wide.restore(narrow.transcript())
    assert wide.context.dropped == 0, "there is room for all of it again"


def test_a_system_message_that_leaves_no_room_is_told_with_the_next_message(capsys):
    session = chat()
    session.restore({"messages": [{"role": "system", "content": "s" * 300}, *TURN]})
    session.engine.wait()
    with pytest.raises(MessageTooLongError, match="there is room for 0"):
        session.reply("hi")
    assert "Traceback" not in capsys.readouterr().err
