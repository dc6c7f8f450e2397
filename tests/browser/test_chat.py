"""The chat widget in a real JupyterLab, as a person meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from playwright.sync_api import expect

from tests.browser.contrast import too_pale
from tests.chat.test_markup import ALLOWED_TAGS, HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

REPLIES = [
    "Hello! I am a **small** model.\n\n- I learnt to take turns\n- not facts",
    "Je suis là 🌙, and I like `code`:\n\n```\nfor i in range(3): print(i)\n```",
    "Goodbye, see you soon!",
    "And another thing.",
]
CELLS = [
    "from tests.browser.rooms import room",
    f"chat = room({REPLIES!r}, seconds=0.02)",
    "chat = room(['word ' * 190, 'short', 'third'], seconds=0.02)",
    f"chat = room({REPLIES!r}, others=('base',))",
    "chat = room(['a reply of some words'] * 30, context=512, max_new_tokens=100, context_extension='none')",
    f"chat = room({HOSTILE[:-1]!r}, seconds=0)",
    f"chat = room([])\nhostile = {HOSTILE!r}\nturns = [[('user', t), ('assistant', t)] for t in hostile]\n"
    "chat.restore({'messages': [{'role': r, 'content': t} for turn in turns for r, t in turn]})",
    f"chat = room({REPLIES!r}, reading=2)",
    "chat = room([f'number {i}' for i in range(20)], seconds=0)",
    f"chat = room({REPLIES!r})",
    f"deaf = room({REPLIES!r})",
    "import os; print(os.getpid())",
]


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("chat.ipynb", CELLS)


def say(chat, text: str) -> None:
    expect(chat.locator(".sc-send")).to_be_enabled(timeout=20_000)  # Enter does nothing while a model is being loaded
    box = chat.get_by_label("Message")
    box.fill(text)
    box.press("Enter")


def bubbles(chat, role: str = "assistant"):
    return chat.locator(f".sc-{role}")


def done(chat, replies: int, last: str = "") -> None:
    expect(bubbles(chat)).to_have_count(replies, timeout=20_000)
    expect(bubbles(chat).last).to_contain_text(last, timeout=20_000)
    expect(chat.locator(".sc-cursor")).to_have_count(0, timeout=20_000)
    expect(chat.get_by_role("button", name="Stop")).to_be_disabled(timeout=20_000)


def test_three_turns_stream(notebook):
    chat = notebook.chat(1)
    say(chat, "Hi! <b>Who</b> are you?")
    lengths = set()
    deadline = time.monotonic() + 20
    while chat.locator(".sc-foot").count() == 0 and time.monotonic() < deadline:
        if bubbles(chat).count():
            lengths.add(len(bubbles(chat).last.inner_text()))
    assert len(lengths) >= 3, "the reply came piece by piece"
    done(chat, 1)
    assert "<b>Who</b>" in bubbles(chat, "user").inner_text()
    expect(bubbles(chat).locator("strong")).to_have_text("small")
    expect(bubbles(chat).locator("li")).to_have_count(2)
    expect(chat.get_by_label("Message")).to_have_value("")
    area = chat.get_by_label("Message")
    area.fill("two")
    area.press("Shift+Enter")
    area.type("lines")
    expect(area).to_have_value("two\nlines")
    # Enter that takes a candidate of an input method: Safari has ended the composition by then, and says 229.
    area.evaluate("e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))")
    expect(area).to_have_value("two\nlines")
    area.press("Enter")
    done(chat, 2)
    assert "là 🌙" in bubbles(chat).last.inner_text()
    area.fill("bye")
    chat.get_by_role("button", name="Send").click()
    done(chat, 3)
    expect(bubbles(chat).last.locator(".sc-foot")).to_contain_text(re.compile(r"tokens/s · first after \d"))
    expect(chat.locator(".sc-meter")).to_contain_text("of 4,096 tokens")
    assert chat.locator(".sc-announce .widget-html-content").get_attribute("aria-live") == "polite"
    notebook.screenshot("conversation", chat)


def test_stop_ends_a_long_reply_within_a_second_then_regenerate_edit_clear(notebook):
    chat = notebook.chat(2)
    say(chat, "talk")
    expect(bubbles(chat).last).to_contain_text("word word", timeout=20_000)
    pressed = time.monotonic()
    chat.get_by_role("button", name="Stop").click()
    expect(bubbles(chat).last.locator(".sc-foot")).to_contain_text("stopped", timeout=5000)
    assert time.monotonic() - pressed < 1
    done(chat, 1)
    chat.get_by_role("button", name="Regenerate").click()
    expect(bubbles(chat).last).to_contain_text("short", timeout=10_000)
    done(chat, 1)
    chat.get_by_role("button", name="Edit").click()
    expect(chat.get_by_label("Message")).to_have_value("talk")
    say(chat, "talk differently")
    expect(bubbles(chat, "user")).to_contain_text("talk differently")
    expect(bubbles(chat).last).to_contain_text("third", timeout=10_000)
    done(chat, 1)
    chat.get_by_role("button", name="Clear").click()
    expect(chat.locator(".sc-bubble")).to_have_count(0)
    expect(chat).to_contain_text("Say something")


def test_side_by_side(notebook):
    chat = notebook.chat(3)
    chat.get_by_label("Beside").select_option("base")
    expect(chat.locator(".sc-panel")).to_have_count(2, timeout=10_000)
    say(chat, "Hi both")
    done(chat, 2)
    columns = chat.locator(".sc-panel")
    expect(columns.nth(0).locator(".sc-assistant")).to_contain_text("I am a small model")
    expect(columns.nth(1).locator(".sc-assistant")).to_contain_text("base: Hello!")
    left, right = columns.nth(0).bounding_box(), columns.nth(1).bounding_box()
    assert right["x"] > left["x"] + left["width"] - 5 and abs(right["y"] - left["y"]) < 5
    notebook.screenshot("side-by-side", chat)
    chat.get_by_role("combobox", name="Model").select_option("base")  # now the two change places
    expect(columns.nth(0).locator(".sc-assistant")).to_contain_text("base: Hello!")
    expect(columns.nth(1).locator(".sc-assistant")).to_contain_text("I am a small model")
    expect(columns.nth(0)).to_contain_text("base: replies written by a test")
    expect(chat.get_by_label("Beside")).to_have_value("final")
    notebook.screenshot("swapped", chat)


def test_the_window_rolls_and_the_meter_shows_it(notebook):
    chat = notebook.chat(4)
    for turn in range(6):
        say(chat, f"message {turn}, with some words to fill the window")
        done(chat, turn + 1)
        if "no longer read" in chat.locator(".sc-meter").inner_text():
            break
    expect(chat.locator(".sc-meter")).to_contain_text("no longer read")
    assert chat.locator(".sc-faded").count() > 0
    assert too_pale(chat) == {}
    notebook.screenshot("window", chat)


def harmless(notebook, chat) -> None:
    """No script has run, and nothing but allowed elements stands in the bubbles."""
    assert notebook.page.evaluate("window.hacked") is None
    found = chat.locator(".sc-text *").evaluate_all("nodes => [...new Set(nodes.map(n => n.tagName.toLowerCase()))]")
    assert set(found) <= ALLOWED_TAGS | {"span"}
    assert not chat.locator(".sc-text a[href^='javascript' i], .sc-text a[href^='data' i]").count()
    handlers = "nodes => nodes.flatMap(n => n.getAttributeNames()).filter(a => a.startsWith('on'))"
    assert chat.locator(".sc-text *").evaluate_all(handlers) == []
    overflow = "node => node.scrollWidth - node.clientWidth"
    assert chat.evaluate(overflow) <= 1 and chat.locator(".sc-log").evaluate(overflow) <= 1


def test_hostile_replies_and_inputs_run_no_script(notebook):
    chat = notebook.chat(5)
    for turn, text in enumerate(HOSTILE[:-1]):
        say(chat, text)
        done(chat, turn + 1)
    harmless(notebook, chat)
    say(chat, HOSTILE[-1])
    expect(chat.locator(".sc-notice")).to_contain_text(re.compile(r"100,0\d\d tokens long and there is room for"))


def test_what_was_sent_is_shown_before_the_first_token(notebook):
    chat = notebook.chat(7)
    say(chat, "Are you *there*?")
    expect(bubbles(chat, "user")).to_contain_text("Are you *there*?", timeout=3_500)
    expect(bubbles(chat).locator(".sc-cursor")).to_have_count(1)
    assert not bubbles(chat).last.locator(".sc-foot").count(), "the reply has not begun"
    done(chat, 1)
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.get_by_role("button", name="Stop")).to_be_enabled()
    expect(bubbles(chat)).to_contain_text("I am a small model")  # the old reply stands meanwhile
    expect(bubbles(chat)).to_contain_text("Je suis", timeout=10_000)


def test_no_enter_is_lost_however_fast(notebook):
    chat = notebook.chat(8)
    for turn in range(20):
        say(chat, "again")  # the same text, as soon as the reply before is there
        done(chat, turn + 1, f"number {turn}")  # while a message is drawn, the last reply is there twice for a moment
    assert [bubble.inner_text() for bubble in chat.locator(".sc-user .sc-text").all()] == ["again"] * 20


def test_copy_and_download_give_what_was_written(notebook):
    notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat = notebook.chat(9)
    say(chat, "Hi!")
    done(chat, 1)
    bubbles(chat).first.get_by_role("button", name="Copy").click()
    expect(bubbles(chat).first.get_by_text("Copied")).to_be_visible()
    assert notebook.page.evaluate("navigator.clipboard.readText()") == REPLIES[0]
    with notebook.page.expect_download() as saved:
        chat.get_by_role("link", name="Download").click()
    transcript = json.loads(saved.value.path().read_text(encoding="utf-8"))
    assert saved.value.suggested_filename == "transcript.json"
    assert [m["content"] for m in transcript["messages"]] == ["Hi!", REPLIES[0]]


def test_send_alone_works_where_the_page_runs_no_script_of_ours(notebook):
    chat = notebook.chat(4)
    before = bubbles(chat).count()
    chat.evaluate("n => n.querySelector('.sc-send').classList.remove('sc-send')")  # our script does not know it now
    chat.get_by_label("Message").fill("by hand")
    chat.get_by_role("button", name="Send").click()
    expect(bubbles(chat)).to_have_count(before + 1, timeout=10_000)
    expect(bubbles(chat, "user").last).to_contain_text("by hand")
    expect(chat.get_by_label("Message")).to_have_value("")


def test_hostile_transcripts_run_no_script(notebook):
    chat = notebook.chat(6)
    expect(bubbles(chat)).to_have_count(len(HOSTILE), timeout=20_000)
    harmless(notebook, chat)


def test_what_a_busy_or_restarted_kernel_does_not_hear_stays_in_the_input(notebook):
    notebook.run(11)
    chat = notebook.chat(10)
    unheard, area = chat.locator(".sc-unheard[role=alert]"), chat.get_by_label("Message")
    kernel = int(notebook.output(11).inner_text())

    def say_to_nobody(text: str) -> None:
        say(chat, text)
        time.sleep(0.5)
        expect(unheard).to_have_count(0)  # it has some patience
        notebook.page.evaluate("window.now = Date.now; Date.now = () => window.now() + 5000")
        expect(unheard).to_contain_text("The kernel has not heard this message yet", timeout=10_000)
        notebook.page.evaluate("Date.now = window.now")
        expect(area).to_have_value(text)

    def say_to_a_busy_kernel(text: str) -> None:
        os.kill(kernel, signal.SIGSTOP)  # as busy as can be, whatever subshells it has
        try:
            say_to_nobody(text)
        finally:
            os.kill(kernel, signal.SIGCONT)

    say_to_a_busy_kernel("Are you there?")
    done(chat, 1)
    expect(unheard).to_have_count(0)
    expect(area).to_have_value("")
    expect(bubbles(chat, "user")).to_have_count(1)
    say_to_a_busy_kernel(long := "word " * 3000)
    refused = chat.locator(".sc-notice:not(.sc-unheard)")
    expect(refused).to_contain_text("tokens long and there is room for", timeout=10_000)
    time.sleep(0.8)  # what was heard leaves the input after half a second
    expect(area).to_have_value(long)
    notebook.restart()
    say_to_nobody("And now?")
    notebook.run(0)
    chat = notebook.chat(10)
    say(chat, "And now?")
    done(chat, 1)
