"""The widget without a browser: what its buttons do to the sessions, and what it shows."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from datetime import UTC, datetime

import pytest

from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from tests.chat.models import ScriptedModel, byte_tokenizer

TOKENIZER = byte_tokenizer()


def widget(*replies: str, seconds: float = 0.0, names=("final",), beside: str = "", **settings) -> ChatWidget:
    def load(name: str) -> LoadedModel:
        if name == "broken":
            raise RuntimeError("disk on fire")
        texts = [reply if name == "final" else f"{name} {reply}" for reply in replies]
        return LoadedModel(name, ScriptedModel(TOKENIZER, texts, seconds), TOKENIZER, f"{name} on the CPU")

    return ChatWidget(load, list(names), "final", {"read_ahead": False} | settings, beside)


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
    upload(other, b"no")
    assert "no transcript" in other._notice.value


def test_the_meter_says_what_goes_next_and_what_is_gone():
    chat = widget(*["a reply of thirty characters.."] * 40, max_new_tokens=100, context_extension="none")
    seen = set()
    for turn in range(16):
        send(chat, f"message {turn} with some more text to fill the window")
        meter = chat.panels[0]._meter.value
        seen |= {word for word in ("next to go", "no longer read") if word in meter}
    assert seen == {"next to go", "no longer read"}
    assert "sc-faded" in shown(chat)


def test_sampling_settings_reach_the_session():
    chat = widget("one")
    chat.controls._sampling["temperature"].value = 1.5
    chat.controls._sampling["greedy"].value = True
    assert chat.panels[0].session.sampling.temperature == 1.5
    assert chat.panels[0].session.sampling.greedy


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
