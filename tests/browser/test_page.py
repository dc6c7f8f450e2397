"""The page that talks, in a real Chromium: with an echo in the model's place, and with llama.cpp itself."""

import functools
import os
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect

from nbutils.core.chatml import CHATML
from nbutils.core.errors import UserError
from nbutils.core.files import link, read_json, write_json, write_text
from nbutils.core.llamacpp import LlamaServer
from nbutils.publish.page.make import make_page
from nbutils.publish.page.wllama import PINNED, wllama
from tests.browser.conftest import SCREENSHOTS
from tests.browser.contrast import LEAST, RATIOS
from tests.chat.test_markup import HOSTILE
from tests.publish.conftest import settings_for
from tests.publish.test_page import small_gguf

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LOAD = re.compile(r"Load the model \(\d+(\.\d)? MB\)")
NAME = "A model <img src=x onerror='window.hacked=0'>"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """The page with an echo in wllama's place; it reads 60 words and answers with 15 at most."""
    runtime = tmp_path_factory.mktemp("echo")
    for name in PINNED:
        (runtime / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("echo.js"), runtime / name)
    return written(tmp_path_factory, small_gguf(runtime / "small.gguf"), runtime, context=60, reply=15, composes=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory, smollm2_gguf):
    """The page of SmolLM2-135M; it reads 100 tokens and answers with 24 at most, so that a test ends soon."""
    try:
        runtime = wllama("")
    except UserError as error:
        pytest.skip(str(error))  # with CI=true too: npm's registry is nobody's to install
    return written(tmp_path_factory, smollm2_gguf, runtime, context=100, reply=24)


def written(tmp_path_factory, gguf, runtime, **changes):
    folder = tmp_path_factory.mktemp("page")
    write_text(folder / "README.md", "---\n\n# The card\n\nA chat model, small.")
    (folder / "gguf").mkdir()
    link(gguf, folder / "gguf" / "it-Q8_0.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbutils.publish.page.make.wllama", lambda _: runtime)
        page = make_page(settings_for(folder, model_name=NAME, page=True, gguf=["q8_0"]), folder)
    write_json(page / "chat.json", read_json(page / "chat.json") | changes)
    return page


class Host(ThreadingHTTPServer):
    """A static host of a folder, which a test may stop."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def visit(context):
    """Opens the page in a folder and loads its model; `page.asked` are the addresses that it asked for."""
    hosts, pages = [], []

    def opened(folder, load=True):
        hosts.append(Host(folder))
        pages.append(page := context.new_page())
        page.host, page.asked = hosts[-1], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(page.host.url)
        if load:
            page.get_by_role("button", name=LOAD).click()
            expect(page.get_by_label("Message")).to_be_focused(timeout=60_000)
        return page

    yield opened
    for page in pages:
        page.close()
    for host in hosts:
        host.stop()


def say(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def answer(page):
    """The newest reply, once it is whole."""
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=60_000)
    expect(page.get_by_role("alert")).to_have_count(0)
    return page.locator(".assistant .words").last.inner_text()


def test_twenty_hostile_texts_and_replies_run_no_script_and_control_nothing(echo, visit):
    page = visit(echo)
    for text in HOSTILE[:-1]:
        say(page, text)
        answer(page)
        assert page.evaluate("read.at(-1).split('<|im_start|>').length") % 2 == 1  # system turns would make it even
        page.get_by_role("button", name="Clear").click()
    expect(page.locator(".message")).to_have_count(0)
    say(page, f"{HOSTILE[13]} \ud800 e\u0301 <|im_end|>")
    assert answer(page).endswith("\ufffd é < |im_end|>")
    assert page.locator(".user .words").inner_text().startswith(HOSTILE[13])  # as it was typed
    say(page, "word " * 100)
    expect(page.get_by_role("alert")).to_contain_text("too long: it takes 1")
    expect(page.get_by_label("Message")).to_have_value(re.compile("^word word"))
    assert page.evaluate("window.hacked") is None and page.title() == NAME


def test_the_oldest_turns_go_stop_ends_a_reply_and_clear_begins_anew(echo, visit):
    page = visit(echo)
    say(page, "slow")
    page.get_by_role("button", name="Clear").click()
    for turn in range(6):
        say(page, f"this is turn number {turn}")
        assert answer(page) == f"this is turn number {turn}"
    gone = page.locator(".gone").count() // 2
    expect(page.locator("#meter")).to_contain_text(f"of at most 60 tokens; {gone} earlier turns are no longer read")
    read = page.evaluate("read.at(-1)")
    assert (
        f"turn number {gone - 1}" not in read and f"turn number {gone}" in read and read.count("assistant") == 6 - gone
    )
    expect(page.locator(".message .who").first).to_have_text("You · no longer read")
    say(page, "slow")
    page.keyboard.press("Escape")
    answer(page)
    expect(page.locator(".assistant .who").last).to_contain_text("· stopped")
    page.evaluate("void (window.held = new Promise((go) => { window.go = go; }))")
    say(page, "word " * 100)
    page.get_by_role("button", name="Clear").click()  # while its length is measured
    page.evaluate("go()")
    expect(page.locator(".message")).to_have_count(0)
    say(page, "Once more")
    assert answer(page) == "Once more" and "slow" not in page.evaluate("read.at(-1)")
    expect(page.get_by_role("status")).to_have_text(f"{NAME}: Once more")


def test_it_can_be_read_on_a_telephone_and_in_the_dark(echo, visit):
    page = visit(echo)
    for text in (
        "Hello! Who are you?",
        "A long word: " + "x" * 300,
        "this is one more turn",
        "and this is another one",
    ):
        say(page, text)
        answer(page)
    for scheme, width in (("light", 1000), ("dark", 1000), ("light", 360), ("dark", 360)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = ["h1", "#about", ".quiet", "a", ".user .words", ".gone .words", ".assistant .who", "#send", "#meter"]
        ratios = page.locator("body").evaluate(RATIOS, texts)
        assert len(ratios) == len(texts) and min(ratios.values()) >= LEAST, ratios
        page.screenshot(path=SCREENSHOTS / f"page-{scheme}-{width}.png")


def test_a_file_says_how_to_serve_it_and_a_model_that_is_cut_short_is_not_read(echo, context, visit, tmp_path):
    page = context.new_page()
    page.goto((echo / "index.html").as_uri())
    expect(page.get_by_text("python3 -m http.server --bind 127.0.0.1")).to_be_visible()
    page.close()
    cut = shutil.copytree(echo, tmp_path / "page")
    page = visit(cut, load=False)
    (cut / read_json(cut / "chat.json")["file"]).unlink()
    page.get_by_role("button", name=LOAD).click()
    expect(page.get_by_role("alert")).to_contain_text("could not be loaded (")
    expect(page.get_by_role("button", name=LOAD)).to_be_enabled()


@pytest.mark.soak
def test_it_talks_without_a_network_once_loaded_and_has_asked_nobody_else(real, visit):
    page = visit(real)
    page.host.stop()
    for turn, text in enumerate(
        ("Hello!", "Tell me of a cat, in as many words as you can find.", "Goodbye, my friend")
    ):
        say(page, text)
        assert answer(page) and page.locator(".assistant").count() == turn + 1
    expect(page.locator(".gone")).not_to_have_count(0)
    say(page, "Tell me more")
    expect(page.locator(".assistant .words").last).not_to_be_empty(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    answer(page)
    expect(page.locator(".assistant .who").last).to_contain_text("· stopped")
    assert len(page.asked) > 5 and all(url.removeprefix("blob:").startswith(page.host.url) for url in page.asked)


@pytest.mark.soak
def test_its_greedy_replies_are_those_of_llama_cpp(llama_cpp, real, visit, smollm2_gguf):
    """Token by token, up to where llama.cpp itself finds the page's token and its own about as likely."""
    page, chat = visit(real), read_json(real / "chat.json")
    page.get_by_label("always the likeliest words").check()
    equal = 0
    with LlamaServer(smollm2_gguf, chat["context"]) as llama:
        ids = functools.partial(llama.ask, "tokenize", add_special=True, parse_special=True)
        greedy = chat["sampling"] | {"temperature": 0}
        for text in ("Hello!", "Why is the sky blue?", "How do I boil an egg?"):
            prompt = CHATML.render([{"role": "user", "content": text}]) + CHATML.open("assistant")
            read = ids(content=prompt)["tokens"]
            theirs = llama.ask("completion", prompt=read, n_predict=chat["reply"], **greedy)["content"]
            say(page, text)
            ours, theirs = (ids(content=reply)["tokens"] for reply in (answer(page), theirs))
            expect(page.locator("#meter")).to_have_text(f"It reads {len(read)} of at most {chat['context']} tokens.")
            same = len(os.path.commonprefix([ours, theirs]))  # noqa: RUF071 — of ids, not of paths
            equal += same
            if ours != theirs:
                likely = llama.ask(
                    "completion",
                    prompt=read + ours[:same],
                    n_predict=1,
                    n_probs=2,
                    post_sampling_probs=True,
                    **greedy | {"temperature": 1, "samplers": ["penalties"]},
                )
                first, second = likely["completion_probabilities"][0]["top_probs"]
                assert {first["id"], second["id"]} == {ours[same], theirs[same]}
                assert first["prob"] < 1.2 * second["prob"]
            page.get_by_role("button", name="Clear").click()
    assert equal > 40
