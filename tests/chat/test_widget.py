"""The widget without a browser: what its buttons do to the sessions, and what it shows."""

import threading

import pytest

from nbutils.chat.parts import MARK
from nbutils.core.errors import UserError
from tests.chat.widgets import bubbles, fail, last, pick, sampling, send, shown, texts, widget
from tests.core.test_chatml import turns


def test_another_conversation_is_not_edited_by_mistake():
    chat = widget("one", "two")
    send(chat, "hi")
    for leave in (lambda: chat.restore({"messages": turns("old", "reply")}), chat.controls.clear.click):
        chat.controls.edit.click()
        assert chat.controls.send.description == "Send again"
        leave()
        assert chat.controls.send.description == "Send" and chat.controls.input.value == ""
        before = texts(chat)
        send(chat, "new")
        assert texts(chat)[:-1] == [*before, "new"]


def test_a_draft_survives_an_error_and_an_edit_that_is_taken_back():
    chat = widget("one", "two")
    send(chat, "hi")
    chat.controls.input.value = draft = "my next thought"
    for expected in ("hi", draft):
        chat.controls.edit.click()
        assert chat.controls.input.value == expected
    fail(chat)
    model = chat.panels[0].session.engine.model
    model.register_forward_pre_hook(lambda *_: setattr(chat.controls.input, "value", draft))
    send(chat, "again")
    assert chat.controls.input.value == f"again\n{draft}"


def test_meter_and_notice_follow_what_happens():
    ready = threading.Event()
    chat = widget(*["a reply of thirty characters.."] * 40, ready=ready)
    while "next to go" not in chat.panels[0].meter.value:
        send(chat, "a message with some more text to fill the window" * 3)
    chat.set("max_new_tokens", 10)
    assert "next to go" not in chat.panels[0].meter.value, "a shorter reply leaves more room"
    chat.controls.model.value = "base"
    chat.set("temperature", 1.5)
    assert "loading base" in chat.notice.value
    ready.set()
    chat.wait(5)
    assert sampling(chat, "temperature") == [1.5] * 2 and not chat.notice.value


def test_a_model_that_cannot_be_loaded_is_told_and_not_shown_as_picked(capsys):
    chat = widget("one")
    assert pick(chat, beside="broken") == ["final"]
    assert "disk on fire" in chat.notice.value and "disk on fire" in capsys.readouterr().err


def test_nothing_is_sent_where_nothing_is_said_and_what_is_no_transcript_is_told_and_changes_nothing():
    chat = widget("one")
    send(chat, "\n", "   ", "hi")
    chat.load(b"no")
    assert "no transcript" in chat.notice.value and texts(chat) == ["hi", "one"]


def test_what_was_edited_is_shown_while_the_history_is_read_and_silence_is_told():
    chat = widget("one", "two", reading=0.2)
    send(chat, "first", "second")
    chat.edit()
    chat.send("third <b>")
    so_far = ["first", "one", "third &lt;b&gt;"]
    assert chat.busy and "sc-cursor" in shown(chat) and bubbles(chat) == [*so_far, ""]
    chat.wait(20)
    assert bubbles(chat) == [*so_far, "(nothing)"]


def test_what_the_page_sends_is_one_message():
    chat = widget("one", "two", seconds=0.01)
    chat.controls.input.value = "not heard of"
    chat.controls.outbox.value = f"hi{MARK}1"
    assert chat.controls.input.value == ""
    chat.controls.outbox.value = f"while it writes{MARK}2"
    assert "is being written" in chat.notice.value and chat.controls.input.value == "while it writes"
    chat.wait(5)
    chat.controls.outbox.value = f"with a {MARK} of its own{MARK}3"
    chat.wait(5)
    assert texts(chat)[::2] == ["hi", f"with a {MARK} of its own"]


def test_a_chat_that_is_closed_stops_writing():
    chat = widget("word " * 200, seconds=0.005)
    chat.send("go")
    chat.close()
    assert chat.panels[0].session.measured.ended == "stopped"
    assert not any(thread.name == "chat-writes" and thread.is_alive() for thread in threading.enumerate())


# Two columns: picking models, side by side, one conversation for both of them


@pytest.mark.parametrize("picked", [{"model": "base"}, {"beside": "final"}])
def test_a_model_that_the_other_column_shows_changes_places_with_this_one(picked):
    chat = widget("left", "left again", beside="base")
    send(chat, "hi")
    assert "final said: left. base said: base left" in chat.announcement.value
    assert pick(chat, **picked) == ["base", "final"]
    assert "base left" in shown(chat, 0) and "base" not in shown(chat, 1)
    send(chat, "and?")
    assert last(chat) == ["base left again", "left again"]
    assert pick(chat, beside="nobody") == ["base"] and last(chat) == ["base left again"]


def test_a_model_is_not_compared_with_itself():
    chat = widget("left")
    assert pick(chat, beside="final") == ["final"]
    assert "final is shown already" in chat.notice.value
    with pytest.raises(UserError, match="Both columns would show the model 'final'"):
        widget("left", beside="final")


def test_a_pick_taken_back_while_its_model_loads_counts():
    ready = threading.Event()
    chat = widget("left", ready=ready)
    chat.controls.model.value = "base"
    assert chat.busy and chat.panels[0].name == "final"
    threading.Timer(0.2, ready.set).start()
    assert pick(chat, model="final") == ["final"]


def test_an_error_in_one_column_leaves_both_as_they_were_and_the_chat_goes_on(capsys):
    chat = widget("one", "two", "three", "four", beside="base")
    send(chat, "hi")
    before = chat.transcript()
    fail(chat, panel=1)
    send(chat, "again")
    assert chat.transcript() == before and "again" not in shown(chat, 0) + shown(chat, 1)
    assert chat.controls.input.value == "again", "the message that got no reply is not lost"
    assert "out of &lt;memory&gt;" in chat.notice.value and "RuntimeError" in capsys.readouterr().err
    fail(chat, panel=1)
    chat.regenerate()
    chat.wait(5)
    assert chat.transcript() == before, "the old replies stay"
    send(chat, "again")
    assert last(chat) == ["four", "base two"]


def test_a_setting_that_one_of_two_models_refuses_is_taken_by_neither_and_one_beyond_its_slider_stays():
    chat = widget("x", beside="base", max_new_tokens=100, temperature=3.0)
    chat.set("max_new_tokens", 300)
    assert "choose at most 256" in chat.notice.value and sampling(chat, "max_new_tokens") == [100] * 3
    chat.set("max_new_tokens", 120)
    assert sampling(chat, "max_new_tokens") == [120] * 3 and sampling(chat, "temperature") == [3.0] * 3


def test_a_side_by_side_conversation_is_loaded_as_it_was_saved():
    chat, other = widget("mine", beside="base"), widget("x", beside="base")
    send(chat, "hi")
    other.restore(chat.transcript())
    assert last(other) == ["mine", "base mine"]
    assert pick(other, beside="more") == ["final", "more"]
    other.restore(chat.transcript())
    assert last(other) == ["mine", "mine"]
