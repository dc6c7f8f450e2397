"""The columns of the widget: picking models, side by side, one conversation for all of them."""

from __future__ import annotations

import json
import threading
import time

import pytest

from nbutils.core.errors import UserError
from tests.chat.widgets import TURN, click, fail, last, notice, pick, sampling, send, shown, texts, widget


@pytest.mark.parametrize("picked", [{"model": "base"}, {"beside": "final"}])
def test_a_model_that_the_other_column_shows_changes_places_with_this_one(picked):
    chat = widget("left", "left again", beside="base")
    send(chat, "hi")
    assert "final said: left. base said: base left" in chat.announcement.value
    assert pick(chat, **picked) == ["base", "final"]
    assert "base left" in shown(chat, 0) and "base" not in shown(chat, 1)
    send(chat, "and?")
    assert last(chat) == ["base left again", "left again"]
    assert pick(chat, model="final") == ["final", "base"]


def test_a_model_is_not_compared_with_itself():
    chat = widget("left")
    assert pick(chat, beside="final") == ["final"]
    assert "final is shown already" in notice(chat)
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
    chat = widget("one", "two", "three", beside="base")
    send(chat, "hi")
    before = [texts(chat, 0), texts(chat, 1)]
    fail(chat, panel=1)
    send(chat, "again")
    assert [texts(chat, 0), texts(chat, 1)] == before
    assert chat.controls.input.value == "again", "the message that got no reply is not lost"
    assert "out of &lt;memory&gt;" in chat.notice.value
    assert "again" not in shown(chat, 0) + shown(chat, 1) and not chat.controls.send.disabled
    fail(chat, panel=1)
    click(chat, "regenerate")
    assert [texts(chat, 0), texts(chat, 1)] == before, "the old replies stay"
    send(chat, "again")
    assert [len(texts(chat, 0)), len(texts(chat, 1))] == [4, 4]
    assert "RuntimeError" in capsys.readouterr().err


def test_a_setting_that_one_of_two_models_refuses_is_taken_by_neither():
    chat = widget("x", beside="base", contexts={"base": 256}, max_new_tokens=100, context_extension="none")
    chat.set("max_new_tokens", 200)
    assert "choose at most 128" in notice(chat) and sampling(chat, "max_new_tokens") == [100] * 3
    chat.set("max_new_tokens", 120)
    assert sampling(chat, "max_new_tokens") == [120] * 3


def test_a_setting_that_changes_before_a_reply_has_begun_counts_from_the_next_on():
    """The second column's turn comes when the first one has read its history."""
    chat = widget("word " * 90, beside="base", reading=0.3, max_new_tokens=20)
    send(chat, "go", wait=False)
    time.sleep(0.1)
    chat.set("max_new_tokens", 100)
    chat.wait(20)
    assert [panel.session.measured.new_tokens for panel in chat.panels] == [20, 20]


def test_columns_with_a_system_message_share_the_conversation_too():
    chat = widget("left", "left again", system="Be brief.")
    assert chat.controls.regenerate.disabled, "nobody has talked yet"
    send(chat, "hi")
    assert chat.transcript()["compared"] == []
    assert pick(chat, beside="base") == ["final", "base"]
    assert texts(chat, 0) == texts(chat, 1) == ["Be brief.", "hi", "left"]
    assert pick(chat, model="base", beside="nobody") == ["base"]
    assert texts(chat)[-1] == "left"


def test_a_side_by_side_conversation_is_loaded_as_it_was_saved():
    chat = widget("mine", beside="base")
    send(chat, "hi")
    other = widget("x", names=("final", "base", "more"), beside="base")
    other.restore(json.loads(json.dumps(chat.transcript())))
    assert last(other) == ["mine", "base mine"]
    assert pick(other, beside="more") == ["final", "more"]
    other.restore(chat.transcript())
    assert last(other) == ["mine", "mine"]
    with pytest.raises(UserError, match=r"messages\.0 is 1"):
        other.restore(chat.transcript() | {"compared": [{"model": "base", "messages": [1]}]})


def test_a_system_message_that_was_loaded_stays_when_the_cell_runs_again():
    first = widget("one")
    first.restore({"messages": [{"role": "system", "content": "Be rude."}, *TURN]})
    first.close()
    assert texts(widget("two", earlier=first)) == ["Be rude.", "old", "reply"]
    assert texts(widget("three", earlier=first, system="Be brief.")) == ["Be brief.", "old", "reply"]


def test_side_by_side_each_speed_is_the_models_own():
    chat = widget("word " * 20, beside="base", max_new_tokens=50)
    chat.panels[1].session.engine.model.seconds = 0.01
    send(chat, "go")
    quick, slow = (panel.session.measured for panel in chat.panels)
    assert slow.seconds > 0.4 and quick.seconds < slow.seconds / 2


def test_a_cell_that_runs_again_keeps_what_was_said_and_with_the_same_arguments_what_was_picked_and_set():
    first = widget("left", "left again", temperature=0.5)
    assert pick(first, beside="base") == ["final", "base"]
    send(first, "hi")
    first.set("top_p", 0.5)
    first.close()
    again = widget("third", temperature=0.5, earlier=first)
    assert again.shown == ["final", "base"] and again.controls.beside.value == "base"
    assert "left" in shown(again, 0) and "base left" in shown(again, 1)
    assert sampling(again, "top_p") == [0.5] * 3
    again.close()
    changed = widget("third", names=("final", "base"), temperature=0.9, earlier=again)
    assert changed.shown == ["final"]
    assert (sampling(changed, "temperature"), sampling(changed, "top_p")) == ([0.9] * 2, [0.9] * 2), "as now asked for"
    assert "left" in shown(changed)
