"""The chat widget in a real JupyterLab, as a person meets it."""

import os
import re
import signal
import time

import pytest
from playwright.sync_api import expect

from nbutils.core.files import read_json
from tests.browser.contrast import too_pale
from tests.chat.models import contents
from tests.chat.test_markup import ALLOWED_TAGS, HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

REPLIES = [
    'Hello! I am a **small** model.\n\n- I learnt to take turns\n- not "facts" <i>',
    "Je suis là 🌙, and I like `code`:\n\n```\nfor i in range(3): print(i)\n```",
    "Goodbye, see you soon!",
    "And another thing.",
]
CELLS = [
    "from tests.chat.widgets import room",
    f"chat = room(*{REPLIES!r}, seconds=0.02)",
    "chat = room('word ' * 190, 'short', seconds=0.02)",
    f"chat = room(*{REPLIES!r}, others=('base',))",
    "chat = room(*['a reply of some words'] * 30, context=512, max_new_tokens=100, context_extension='none')",
    f"chat = room(*{HOSTILE[:-1]!r}, seconds=0)",
    f"chat = room()\nhostile = {HOSTILE!r}\nturns = [[('user', t), ('assistant', t)] for t in hostile]\n"
    "chat.restore({'messages': [{'role': r, 'content': t} for turn in turns for r, t in turn]})",
    f"chat = room(*{REPLIES!r}, reading=2)",
    "chat = room(*[f'number {i}' for i in range(20)], seconds=0)",
    f"chat = room(*{REPLIES!r})",
    f"deaf = room(*{REPLIES!r})",
    "import os; print(os.getpid())",
    "from tests.chat.test_origin import planted_chat\nfrom tempfile import mkdtemp\n"
    "chat = planted_chat(mkdtemp(), context=4096, others=(), max_new_tokens=1000)",
]


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("chat.ipynb", CELLS)


def area(chat):
    """Where a person types."""
    return chat.get_by_label("Message")


def say(chat, text):
    expect(chat.locator(".sc-send")).to_be_enabled()  # Enter does nothing while a model is being loaded
    area(chat).fill(text)
    area(chat).press("Enter")


def press(chat, button):
    chat.get_by_role("button", name=button).click()


def bubbles(chat, role="assistant"):
    return chat.locator(f".sc-{role}")


def shows(chat, text):
    """The newest reply has that text, soon."""
    expect(bubbles(chat).last).to_contain_text(text)


def done(chat, replies, last=""):
    expect(bubbles(chat)).to_have_count(replies)
    shows(chat, last)
    expect(chat.locator(".sc-cursor")).to_have_count(0)
    expect(chat.get_by_role("button", name="Stop")).to_be_disabled()


def test_three_turns_stream(notebook):
    chat = notebook.chat(1)
    say(chat, "Hi! <b>Who</b> are you?")
    lengths = set()
    while not chat.locator(".sc-foot").count():
        lengths |= {len(text) for text in bubbles(chat).all_inner_texts()}
    assert len(lengths) >= 3, "the reply came piece by piece"
    done(chat, 1)
    expect(bubbles(chat, "user")).to_contain_text("<b>Who</b>")
    expect(bubbles(chat).locator("strong")).to_have_text("small")
    area(chat).fill("two")
    area(chat).press("Shift+Enter")
    area(chat).type("lines")
    # Enter that takes a candidate of an input method: Safari has ended the composition by then, and says 229.
    area(chat).evaluate(
        "e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))"
    )
    expect(area(chat)).to_have_value("two\nlines")
    area(chat).press("Enter")
    done(chat, 2, "là 🌙")
    area(chat).fill("bye")
    press(chat, "Send")
    done(chat, 3)
    expect(bubbles(chat).last.locator(".sc-foot")).to_contain_text(re.compile(r"tokens/s · first after \d"))
    expect(chat.locator(".sc-meter")).to_contain_text("of 4,096 tokens")
    expect(chat.locator(".sc-announce .widget-html-content")).to_have_attribute("aria-live", "polite")
    notebook.screenshot("conversation", chat)


def test_stop_ends_a_long_reply_within_a_second_then_edit_and_clear(notebook):
    chat = notebook.chat(2)
    say(chat, "talk")
    shows(chat, "word word")
    pressed = time.monotonic()
    press(chat, "Stop")
    expect(bubbles(chat).last.locator(".sc-foot")).to_contain_text("stopped")
    assert time.monotonic() - pressed < 1
    done(chat, 1)
    press(chat, "Edit")
    expect(area(chat)).to_have_value("talk")
    say(chat, "talk differently")
    expect(bubbles(chat, "user")).to_contain_text("talk differently")
    shows(chat, "short")
    done(chat, 1)
    press(chat, "Clear")
    expect(chat.locator(".sc-bubble")).to_have_count(0)
    expect(chat).to_contain_text("Say something")


def test_side_by_side(notebook):
    chat = notebook.chat(3)
    left, right = chat.locator(".sc-panel").nth(0), chat.locator(".sc-panel").nth(1)
    chat.get_by_label("Beside").select_option("base")
    expect(right).to_contain_text("base on the CPU")
    say(chat, "Hi both")
    done(chat, 2)
    shows(left, "I am a small model")
    shows(right, "base Hello!")
    there, here = right.bounding_box(), left.bounding_box()
    assert there["x"] > here["x"] + here["width"] - 5 and abs(there["y"] - here["y"]) < 5
    notebook.screenshot("side-by-side", chat)
    chat.get_by_role("combobox", name="Model").select_option("base")  # now the two change places
    expect(left).to_contain_text("base on the CPU")
    shows(left, "base Hello!")
    shows(right, "I am a small model")
    notebook.screenshot("swapped", chat)


def test_the_window_rolls_and_the_meter_shows_it(notebook):
    chat = notebook.chat(4)
    for turn in range(6):
        say(chat, f"message {turn}, with some words to fill the window")
        done(chat, turn + 1)
    expect(chat.locator(".sc-meter")).to_contain_text("no longer read")
    assert chat.locator(".sc-faded").count() > 0
    assert too_pale(chat) == {}
    notebook.screenshot("window", chat)


def harmless(notebook, chat):
    """No script has run, and nothing but allowed elements stands in the bubbles."""
    assert notebook.page.evaluate("window.hacked") is None
    found = chat.locator(".sc-text *").evaluate_all("nodes => nodes.map(n => n.tagName.toLowerCase())")
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


def test_hostile_transcripts_run_no_script(notebook):
    chat = notebook.chat(6)
    expect(bubbles(chat)).to_have_count(len(HOSTILE))
    harmless(notebook, chat)


def test_what_was_sent_is_shown_before_the_first_token(notebook):
    chat = notebook.chat(7)
    say(chat, "Are you *there*?")
    expect(bubbles(chat, "user")).to_contain_text("Are you *there*?")
    expect(bubbles(chat).locator(".sc-cursor")).to_have_count(1)
    assert bubbles(chat).locator(".sc-text").inner_text() == "", "the reply has not begun"
    done(chat, 1)
    press(chat, "Regenerate")
    expect(chat.get_by_role("button", name="Stop")).to_be_enabled()
    shows(chat, "I am a small model")  # the old reply stands meanwhile
    shows(chat, "Je suis")


def test_no_enter_is_lost_however_fast(notebook):
    chat = notebook.chat(8)
    for turn in range(20):
        say(chat, "again")  # the same text, as soon as the reply before is there
        done(chat, turn + 1, f"number {turn}")  # while a message is drawn, the last reply is there twice for a moment
    in_order = [text for turn in range(20) for text in ("again", f"number {turn}")]
    assert chat.locator(".sc-text").all_inner_texts() == in_order


def test_copy_and_download_give_what_was_written_and_it_is_loaded_again(notebook):
    notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat = notebook.chat(9)
    say(chat, "Hi!")
    done(chat, 1)
    press(chat, "Copy")
    expect(bubbles(chat).get_by_text("Copied")).to_be_visible()
    assert notebook.page.evaluate("navigator.clipboard.readText()") == REPLIES[0]
    with notebook.page.expect_download() as saved:
        chat.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == "transcript.json"
    transcript = read_json(saved.value.path())
    assert contents(transcript["messages"]) == ["Hi!", REPLIES[0]]
    press(chat, "Clear")
    press(chat, "Settings")
    with notebook.page.expect_file_chooser() as asked:
        press(chat, "Load transcript")
    asked.value.set_files(saved.value.path())
    shows(chat, "I am a small model")


def test_a_click_on_what_the_training_data_holds_shows_where_and_nothing_there_runs(notebook):
    chat = notebook.chat(12)
    say(chat, "Sing!")
    done(chat, 1)
    place = chat.get_by_text("talk row 10, message 2 (assistant)")
    expect(chat.locator(".sc-origin")).to_have_count(3)  # in bold, and a word of it in italics
    expect(place).to_be_hidden()
    chat.locator(".sc-origin").first.click()
    expect(place).to_be_visible()
    expect(chat.locator(".sc-origins mark").first).to_have_text("the zebra of my *aunt* sings in tune")
    harmless(notebook, chat)
    assert not chat.locator(".sc-origins :is(img, script)").count()
    assert too_pale(chat) == {}
    notebook.screenshot("origins", chat)
    say(chat, "And?")
    expect(chat.get_by_text("no 6 words in a row stand in the training data")).to_be_visible()


def test_send_alone_works_where_the_page_runs_no_script_of_ours(notebook):
    chat = notebook.chat(4)
    before = bubbles(chat).count()
    chat.locator(".sc-send").evaluate("button => button.classList.remove('sc-send')")  # our script does not know it now
    area(chat).fill("by hand")
    press(chat, "Send")
    expect(bubbles(chat)).to_have_count(before + 1)
    expect(bubbles(chat, "user").last).to_contain_text("by hand")
    expect(area(chat)).to_have_value("")


def test_what_a_busy_or_restarted_kernel_does_not_hear_stays_in_the_input(notebook):
    notebook.run(11)
    chat = notebook.chat(10)
    unheard = chat.locator(".sc-unheard[role=alert]")
    kernel = int(notebook.cell(11).locator(".jp-OutputArea-output").inner_text())

    def say_to_nobody(text):
        say(chat, text)
        time.sleep(0.5)
        expect(unheard).to_have_count(0)  # it has some patience
        notebook.page.evaluate("window.now = Date.now; Date.now = () => window.now() + 5000")
        expect(unheard).to_contain_text("The kernel has not heard this message yet")
        notebook.page.evaluate("Date.now = window.now")
        expect(area(chat)).to_have_value(text)

    def say_to_a_busy_kernel(text):
        os.kill(kernel, signal.SIGSTOP)  # as busy as can be, whatever subshells it has
        try:
            say_to_nobody(text)
        finally:
            os.kill(kernel, signal.SIGCONT)

    say_to_a_busy_kernel("Are you there?")
    done(chat, 1)
    expect(unheard).to_have_count(0)
    expect(area(chat)).to_have_value("")
    expect(bubbles(chat, "user")).to_have_count(1)
    say_to_a_busy_kernel(long := "word " * 3000)
    expect(chat.locator(".sc-notice:not(.sc-unheard)")).to_contain_text("tokens long and there is room for")
    time.sleep(0.8)  # what was heard leaves the input after half a second
    expect(area(chat)).to_have_value(long)
    notebook.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    say_to_nobody("And now?")
