"""What the chat widget must survive, how it looks, and notebook 05 itself, in a real JupyterLab."""

import time

import pytest
from playwright.sync_api import expect

from nbutils.core.files import read_json
from tests.browser.contrast import too_pale
from tests.browser.test_chat import REPLIES, area, bubbles, done, press, say, shows
from tests.conftest import ROOT
from tests.evaluate.runs import made_up_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

ROOM = f"chat = room(*{REPLIES!r}, others=('base',))"
CELLS = [
    "from tests.chat.widgets import room",
    ROOM,
    "one = room('word ' * 150, 'again', seconds=0.01)",
    "two = room('term ' * 150, 'again', seconds=0.01)",
    ROOM,
    ROOM,
    "slow = room('word ' * 199, seconds=0.01)",
    "slow.wait(); print(slow.panels[0].session.messages[-1]['content'].count('word'), slow.busy)",
]


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("endures.ipynb", CELLS)


@pytest.mark.soak
def test_a_cell_that_runs_again_and_two_widgets_at_once(notebook):
    chat = notebook.chat(1)
    say(chat, "hi")
    done(chat, 1)
    chat = notebook.chat(1)
    expect(bubbles(chat)).to_have_count(1)  # the conversation is still there
    say(chat, "and now?")
    done(chat, 2)
    one, two = notebook.chat(2), notebook.chat(3)
    for chat in (one, two):
        say(chat, "go")
    shows(one, "word word")
    shows(two, "term term")
    press(one, "Stop")
    done(one, 1, "stopped")
    done(two, 1)
    expect(bubbles(two)).not_to_contain_text("stopped")
    chat = notebook.chat(2)  # in the midst of nothing, and then in mid-reply
    expect(bubbles(chat)).to_have_count(1)
    say(chat, "go on")
    expect(notebook.chat(2).get_by_role("button", name="Send")).to_be_enabled()


@pytest.mark.soak
def test_keyboard_alone(notebook):
    chat, keyboard = notebook.chat(4), notebook.page.keyboard
    area(chat).focus()
    keyboard.type("hello")
    keyboard.press("Enter")
    done(chat, 1)
    expect(area(chat)).to_be_focused()
    reached = set()
    for _ in range(7):
        keyboard.press("Tab")
        reached.add(notebook.page.evaluate("(document.activeElement.innerText || '').trim()"))
    assert {"Send", "Regenerate", "Edit", "Clear"} <= reached
    nameless = chat.locator("button, textarea, select").evaluate_all(
        "nodes => nodes.filter(n => !(n.innerText || n.ariaLabel || n.labels?.[0]?.innerText || n.title)).length"
    )
    assert nameless == 0, "every control has a name for a screen reader"


@pytest.mark.soak
def test_light_and_dark_wide_and_narrow(notebook):
    page, chat = notebook.page, notebook.chat(5)
    for turn, text in enumerate(("Hi! Who are you?", "Show me some code, s'il te plaît", "Thank you, bye")):
        say(chat, text)
        done(chat, turn + 1)
    press(chat, "Settings")
    for theme in ("Dark", "Light"):
        page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
        page.evaluate("jupyterapp.shell.collapseLeft(), jupyterapp.shell.collapseRight()")
        for width, name in ((1200, "wide"), (540, "narrow"), (400, "phone")):  # the chat gets 400 pixels out of 540
            page.set_viewport_size({"width": width, "height": 1100})
            time.sleep(0.7)
            chat.scroll_into_view_if_needed()
            notebook.screenshot(f"chat-{theme.lower()}-{name}", chat)
            assert chat.evaluate("n => n.scrollWidth - n.clientWidth") <= 1
            frame = chat.bounding_box()
            for part in chat.locator("button:visible, textarea:visible, select:visible, .sc-bubble").all():
                box = part.bounding_box()
                inside = box["x"] >= frame["x"] - 1 and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
                assert inside, part.inner_text()
            for slider in chat.locator(".sc-fold .slider-container, .sc-fold .slider").all():
                assert slider.bounding_box()["width"] >= 80, "wide enough to be set"
            assert too_pale(chat) == {}


@pytest.mark.soak
def test_the_browser_is_closed_in_mid_reply(notebook, open_notebook):
    chat = notebook.chat(6)
    say(chat, "go")
    shows(chat, "word word")
    notebook.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    time.sleep(0.5)
    notebook.page.close()
    time.sleep(1)
    again = open_notebook("endures.ipynb")
    again.run(7)
    expect(again.cell(7)).to_contain_text("199 False")
    chat = again.cell(6).locator(".smallchat").last
    shows(chat, "word word")
    expect(chat.get_by_role("button", name="Send")).to_be_enabled()


def test_notebook_05_runs_and_its_chat_is_live(lab, open_notebook):
    run, record = made_up_run(lab.folder / "run"), lab.folder / "run" / "chat" / "stage.json"
    source = (ROOT / "notebooks" / "05_chat.ipynb").read_text()
    source = source.replace("runs/demo", str(run)).replace("int = 250", "int = 20")
    (lab.folder / "05_chat.ipynb").write_text(source)
    notebook = open_notebook("05_chat.ipynb")
    notebook.page.evaluate(
        "jupyterapp.shell.currentWidget.sessionContext.ready.then("
        "() => jupyterapp.commands.execute('notebook:run-all-cells'))"
    )
    while not record.is_file() or '"done"' not in record.read_text():
        time.sleep(0.3)
    assert len(read_json(run / "chat" / "transcript.json")["messages"]) == 8
    chat = notebook.page.locator(".smallchat")
    chat.scroll_into_view_if_needed()
    say(chat, "Hi, are you there?")
    done(chat, 1)
    notebook.screenshot("notebook-05")
