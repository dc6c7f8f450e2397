"""The columns of the widget: picking models, side by side, one conversation for all of them."""

from __future__ import annotations

import threading

import pytest

from nbutils.core.errors import UserError
from tests.chat.widgets import fail, last, pick, sampling, send, shown, widget


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


def test_a_setting_that_one_of_two_models_refuses_is_taken_by_neither():
    chat = widget("x", beside="base", max_new_tokens=100)
    chat.set("max_new_tokens", 300)
    assert "choose at most 256" in chat.notice.value and sampling(chat, "max_new_tokens") == [100] * 3
    chat.set("max_new_tokens", 120)
    assert sampling(chat, "max_new_tokens") == [120] * 3


def test_a_side_by_side_conversation_is_loaded_as_it_was_saved():
    chat, other = widget("mine", beside="base"), widget("x", beside="base")
    send(chat, "hi")
    other.restore(chat.transcript())
    assert last(other) == ["mine", "base mine"]
    assert pick(other, beside="more") == ["final", "more"]
    other.restore(chat.transcript())
    assert last(other) == ["mine", "mine"]
