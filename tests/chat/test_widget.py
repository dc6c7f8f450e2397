"""The widget without a browser: what its buttons do to the sessions, and what it shows."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import replace

from nbutils.chat.parts import MARK
from nbutils.chat.session import Context
from tests.chat.widgets import TURN, click, fail, notice, sampling, send, shown, texts, upload, widget


def test_a_conversation():
    chat = widget('hello **you** "quoted" <i>', "fine")
    send(chat, "hi <b>")
    assert chat.controls.input.value == ""
    for part in ("hi &lt;b&gt;", "<strong>you</strong>", "tokens/s", "first after"):
        assert part in shown(chat)
    assert 'data-text="hello **you** &quot;quoted&quot; &lt;i&gt;"' in shown(chat), "Copy gives it as it was written"
    assert "of 1,024 tokens" in chat.panels[0].meter.value
    send(chat, "and?", "\n", "   ")  # nothing is sent where nothing is said
    assert texts(chat)[2:] == ["and?", "fine"]
    assert "final said: fine" in chat.announcement.value


def test_stop_ends_a_reply_and_the_buttons_follow():
    chat = widget("word " * 300, "more", seconds=0.01, max_new_tokens=400)
    send(chat, "go", wait=False)
    assert chat.controls.send.disabled and not chat.controls.stop.disabled
    time.sleep(0.3)
    pressed = time.perf_counter()
    click(chat, "stop")
    assert time.perf_counter() - pressed < 1
    assert not chat.controls.send.disabled and chat.controls.stop.disabled
    assert "stopped" in shown(chat) and 3 < len(texts(chat)[-1]) < 200


def test_regenerate_edit_and_clear():
    chat = widget("one", "two", "three", "four")
    assert chat.controls.regenerate.disabled and chat.controls.edit.disabled
    send(chat, "hi")
    click(chat, "regenerate")
    assert texts(chat)[-1] == "two"
    click(chat, "edit")
    assert chat.controls.input.value == "hi" and chat.controls.send.description == "Send again"
    send(chat, "hi there")
    assert texts(chat) == ["hi there", "three"]
    assert chat.controls.send.description == "Send"
    click(chat, "clear")
    assert texts(chat) == [] and "Say something" in shown(chat)


def test_another_conversation_is_not_edited_by_mistake():
    chat = widget("one", "two")
    send(chat, "hi")
    for leave in (lambda: chat.restore({"messages": TURN}), chat.controls.clear.click):
        chat.controls.edit.click()
        leave()
        assert chat.controls.send.description == "Send" and chat.controls.input.value == ""
        before = texts(chat)
        send(chat, "new")
        assert texts(chat)[:-1] == [*before, "new"]


def test_a_draft_survives_an_error_and_an_edit_that_is_taken_back(capsys):
    chat = widget("one", "two", seconds=0.02)
    send(chat, "hi")
    chat.controls.input.value = draft = "my next thought"
    for expected in ("hi", draft):
        chat.controls.edit.click()
        assert chat.controls.input.value == expected
    fail(chat)
    model = chat.panels[0].session.engine.model
    model.register_forward_pre_hook(lambda *_: setattr(chat.controls.input, "value", draft))
    send(chat, "again")
    assert chat.controls.input.value == f"again\n{draft}" and "RuntimeError" in capsys.readouterr().err


def test_meter_and_notice_follow_what_happens():
    ready = threading.Event()
    chat = widget(*["a reply of thirty characters.."] * 40, ready=ready, max_new_tokens=250)
    while "next to go" not in chat.panels[0].meter.value:
        send(chat, "a message with some more text to fill the window" * 3)
    chat.set("max_new_tokens", 10)
    assert "next to go" not in chat.panels[0].meter.value, "a shorter reply leaves more room"
    chat.controls.model.value = "base"
    chat.set("temperature", 1.5)
    assert "loading base" in notice(chat)
    ready.set()
    chat.wait(5)
    assert sampling(chat, "temperature") == [1.5] * 2 and not notice(chat)


def test_a_message_that_is_too_long_is_refused_and_kept_in_the_input():
    chat = widget("x")
    send(chat, "y" * 2000)
    assert chat.controls.input.value == "y" * 2000
    assert re.search(r"2,0\d\d tokens long and there is room for", notice(chat))
    assert texts(chat) == []


def test_a_callback_that_raises_is_reported_and_the_chat_goes_on(capsys):
    chat = widget("one")
    chat.controls.beside.value = "broken"
    chat.wait(5)
    assert "disk on fire" in notice(chat) and "disk on fire" in capsys.readouterr().err
    assert chat.controls.beside.value == "nobody", "the picker says what is shown"
    send(chat, "hi")
    chat.panels[0].session.restore = lambda _: 1 / 0
    click(chat, "clear")
    assert "ZeroDivisionError" in notice(chat)
    assert texts(chat)[-1] == "one"


def test_download_and_load_a_transcript():
    chat, other = widget("one é🌙"), widget("three")
    send(chat, "hi")
    saved = base64.b64decode(re.search(r"base64,([^\"]+)", chat.controls.download.value)[1])
    assert json.loads(saved)["messages"][1]["content"] == "one é🌙"
    upload(other, saved)
    assert "one é🌙" in shown(other)
    upload(other, b"no")
    assert "no transcript" in notice(other)
    assert texts(other) == texts(chat)


def test_the_meter_says_what_goes_next_and_what_is_gone():
    chat = widget(*["a reply of thirty characters.."] * 40, max_new_tokens=100, context_extension="none")
    for words in ("next to go", "no longer read"):
        for _ in range(16):
            if words not in chat.panels[0].meter.value:
                send(chat, "a message with some more text to fill the window")
        assert words in chat.panels[0].meter.value
    assert "sc-faded" in shown(chat)


def test_turns_go_soon_when_the_room_is_nearly_full_and_not_the_context():
    half_for_the_reply = Context(used=480, limit=1000, fixed=80, room=500, dropped=0, next_dropped=1)
    assert half_for_the_reply.nearly_full
    assert not replace(half_for_the_reply, used=440).nearly_full
    assert not replace(half_for_the_reply, next_dropped=0).nearly_full


def test_a_setting_reaches_the_session_and_one_beyond_its_slider_stays_until_that_is_moved():
    chat = widget("one", max_new_tokens=8, temperature=3.0)
    chat.set("greedy", True)
    found = {name: sampling(chat, name) for name in ("greedy", "max_new_tokens", "temperature")}
    assert found == {"greedy": [True] * 2, "max_new_tokens": [8] * 2, "temperature": [3.0] * 2}


def test_what_was_sent_is_shown_while_the_history_is_read():
    chat = widget("one", "two", "three", reading=0.3)
    send(chat, "first <b>", wait=False)
    assert chat.busy and "first &lt;b&gt;" in shown(chat) and "sc-cursor" in shown(chat)
    chat.wait(20)
    send(chat, "second", wait=False)
    assert chat.busy and shown(chat).count("sc-user") == 2 and ">one<" in shown(chat)
    chat.wait(20)
    click(chat, "edit")
    send(chat, "third", wait=False)
    assert chat.busy and "third" in shown(chat) and "second" not in shown(chat) and "two" not in shown(chat)
    chat.wait(20)
    chat.controls.regenerate.click()
    assert chat.busy and "three" in shown(chat), "the old reply stays until there is a new one"
    chat.wait(20)
    assert "(nothing)" in shown(chat)


def test_no_reply_is_missing_for_a_moment():
    chat = widget("one", "two")
    send(chat, "hi")
    panel, missing = chat.panels[0], []
    for part in (panel.history, panel.newest):
        part.observe(lambda _: ">one<" in shown(chat) or missing.append(panel.newest.value), "value")
    send(chat, "and?")
    assert ">two<" in shown(chat) and not missing


def test_what_the_page_sends_is_one_message():
    chat = widget("one", "two", "three", seconds=0.01)
    chat.controls.input.value = "not heard of"
    chat.controls.outbox.value = f"hi{MARK}1"
    assert chat.controls.input.value == ""
    chat.controls.outbox.value = f"while it writes{MARK}2"
    assert "is being written" in notice(chat) and chat.controls.input.value == "while it writes"
    for text in (f"hi{MARK}3", f"with a {MARK} of its own{MARK}4"):  # the first is the same text again
        chat.wait(5)
        chat.controls.outbox.value = text
    chat.wait(5)
    assert texts(chat)[::2] == ["hi", "hi", f"with a {MARK} of its own"]


def test_two_widgets_write_at_once_and_close_stops():
    chats = [widget("word " * 200, seconds=0.005, max_new_tokens=400) for _ in range(2)]
    for chat in chats:
        send(chat, "go", wait=False)
    time.sleep(0.2)
    assert all(len(texts(chat)[-1]) > 5 for chat in chats)
    for chat in chats:
        chat.close()
    assert not any(t.name == "chat-writes" and t.is_alive() for t in threading.enumerate())
