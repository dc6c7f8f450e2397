"""The widget without a browser: what its buttons do to the sessions, and what it shows."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import replace

import pytest

from nbutils.chat import markup
from nbutils.chat.parts import MARK
from nbutils.chat.session import Context
from tests.chat.widgets import send, shown, texts, upload, widget


def test_a_conversation():
    chat = widget("hello **you**", "fine")
    send(chat, "hi <b>")
    assert chat.controls.input.value == ""
    assert "hi &lt;b&gt;" in shown(chat) and "<strong>you</strong>" in shown(chat)
    assert "tokens/s" in shown(chat) and "first after" in shown(chat)
    assert "of 1,024 tokens" in chat.panels[0].meter.value
    send(chat, "and?")
    assert texts(chat) == ["hi <b>", "hello **you**", "and?", "fine"]
    assert "The model said: fine" in chat.announcement.value


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
    assert 0 < len(texts(chat)[-1]) < 900


def test_regenerate_edit_and_clear():
    chat = widget("one", "two", "three", "four")
    assert chat.controls.regenerate.disabled and chat.controls.edit.disabled
    send(chat, "hi")
    chat.controls.regenerate.click()
    chat.wait(5)
    assert texts(chat)[-1] == "two"
    chat.controls.edit.click()
    assert chat.controls.input.value == "hi" and chat.controls.send.description == "Send again"
    send(chat, "hi there")
    assert texts(chat) == ["hi there", "three"]
    assert chat.controls.send.description == "Send"
    chat.controls.clear.click()
    assert texts(chat) == [] and "Say something" in shown(chat)


def test_another_conversation_is_not_edited_by_mistake():
    chat = widget("one", "two")
    send(chat, "hi")
    chat.controls.edit.click()
    chat.restore({"messages": [{"role": "user", "content": "old"}, {"role": "assistant", "content": "reply"}]})
    assert chat.controls.send.description == "Send" and chat.controls.input.value == ""
    send(chat, "new")
    assert texts(chat) == ["old", "reply", "new", "two"]
    chat.controls.edit.click()
    chat.controls.clear.click()
    assert chat.controls.send.description == "Send" and chat.controls.input.value == ""


def test_a_draft_survives_an_error_and_an_edit_that_is_taken_back(capsys):
    chat = widget("one", "two", seconds=0.02)
    send(chat, "hi")
    chat.controls.input.value = "my next thought"
    chat.controls.edit.click()
    assert chat.controls.input.value == "hi"
    chat.controls.edit.click()
    assert chat.controls.input.value == "my next thought"
    model = chat.panels[0].session.engine.model
    model.failing = RuntimeError("out of memory")
    model.register_forward_pre_hook(lambda *_: setattr(chat.controls.input, "value", "my next thought"))
    send(chat, "again")
    assert chat.controls.input.value == "again\nmy next thought" and "RuntimeError" in capsys.readouterr().err


def test_meter_and_notice_follow_what_happens():
    ready = threading.Event()
    chat = widget(*["a reply of thirty characters.."] * 40, names=("final", "base"), ready=ready, max_new_tokens=250)
    for turn in range(40):
        if "next to go" in chat.panels[0].meter.value:
            break
        send(chat, f"message {turn} with some more text to fill the window")
    chat.set("max_new_tokens", 10)
    assert "next to go" not in chat.panels[0].meter.value, "a shorter reply leaves more room"
    chat.controls.model.value = "base"
    chat.set("temperature", 1.5)
    assert "loading base" in chat.notice.text
    ready.set()
    chat.wait(5)
    assert chat.panels[0].session.sampling.temperature == 1.5 and not chat.notice.text


def test_a_message_that_is_too_long_is_refused_and_kept_in_the_input():
    chat = widget("x")
    send(chat, "y" * 2000)
    assert chat.controls.input.value == "y" * 2000
    assert re.search(r"2,0\d\d tokens long and there is room for", chat.notice.text)
    assert texts(chat) == []


def test_a_model_that_raises_is_reported_and_the_chat_goes_on(capsys):
    chat = widget("one", "two")
    send(chat, "hi")
    chat.panels[0].session.engine.model.failing = RuntimeError("out of <memory>")
    send(chat, "again")
    assert chat.controls.input.value == "again", "the message that got no reply is not lost"
    assert "again" not in shown(chat)
    assert "out of <memory>" in chat.notice.text and "out of &lt;memory&gt;" in markup.notice(chat.notice.text)
    assert not chat.controls.send.disabled
    assert "RuntimeError" in capsys.readouterr().err
    send(chat, "again")
    assert texts(chat)[-1] == "two"


def test_a_callback_that_raises_is_reported_and_the_chat_goes_on(capsys):
    chat = widget("one", names=("final", "broken"))
    chat.controls.beside.value = "broken"
    chat.wait(5)
    assert "disk on fire" in chat.notice.text and "disk on fire" in capsys.readouterr().err
    assert chat.controls.beside.value == "nobody", "the picker says what is shown"
    send(chat, "hi")
    chat.panels[0].session.clear = lambda: 1 / 0
    chat.controls.clear.click()
    assert "ZeroDivisionError" in chat.notice.text
    assert texts(chat)[-1] == "one"


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
        (b"[1]", "no conversation"),
    ):
        upload(other, wrong)
        assert words in other.notice.text
    assert other.panels[0].session.messages == chat.panels[0].session.messages


def test_the_meter_says_what_goes_next_and_what_is_gone():
    chat = widget(*["a reply of thirty characters.."] * 40, max_new_tokens=100, context_extension="none")
    seen = set()
    for turn in range(16):
        send(chat, f"message {turn} with some more text to fill the window")
        meter = chat.panels[0].meter.value
        seen |= {word for word in ("next to go", "no longer read") if word in meter}
    assert seen == {"next to go", "no longer read"}
    assert "sc-faded" in shown(chat)


def test_turns_go_soon_when_the_room_is_nearly_full_and_not_the_context():
    half_for_the_reply = Context(used=480, limit=1000, fixed=80, room=500, dropped=0, next_dropped=1, extended=False)
    assert half_for_the_reply.nearly_full
    assert not replace(half_for_the_reply, used=440).nearly_full
    assert not replace(half_for_the_reply, next_dropped=0).nearly_full


def test_sampling_settings_reach_the_session():
    chat = widget("one")
    chat.set("temperature", 1.5)
    chat.set("greedy", True)
    assert chat.panels[0].session.sampling.temperature == 1.5
    assert chat.panels[0].session.sampling.greedy


def test_a_setting_beyond_its_slider_stays_until_that_is_moved():
    chat = widget("one", max_new_tokens=8, temperature=3.0)
    chat.set("greedy", True)
    sampling = chat.panels[0].session.sampling
    assert (sampling.greedy, sampling.max_new_tokens, sampling.temperature) == (True, 8, 3.0)
    assert chat.controls.sampling["temperature"].value == 3.0, "the slider says so"


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
    assert chat.busy and "three" in shown(chat), "the old reply stays until there is a new one"
    chat.wait(20)
    assert "(nothing)" in shown(chat)


def test_no_reply_is_missing_for_a_moment():
    chat = widget("one", "two")
    send(chat, "hi")
    panel, missing = chat.panels[0], []

    def look(_change) -> None:
        if ">one<" not in shown(chat):
            missing.append(panel.newest.value)

    for part in (panel.history, panel.newest):
        part.observe(look, "value")
    send(chat, "and?")
    assert ">two<" in shown(chat) and not missing


def test_what_the_page_sends_is_one_message():
    chat = widget("one", "two", "three", seconds=0.01)
    chat.controls.input.value = "not heard of"
    chat.controls.outbox.value = f"hi{MARK}1"
    assert chat.controls.input.value == ""
    chat.controls.outbox.value = f"while it writes{MARK}2"
    assert "is being written" in chat.notice.text and chat.controls.input.value == "while it writes"
    chat.wait(5)
    chat.controls.outbox.value = f"hi{MARK}3"  # the same text again
    chat.wait(5)
    chat.controls.outbox.value = f"with a {MARK} of its own{MARK}4"
    chat.wait(5)
    said = [m["content"] for m in chat.panels[0].session.messages if m["role"] == "user"]
    assert said == ["hi", "hi", f"with a {MARK} of its own"]


def test_copy_gives_the_reply_as_it_was_written():
    chat = widget('**bold** "quoted" <i>\n- one')
    send(chat, "hi")
    assert 'data-text="**bold** &quot;quoted&quot; &lt;i&gt;\n- one"' in shown(chat)


def test_two_widgets_write_at_once_and_close_stops():
    chats = [widget("word " * 200, seconds=0.005, max_new_tokens=400) for _ in range(2)]
    for chat in chats:
        send(chat, "go", wait=False)
    time.sleep(0.2)
    assert all(len(texts(chat)[-1]) > 5 for chat in chats)
    for chat in chats:
        chat.close()
    assert not any(t.name == "chat-writes" and t.is_alive() for t in threading.enumerate())


@pytest.mark.parametrize("text", ["\n", "   "])
def test_an_empty_message_is_not_sent(text):
    chat = widget("one")
    send(chat, text)
    assert texts(chat) == []
