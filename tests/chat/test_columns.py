"""The columns of the widget: picking models, side by side, one conversation for all of them."""

from __future__ import annotations

import json
import threading
import time

import pytest

from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from nbutils.core.errors import UserError
from tests.chat.models import ScriptedModel
from tests.chat.widgets import TOKENIZER, last, pick, send, shown, texts, widget


def test_side_by_side_and_picking_another_model():
    chat = widget("left", "left again", names=("final", "base"), beside="base")
    send(chat, "hi")
    assert "left" in shown(chat, 0) and "base left" in shown(chat, 1)
    chat.controls.beside.value = "nobody"
    chat.wait(5)
    assert len(chat.panels) == 1
    chat.controls.model.value = "base"
    chat.wait(5)
    assert chat.panels[0].name == "base"
    assert texts(chat)[0] == "hi"  # the other model continues the conversation
    assert [len(m) for m in chat.transcript()["compared"]] == []


@pytest.mark.parametrize("picked", [{"model": "base"}, {"beside": "final"}])
def test_a_model_that_the_other_column_shows_changes_places_with_this_one(picked):
    chat = widget("left", "left again", names=("final", "base"), beside="base")
    send(chat, "hi")
    assert pick(chat, **picked) == ["base", "final"]
    assert "base left" in shown(chat, 0) and "base" not in shown(chat, 1)
    send(chat, "and?")
    assert last(chat) == ["base left again", "left again"]
    assert pick(chat, model="final") == ["final", "base"]


def test_a_model_is_not_compared_with_itself():
    chat = widget("left", names=("final", "base"))
    assert pick(chat, beside="final") == ["final"]
    assert "final is shown already" in chat.notice.text
    with pytest.raises(UserError, match="Both columns would show the model 'final'"):
        widget("left", names=("final", "base"), beside="final")


def test_a_pick_taken_back_while_its_model_loads_counts():
    ready = threading.Event()
    chat = widget("left", names=("final", "base"), ready=ready)
    chat.controls.model.value = "base"
    assert chat.busy and chat.panels[0].name == "final"
    threading.Timer(0.2, ready.set).start()
    assert pick(chat, model="final") == ["final"]


def test_an_error_in_one_column_leaves_both_as_they_were(capsys):
    chat = widget("one", "two", "three", names=("final", "base"), beside="base")
    send(chat, "hi")
    before = [panel.session.messages for panel in chat.panels]
    chat.panels[1].session.engine.model.failing = RuntimeError("out of memory")
    send(chat, "again")
    assert [panel.session.messages for panel in chat.panels] == before
    assert chat.controls.input.value == "again" and "out of memory" in chat.notice.text
    assert "again" not in shown(chat, 0) + shown(chat, 1)
    chat.panels[1].session.engine.model.failing = RuntimeError("out of memory")
    chat.controls.regenerate.click()
    chat.wait(5)
    assert [panel.session.messages for panel in chat.panels] == before, "the old replies stay"
    send(chat, "again")
    assert [len(panel.session.messages) for panel in chat.panels] == [4, 4]
    assert "RuntimeError" in capsys.readouterr().err


def test_a_setting_that_one_of_two_models_refuses_is_taken_by_neither():
    def load(name: str) -> LoadedModel:
        model = ScriptedModel(TOKENIZER, ["x"], context=1024 if name == "final" else 256)
        return LoadedModel(name, model, TOKENIZER, f"{name} on the CPU")

    settings = {"read_ahead": False, "max_new_tokens": 100, "context_extension": "none"}
    chat = ChatWidget(load, ["final", "short"], "final", settings, "short")
    chat.set("max_new_tokens", 200)
    assert "choose at most 128" in chat.notice.text
    assert [panel.session.sampling.max_new_tokens for panel in chat.panels] == [100, 100]
    assert chat.controls.sampling["max_new_tokens"].value == 100
    chat.set("max_new_tokens", 120)
    assert [panel.session.sampling.max_new_tokens for panel in chat.panels] == [120, 120]


def test_a_setting_that_changes_before_a_reply_has_begun_counts_from_the_next_on():
    """The second column's turn comes when the first one has read its history."""
    chat = widget("word " * 90, names=("final", "base"), beside="base", reading=0.4, max_new_tokens=20)
    send(chat, "go", wait=False)
    time.sleep(0.1)
    chat.set("max_new_tokens", 100)
    chat.wait(20)
    assert [panel.session.measured.new_tokens for panel in chat.panels] == [20, 20]


def test_columns_with_a_system_message_share_the_conversation_too():
    chat = widget("left", "left again", names=("final", "base"), system="Be brief.")
    assert chat.controls.regenerate.disabled, "nobody has talked yet"
    send(chat, "hi")
    assert pick(chat, beside="base") == ["final", "base"]
    assert [[m["content"] for m in panel.session.messages] for panel in chat.panels] == [
        ["Be brief.", "hi", "left"]
    ] * 2
    assert pick(chat, model="base", beside="nobody") == ["base"]
    assert texts(chat)[-1] == "left"


def test_a_side_by_side_conversation_is_loaded_as_it_was_saved():
    chat = widget("mine", names=("final", "base"), beside="base")
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
    talk = [{"role": r, "content": c} for r, c in (("system", "Be rude."), ("user", "a"), ("assistant", "b"))]
    first = widget("one")
    first.restore({"messages": talk})
    first.close()
    assert [m["content"] for m in widget("two", earlier=first).panels[0].session.messages] == ["Be rude.", "a", "b"]
    own = widget("three", earlier=first, system="Be brief.")
    assert texts(own) == ["Be brief.", "a", "b"]


def test_side_by_side_each_speed_is_the_models_own():
    chat = widget("word " * 20, names=("final", "base"), beside="base", max_new_tokens=50)
    chat.panels[1].session.engine.model.seconds = 0.02
    send(chat, "go")
    quick, slow = (panel.session.measured for panel in chat.panels)
    assert slow.seconds > 0.8 and quick.seconds < slow.seconds / 2


def test_both_replies_are_announced():
    chat = widget("left", names=("final", "base"), beside="base")
    send(chat, "hi")
    assert "final said: left. base said: base left" in chat.announcement.value


def test_a_cell_that_runs_again_keeps_what_was_said_and_with_the_same_arguments_what_was_picked_and_set():
    names = ("final", "base", "other")
    first = widget("left", "left again", names=names, temperature=0.5)
    assert pick(first, beside="other") == ["final", "other"]
    send(first, "hi")
    first.set("top_p", 0.5)
    first.close()
    again = widget("third", names=names, temperature=0.5, earlier=first)
    assert again.shown == ["final", "other"] and again.controls.beside.value == "other"
    assert "left" in shown(again, 0) and "other left" in shown(again, 1)
    assert again.controls.sampling["top_p"].value == 0.5
    assert {panel.session.sampling.top_p for panel in again.panels} == {0.5}
    again.close()
    changed = widget("third", names=("final", "base"), beside="base", temperature=0.9, earlier=again)
    assert changed.shown == ["final", "base"]
    sampling = changed.panels[0].session.sampling
    assert (sampling.temperature, sampling.top_p) == (0.9, 0.9), "what the cell now asks for counts"
    assert "left" in shown(changed)
