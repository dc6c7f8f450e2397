"""The widget without a browser: what its buttons do to the sessions, and what it shows."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nbutils.chat import bubbles
from nbutils.chat.controls import MARK
from nbutils.chat.models import LoadedModel
from nbutils.chat.session import Context
from nbutils.chat.widget import ChatWidget
from nbutils.core.errors import UserError
from tests.chat.models import ScriptedModel, byte_tokenizer

TOKENIZER = byte_tokenizer()


def widget(
    *replies: str,
    seconds: float = 0.0,
    names=("final",),
    beside: str = "",
    reading: float = 0.0,
    earlier=None,
    **settings,
) -> ChatWidget:
    def load(name: str) -> LoadedModel:
        if name == "broken":
            raise RuntimeError("disk on fire")
        texts = [reply if name == "final" else f"{name} {reply}" for reply in replies]
        return LoadedModel(
            name, ScriptedModel(TOKENIZER, texts, seconds, reading=reading), TOKENIZER, f"{name} on the CPU"
        )

    return ChatWidget(load, list(names), "final", {"read_ahead": False} | settings, beside, earlier)


def send(chat: ChatWidget, text: str, wait: bool = True) -> None:
    chat.controls.input.value = text
    chat.controls.send.click()
    if wait:
        chat.wait(20)


def upload(chat: ChatWidget, content: bytes) -> None:
    file = {"name": "t.json", "type": "application/json", "size": len(content), "content": memoryview(content)}
    chat.controls.upload.value = (file | {"last_modified": datetime.now(UTC)},)


def shown(chat: ChatWidget, panel: int = 0) -> str:
    column = chat.panels[panel]
    return column._history.value + column._live.value


def test_a_conversation():
    chat = widget("hello **you**", "fine")
    send(chat, "hi <b>")
    assert chat.controls.input.value == ""
    assert "hi &lt;b&gt;" in shown(chat) and "<strong>you</strong>" in shown(chat)
    assert "tokens/s" in shown(chat) and "first after" in shown(chat)
    assert "of 1,024 tokens" in chat.panels[0]._meter.value
    send(chat, "and?")
    assert [m["content"] for m in chat.panels[0].session.messages] == ["hi <b>", "hello **you**", "and?", "fine"]
    assert "The model said: fine" in chat._announce.value


def test_stop_ends_a_reply_and_the_buttons_follow():
    chat = widget("word " * 300, "more", seconds=0.01, max_new_tokens=400)
    send(chat, "go", wait=False)
    assert chat.controls.send.disabled and not chat.controls.stop.disabled
    time.sleep(0.3)
    pressed = time.perf_counter()
    chat.controls.stop.click()
    chat.wait(5)
    assert time.perf_counter() - pressed < 1
    assert not chat.controls.send.disabled and chat.controls.stop.disabled
    assert "stopped" in shown(chat)
    assert 0 < len(chat.panels[0].session.messages[-1]["content"]) < 900


def test_regenerate_edit_and_clear():
    chat = widget("one", "two", "three", "four")
    assert chat.controls.regenerate.disabled and chat.controls.edit.disabled
    send(chat, "hi")
    chat.controls.regenerate.click()
    chat.wait(5)
    assert chat.panels[0].session.messages[-1]["content"] == "two"
    chat.controls.edit.click()
    assert chat.controls.input.value == "hi" and chat.controls.send.description == "Send again"
    send(chat, "hi there")
    assert [m["content"] for m in chat.panels[0].session.messages] == ["hi there", "three"]
    assert chat.controls.send.description == "Send"
    chat.controls.clear.click()
    assert chat.panels[0].session.messages == [] and "Say something" in shown(chat)


def test_another_conversation_is_not_edited_by_mistake():
    chat = widget("one", "two")
    send(chat, "hi")
    chat.controls.edit.click()
    chat.restore({"messages": [{"role": "user", "content": "old"}, {"role": "assistant", "content": "reply"}]})
    assert chat.controls.send.description == "Send" and chat.controls.input.value == ""
    send(chat, "new")
    assert [m["content"] for m in chat.panels[0].session.messages] == ["old", "reply", "new", "two"]
    chat.controls.edit.click()
    chat.controls.clear.click()
    assert chat.controls.send.description == "Send" and chat.controls.input.value == ""


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
    assert chat.panels[0].session.messages[0]["content"] == "hi"  # the conversation goes on with the other model
    assert [len(m) for m in chat.transcript()["compared"]] == []


def pick(chat: ChatWidget, **picked: str) -> list[str]:
    """Picks models and waits; returns what the columns show, each by its title and by what its model said last."""
    for picker, name in picked.items():
        getattr(chat.controls, picker).value = name
    chat.wait(5)
    assert [chat.controls.model.value, chat.controls.beside.value] == ([p.name for p in chat.panels] + ["nobody"])[:2]
    return [re.search(r">(\w+) on the CPU<", panel._title.value)[1] for panel in chat.panels]


@pytest.mark.parametrize("picked", [{"model": "base"}, {"beside": "final"}])
def test_a_model_that_the_other_column_shows_changes_places_with_this_one(picked):
    chat = widget("left", "left again", names=("final", "base"), beside="base")
    send(chat, "hi")
    assert pick(chat, **picked) == ["base", "final"]
    assert "base left" in shown(chat, 0) and "base" not in shown(chat, 1)
    assert list(chat.columns.box.children) == [panel.box for panel in chat.panels]
    send(chat, "and?")
    assert [panel.session.messages[-1]["content"] for panel in chat.panels] == ["base left again", "left again"]
    assert pick(chat, model="final") == ["final", "base"]


def test_a_model_is_not_compared_with_itself():
    chat = widget("left", names=("final", "base"))
    assert pick(chat, beside="final") == ["final"]
    assert "final is shown already" in chat._notice.value
    with pytest.raises(UserError, match="Both columns would show the model 'final'"):
        widget("left", names=("final", "base"), beside="final")


def test_a_pick_taken_back_while_its_model_loads_counts():
    chat = widget("left", names=("final", "base"))
    ready, load = threading.Event(), chat.columns._load
    chat.columns._load = lambda name: load(name) if ready.wait(5) else None
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
    assert chat.controls.input.value == "again" and "out of memory" in chat._notice.value
    assert "again" not in shown(chat, 0) + shown(chat, 1)
    chat.panels[1].session.engine.model.failing = RuntimeError("out of memory")
    chat.controls.regenerate.click()
    chat.wait(5)
    assert [panel.session.messages for panel in chat.panels] == before, "the old replies stand"
    send(chat, "again")
    assert [len(panel.session.messages) for panel in chat.panels] == [4, 4]
    assert "RuntimeError" in capsys.readouterr().err


def test_a_setting_that_one_of_two_models_refuses_is_taken_by_neither():
    def load(name: str) -> LoadedModel:
        model = ScriptedModel(TOKENIZER, ["x"], context=1024 if name == "final" else 256)
        return LoadedModel(name, model, TOKENIZER, f"{name} on the CPU")

    settings = {"read_ahead": False, "max_new_tokens": 100, "context_extension": "none"}
    chat = ChatWidget(load, ["final", "short"], "final", settings, "short")
    chat.controls._sampling["max_new_tokens"].value = 200
    assert "choose at most 128" in chat._notice.value
    assert [panel.session.sampling.max_new_tokens for panel in chat.panels] == [100, 100]
    assert chat.controls._sampling["max_new_tokens"].value == 100
    chat.controls._sampling["max_new_tokens"].value = 120
    assert [panel.session.sampling.max_new_tokens for panel in chat.panels] == [120, 120]


def test_a_setting_that_changes_before_a_reply_has_begun_counts_from_the_next_on():
    """The second column's turn comes when the first one has read its history."""
    chat = widget("word " * 90, names=("final", "base"), beside="base", reading=0.4, max_new_tokens=20)
    send(chat, "go", wait=False)
    time.sleep(0.1)
    chat.controls._sampling["max_new_tokens"].value = 100
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
    assert chat.panels[0].session.messages[-1]["content"] == "left"


def test_a_side_by_side_conversation_is_loaded_as_it_was_saved():
    chat = widget("mine", names=("final", "base"), beside="base")
    send(chat, "hi")
    other = widget("x", names=("final", "base", "more"), beside="base")
    other.restore(json.loads(json.dumps(chat.transcript())))
    assert [panel.session.messages[-1]["content"] for panel in other.panels] == ["mine", "base mine"]
    assert pick(other, beside="more") == ["final", "more"]
    other.restore(chat.transcript())
    assert [panel.session.messages[-1]["content"] for panel in other.panels] == ["mine", "mine"]
    with pytest.raises(UserError, match="needs a role"):
        other.restore(chat.transcript() | {"compared": [{"model": "base", "messages": [1]}]})


def test_a_system_message_that_was_loaded_stays_when_the_cell_runs_again():
    talk = [{"role": r, "content": c} for r, c in (("system", "Be rude."), ("user", "a"), ("assistant", "b"))]
    first = widget("one")
    first.restore({"messages": talk})
    first.close()
    assert [m["content"] for m in widget("two", earlier=first).panels[0].session.messages] == ["Be rude.", "a", "b"]
    own = widget("three", earlier=first, system="Be brief.")
    assert [m["content"] for m in own.panels[0].session.messages] == ["Be brief.", "a", "b"]


def test_a_second_model_that_the_cell_asks_for_is_shown_whatever_was_picked():
    first = widget("left", names=("final", "base"))
    assert pick(first, model="base") == ["base"]
    first.close()
    again = widget("left", names=("final", "base"), beside="base", earlier=first)
    assert [panel.name for panel in again.panels] == ["final", "base"]


def test_a_draft_survives_an_error_and_an_edit_that_is_taken_back(capsys):
    chat = widget("one", "two", seconds=0.02)
    send(chat, "hi")
    chat.controls.input.value = "my next thought"
    chat.controls.edit.click()
    assert chat.controls.input.value == "hi"
    chat.controls.edit.click()
    assert chat.controls.input.value == "my next thought"
    chat.panels[0].session.engine.model.failing = RuntimeError("out of memory")
    chat.controls.input.value = ""
    write = chat._write

    def type_meanwhile() -> None:
        chat.controls.input.value = "my next thought"
        write()

    chat._write = type_meanwhile
    send(chat, "again")
    assert chat.controls.input.value == "again\nmy next thought" and "RuntimeError" in capsys.readouterr().err


def test_meter_and_notice_follow_what_happens():
    chat = widget(*["a reply of thirty characters.."] * 40, names=("final", "base"), max_new_tokens=250)
    for turn in range(40):
        if "next to go" in chat.panels[0]._meter.value:
            break
        send(chat, f"message {turn} with some more text to fill the window")
    chat.controls._sampling["max_new_tokens"].value = 10
    assert "next to go" not in chat.panels[0]._meter.value, "a shorter reply leaves more room"
    ready, load = threading.Event(), chat.columns._load
    chat.columns._load = lambda name: load(name) if ready.wait(5) else None
    chat.controls.model.value = "base"
    chat.controls._sampling["temperature"].value = 1.5
    assert "loading base" in chat._notice.value
    ready.set()
    chat.wait(5)
    assert chat.panels[0].session.sampling.temperature == 1.5 and not chat._notice.value


def test_side_by_side_each_speed_is_the_models_own():
    chat = widget("word " * 20, names=("final", "base"), beside="base", max_new_tokens=50)
    chat.panels[1].session.engine.model.seconds = 0.02
    send(chat, "go")
    quick, slow = (panel.session.measured for panel in chat.panels)
    assert slow.seconds > 0.8 and quick.seconds < slow.seconds / 2


def test_a_message_that_is_too_long_is_refused_and_kept_in_the_input():
    chat = widget("x")
    send(chat, "y" * 2000)
    assert chat.controls.input.value == "y" * 2000
    assert re.search(r"2,0\d\d tokens long and there is room for", chat._notice.value)
    assert chat.panels[0].session.messages == []


def test_a_model_that_raises_is_reported_and_the_chat_goes_on(capsys):
    chat = widget("one", "two")
    send(chat, "hi")
    chat.panels[0].session.engine.model.failing = RuntimeError("out of <memory>")
    send(chat, "again")
    assert chat.controls.input.value == "again", "the message that got no reply is not lost"
    assert "again" not in shown(chat)
    assert "out of &lt;memory&gt;" in chat._notice.value
    assert not chat.controls.send.disabled
    assert "RuntimeError" in capsys.readouterr().err
    send(chat, "again")
    assert chat.panels[0].session.messages[-1]["content"] == "two"


def test_a_callback_that_raises_is_reported_and_the_chat_goes_on(capsys):
    chat = widget("one", names=("final", "broken"))
    chat.controls.beside.value = "broken"
    chat.wait(5)
    assert "disk on fire" in chat._notice.value and "disk on fire" in capsys.readouterr().err
    assert chat.controls.beside.value == "nobody", "the picker says what is shown"
    chat.panels[0].session.clear = lambda: 1 / 0
    send(chat, "hi")
    chat.controls.clear.click()
    assert "ZeroDivisionError" in chat._notice.value
    assert chat.panels[0].session.messages[-1]["content"] == "one"


def test_download_and_load_a_transcript():
    chat = widget("one é🌙", "two")
    send(chat, "hi")
    data = re.search(r"base64,([^\"]+)", chat.controls.download.value)[1]
    saved = base64.b64decode(data)
    assert json.loads(saved)["messages"][1]["content"] == "one é🌙"
    other = widget("three")
    upload(other, saved)
    assert other.panels[0].session.messages == chat.panels[0].session.messages
    assert "one é🌙" in shown(other)
    for wrong, words in (
        (b"no", "no transcript"),
        (b'{"messages": [], "schema": 2}', "newer smallchat"),
        (b'{"messages": [], "turns_dropped": 1}', "turns_dropped"),
        (b"[1]", "no transcript"),
    ):
        upload(other, wrong)
        assert words in other._notice.value
    assert other.panels[0].session.messages == chat.panels[0].session.messages


def test_the_meter_says_what_goes_next_and_what_is_gone():
    chat = widget(*["a reply of thirty characters.."] * 40, max_new_tokens=100, context_extension="none")
    seen = set()
    for turn in range(16):
        send(chat, f"message {turn} with some more text to fill the window")
        meter = chat.panels[0]._meter.value
        seen |= {word for word in ("next to go", "no longer read") if word in meter}
    assert seen == {"next to go", "no longer read"}
    assert "sc-faded" in shown(chat)


def test_turns_go_soon_when_the_room_is_nearly_full_and_not_the_context():
    half_for_the_reply = Context(used=480, limit=1000, fixed=80, room=500, dropped=0, next_dropped=1, extended=False)
    assert bubbles.soon(half_for_the_reply)
    assert not bubbles.soon(replace(half_for_the_reply, used=440))
    assert not bubbles.soon(replace(half_for_the_reply, next_dropped=0))


def test_sampling_settings_reach_the_session():
    chat = widget("one")
    chat.controls._sampling["temperature"].value = 1.5
    chat.controls._sampling["greedy"].value = True
    assert chat.panels[0].session.sampling.temperature == 1.5
    assert chat.panels[0].session.sampling.greedy


def test_a_setting_beyond_its_slider_stays_until_that_is_moved():
    chat = widget("one", max_new_tokens=8, temperature=3.0)
    chat.controls._sampling["greedy"].value = True
    sampling = chat.panels[0].session.sampling
    assert (sampling.greedy, sampling.max_new_tokens, sampling.temperature) == (True, 8, 3.0)
    assert chat.controls._sampling["temperature"].value == 3.0, "the slider says so"


def test_what_was_sent_is_shown_while_the_history_is_read():
    chat = widget("one", "two", "three", reading=0.5)
    send(chat, "first <b>", wait=False)
    assert chat.busy and "first &lt;b&gt;" in shown(chat) and "sc-cursor" in shown(chat)
    chat.wait(20)
    send(chat, "second", wait=False)
    assert chat.busy and shown(chat).count("sc-user") == 2 and ">one<" in shown(chat)
    chat.wait(20)
    chat.controls.edit.click()
    send(chat, "third", wait=False)
    assert chat.busy and "third" in shown(chat) and "second" not in shown(chat) and "two" not in shown(chat)
    chat.wait(20)
    chat.controls.regenerate.click()
    assert chat.busy and "three" in shown(chat), "the old reply stands until there is a new one"
    chat.wait(20)
    assert "(nothing)" in shown(chat)


def test_no_reply_is_missing_for_a_moment():
    chat = widget("one", "two")
    send(chat, "hi")
    panel, missing = chat.panels[0], []

    def look(_change) -> None:
        if ">one<" not in panel._history.value + panel._live.value:
            missing.append(panel._live.value)

    for part in (panel._history, panel._live):
        part.observe(look, "value")
    send(chat, "and?")
    assert ">two<" in shown(chat) and not missing


def test_what_the_page_sends_is_one_message():
    chat = widget("one", "two", "three", seconds=0.01)
    chat.controls.input.value = "not heard of"
    chat.controls.outbox.value = f"hi{MARK}1"
    assert chat.controls.input.value == ""
    chat.controls.outbox.value = f"while it writes{MARK}2"
    assert "is being written" in chat._notice.value and chat.controls.input.value == "while it writes"
    chat.wait(5)
    chat.controls.outbox.value = f"hi{MARK}3"  # the same text again
    chat.wait(5)
    chat.controls.outbox.value = f"with a {MARK} of its own{MARK}4"
    chat.wait(5)
    said = [m["content"] for m in chat.panels[0].session.messages if m["role"] == "user"]
    assert said == ["hi", "hi", f"with a {MARK} of its own"]


def test_both_replies_are_announced():
    chat = widget("left", names=("final", "base"), beside="base")
    send(chat, "hi")
    assert "final said: left. base said: base left" in chat._announce.value


def test_copy_gives_the_reply_as_it_was_written():
    chat = widget('**bold** "quoted" <i>\n- one')
    send(chat, "hi")
    assert 'data-text="**bold** &quot;quoted&quot; &lt;i&gt;\n- one"' in shown(chat)


def test_a_widget_made_again_keeps_what_was_picked_set_and_said():
    names = ("final", "base", "other")
    first = widget("left", "left again", names=names, temperature=0.5)
    first.controls.beside.value = "other"
    first.wait(5)
    send(first, "hi")
    first.controls._sampling["top_p"].value = 0.5
    first.close()
    again = widget("third", names=names, temperature=0.5, earlier=first)
    assert [panel.name for panel in again.panels] == ["final", "other"]
    assert "left" in shown(again, 0) and "other left" in shown(again, 1)
    assert again.controls.beside.value == "other" and again.controls._sampling["top_p"].value == 0.5
    assert {panel.session.sampling.top_p for panel in again.panels} == {0.5}
    again.close()
    changed = widget("third", names=("final", "base"), temperature=0.9, top_p=0.8, earlier=again)
    assert [panel.name for panel in changed.panels] == ["final"], "what is no longer offered is not picked"
    sampling = changed.panels[0].session.sampling
    assert (sampling.temperature, sampling.top_p) == (0.9, 0.8), "what the cell says anew counts"
    assert "left" in shown(changed)


def test_two_widgets_write_at_once_and_close_stops():
    chats = [widget("word " * 200, seconds=0.005, max_new_tokens=400) for _ in range(2)]
    for chat in chats:
        send(chat, "go", wait=False)
    time.sleep(0.2)
    assert all(len(chat.panels[0].session.messages[-1]["content"]) > 5 for chat in chats)
    for chat in chats:
        chat.close()
    assert not any(t.name == "chat-writes" and t.is_alive() for t in threading.enumerate())


@pytest.mark.parametrize("text", ["\n", "   "])
def test_an_empty_message_is_not_sent(text):
    chat = widget("one")
    send(chat, text)
    assert chat.panels[0].session.messages == []
