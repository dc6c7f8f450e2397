"""What the chat widget must survive, how it looks, and notebook 05 itself, in a real JupyterLab."""

from __future__ import annotations

import json
import time

import nbformat
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Notebook
from tests.browser.contrast import too_pale
from tests.browser.test_chat import REPLIES, bubbles, done, say
from tests.chat.runs import made_up_run
from tests.conftest import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

CELLS = [
    "from tests.browser.rooms import room",
    f"chat = room({REPLIES!r}, others=('base',))",
    "one = room(['word ' * 150, 'again'], seconds=0.01)",
    "two = room(['term ' * 150, 'again'], seconds=0.01)",
    "slow = room(['word ' * 199], seconds=0.01)",
    "slow.wait(); print(slow.panels[0].session.messages[-1]['content'].count('word'), slow.busy)",
]


@pytest.fixture
def open_notebook(lab, browser):
    contexts = []

    def open_it(name: str, cells: list[str] | None = None, **options) -> Notebook:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 1000}} | options))
        contexts.append(context)
        return Notebook(context.new_page(), lab, lab.write(name, cells) if cells else name)

    yield open_it
    for context in contexts:
        context.close()


def output(notebook: Notebook, index: int):
    return notebook.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".jp-OutputArea-output")


@pytest.mark.soak
def test_a_cell_that_runs_again_and_two_widgets_at_once(open_notebook):
    notebook = open_notebook("again.ipynb", CELLS)
    notebook.run(0)
    notebook.run(1)
    chat = notebook.chat(1)
    say(chat, "hi")
    done(chat, 1)
    notebook.run(1)
    expect(bubbles(notebook.chat(1))).to_have_count(1, timeout=20_000)  # the conversation is still there
    chat = notebook.chat(1)
    say(chat, "and now?")
    done(chat, 2)
    for index in (2, 3):
        notebook.run(index)
    one, two = notebook.chat(2), notebook.chat(3)
    say(one, "go")
    say(two, "go")
    expect(bubbles(one).last).to_contain_text("word word", timeout=10_000)
    expect(bubbles(two).last).to_contain_text("term term", timeout=10_000)
    one.get_by_role("button", name="Stop").click()
    done(one, 1)
    done(two, 1)
    assert "stopped" in bubbles(one).last.inner_text() and "stopped" not in bubbles(two).last.inner_text()
    notebook.run(2)  # in the midst of nothing, and then in mid-reply
    chat = notebook.chat(2)
    expect(bubbles(chat)).to_have_count(1, timeout=20_000)
    say(chat, "go on")
    notebook.run(2)
    chat = notebook.chat(2)
    expect(chat.get_by_role("button", name="Send")).to_be_enabled(timeout=20_000)


@pytest.mark.soak
def test_the_browser_is_closed_in_mid_reply(open_notebook):
    notebook = open_notebook("closed.ipynb", CELLS)
    notebook.run(0)
    notebook.run(4)
    chat = notebook.chat(4)
    say(chat, "go")
    expect(bubbles(chat).last).to_contain_text("word word", timeout=20_000)
    notebook.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    time.sleep(0.5)
    notebook.page.close()
    time.sleep(1)
    again = open_notebook("closed.ipynb")
    again.run(5)
    expect(output(again, 5).last).to_contain_text("199", timeout=60_000)
    chat = again.chat(4)
    expect(bubbles(chat).last).to_contain_text("word word", timeout=20_000)
    expect(chat.get_by_role("button", name="Send")).to_be_enabled(timeout=20_000)


@pytest.mark.soak
def test_light_and_dark_wide_and_narrow(open_notebook):
    notebook = open_notebook("looks.ipynb", CELLS)
    page = notebook.page
    notebook.run(0)
    notebook.run(1)
    chat = notebook.chat(1)
    for turn, text in enumerate(("Hi! Who are you?", "Show me some code, s'il te plaît", "Thank you, bye")):
        say(chat, text)
        done(chat, turn + 1)
    chat.get_by_role("button", name="Settings").click()
    for theme in ("Light", "Dark"):
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
def test_keyboard_alone(open_notebook):
    notebook = open_notebook("keyboard.ipynb", CELLS)
    notebook.run(0)
    notebook.run(1)
    chat = notebook.chat(1)
    area = chat.get_by_label("Message")
    area.focus()
    notebook.page.keyboard.type("hello")
    notebook.page.keyboard.press("Enter")
    done(chat, 1)
    expect(area).to_be_focused()
    reached = []
    for _ in range(7):
        notebook.page.keyboard.press("Tab")
        reached.append(notebook.page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel"))
    assert {"Send", "Regenerate", "Edit", "Clear"} <= {text.strip() for text in reached if text}
    names = chat.locator("button, textarea, select").evaluate_all(
        "nodes => nodes.filter(n => !(n.innerText || n.ariaLabel || n.labels?.[0]?.innerText || n.title)).length"
    )
    assert names == 0, "every control has a name for a screen reader"


def test_notebook_05_runs_and_its_chat_is_live(lab, open_notebook):
    run = made_up_run(lab.folder / "run")
    source = nbformat.read(ROOT / "notebooks" / "05_chat.ipynb", as_version=4)
    cell = next(c for c in source.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = cell.source.replace('"runs/demo"', repr(str(run))).replace("int = 250", "int = 20")
    nbformat.write(source, lab.folder / "05_chat.ipynb")
    notebook = open_notebook("05_chat.ipynb")
    notebook.page.evaluate(
        "jupyterapp.shell.currentWidget.sessionContext.ready.then("
        "() => jupyterapp.commands.execute('notebook:run-all-cells'))"
    )
    deadline = time.monotonic() + 120
    while not (run / "chat" / "stage.json").is_file() or '"done"' not in (run / "chat" / "stage.json").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert len(json.loads((run / "chat" / "transcript.json").read_text())["messages"]) == 8
    chat = notebook.page.locator(".smallchat")
    chat.wait_for()
    chat.scroll_into_view_if_needed()
    say(chat, "Hi, are you there?")
    done(chat, 1)
    assert bubbles(chat).last.inner_text()
    chat.get_by_label("Beside").select_option("base")
    expect(chat.locator(".sc-panel")).to_have_count(2, timeout=20_000)
    say(chat, "And you two?")
    done(chat, 4)
    notebook.screenshot("notebook-05")
