"""Replies traced to the training data: what the chat underlines and lists, and `/origin` in the terminal."""

import re
import time
from html import unescape

import pytest
import torch
from tokenizers import normalizers
from tokenizers.normalizers import NFC, Prepend

from nbutils.chat import markup, terminal
from nbutils.chat.display import show_chat
from nbutils.chat.models import LoadedModel
from nbutils.core.chatml import encode
from nbutils.core.files import write_text
from nbutils.core.origin import index
from nbutils.core.origin.command import NOTHING
from nbutils.core.run.models import tiny_model
from tests.chat.models import GREEDY, TOKENIZER, scripted_session
from tests.chat.test_markup import ALLOWED_TAGS, HOSTILE
from tests.chat.widgets import send, shown, widget
from tests.core.test_chatml import turns
from tests.core.test_origin import _cache, run_of  # noqa: F401

SONG = "the zebra of my *aunt* sings in tune"
EVIL = 'window.hacked=1"> <script>window.hacked=2</script> </mark></li></details>'
CONVERSATIONS = [["Hi", "Hello"], ["What?", f'<img src=x onerror="{EVIL} So {SONG}!'], *[["And?", SONG]] * 4]
REPLIES = (f"I say: **{SONG}**, ok?", "Nothing of that.")


def planted_chat(folder: str, **settings):
    """A chat whose first reply repeats what stands in five training rows, and whose second does not."""
    index.CACHE = f"{folder}/cache"
    return widget(*REPLIES, run=str(run_of(folder, CONVERSATIONS).path), **settings)


def shows(chat, text: str, panel=0) -> str:
    """What a column shows, once this is part of it."""
    for _ in range(200):
        if text in shown(chat, panel):
            return shown(chat, panel)
        time.sleep(0.05)
    raise AssertionError(shown(chat, panel))


def test_a_reply_that_repeats_training_rows_is_underlined_and_names_them(tmp_path):
    chat = planted_chat(tmp_path, beside="base")
    send(chat, "hi")
    html = shows(chat, "in the training data: 1 passage<")
    underlined = re.findall(r'<span class="sc-origin sc-origin-1" data-span="0">([^<]*)</span>', html)
    assert underlined == ["the zebra of my", "aunt", "sings in tune"]
    assert f"{SONG}”: 8 words, 5 times in 5 conversations<" in html
    assert re.findall(r"<b>(.*?)</b>", html) == [f"talk row {row}, message 2 (assistant)" for row in (10, 20, 30)]
    assert "and 2 other conversations" in html and f"So <mark>{SONG}</mark>!" in html
    assert "<script" not in html and "&lt;script&gt;window.hacked=2" in html
    assert "origin" not in shown(chat, 1), "base is not the run's here"
    send(chat, "and?")
    html = shows(chat, NOTHING)
    assert html.count("sc-origins") == 2 and html.index("5 conversations") < html.index(NOTHING)
    again = widget(run=str(tmp_path))
    again.restore(chat.transcript())
    assert "5 conversations" in shows(again, NOTHING)


def test_what_a_model_learned_by_heart_from_one_row_names_that_row(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "CACHE", str(tmp_path / "cache"))
    learned = ("Who sings?", f"It is {SONG}.")
    run, model = run_of(tmp_path, [["Hi", "Hello"], learned, ["And?", "No."]]), tiny_model(TOKENIZER, 128, 0)
    ids = torch.tensor([encode(TOKENIZER, turns(*learned)).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded = LoadedModel("final", model.eval(), TOKENIZER, "learned by heart", run)
    chat = show_chat(lambda _: loaded, ["final"], "final", GREEDY | {"max_new_tokens": 60})
    send(chat, learned[0])
    html = shows(chat, "in the training data: 1 passage<")
    assert f"It is {SONG}”: 10 words, 1 time in 1 conversation<" in html
    assert re.findall(r"<b>(.*?)</b>", html) == ["talk row 10, message 2 (assistant)"]
    chat.close()


def test_longer_and_rarer_passages_are_underlined_more(tmp_path):
    long = "one two three four five six seven eight nine ten eleven twelve"
    run = run_of(tmp_path, [[long, "a b c d e f"], *[["x", "so " * 12]] * 10])
    html = [markup.with_origins(text, index.Index(run)).body for text in (long, "a b c d e f", "so " * 12)]
    assert [re.findall(r"sc-origin-(\d)", each) for each in html] == [["2"], ["1"], ["1"]]


def test_a_reply_is_underlined_as_it_was_written_where_the_tokenizer_changes_characters(tmp_path):
    run = run_of(tmp_path, [["Hi", "My caf\u00e9 au lait is nice."]], normalizers.Sequence([Prepend("▁"), NFC()]))
    html = markup.with_origins("Oh, My cafe\u0301 au lait is nice, no?", index.Index(run)).body
    assert ">My cafe\u0301 au lait is nice</span>, no?" in html


@pytest.mark.parametrize("text", [text for text in HOSTILE if len(text) < markup.LONGEST])
def test_hostile_texts_are_as_harmless_underlined_as_they_are_without(text, tmp_path):
    text = f"so it is what they said to me {text} and then they went home with me again"
    found = markup.with_origins(text, index.Index(run_of(tmp_path, [[text, "Hello"]])))
    assert unescape(re.sub(r"</?span[^>]*>", "", found.body)) == unescape(markup.markdown(text))
    assert "sc-origin" in found.body
    tags = {tag.lower() for tag in re.findall(r"<(\w+)", found.body + found.fold)}
    assert tags <= ALLOWED_TAGS | {"span", "details", "summary", "ul", "li", "b", "mark"}
    assert set(re.findall(r'(?<=[ "])(\w[\w-]*)=', "".join(re.findall("<[^>]*>", found.fold)))) <= {
        "class",
        "data-span",
        "dir",
    }


def test_the_terminal_says_where_the_last_reply_stands(tmp_path, capsys):
    run = run_of(tmp_path, CONVERSATIONS)
    terminal.converse(scripted_session(*REPLIES), ["/origin", "hi", "/origin", "and?", "/ORIGIN"], False, run)
    told = capsys.readouterr()
    assert told.out.splitlines() == list(REPLIES)
    for words in (
        "no reply yet",
        "5 times in 5 conversations",
        "talk row 20, message 2 (assistant): [the zebra",
        NOTHING,
    ):
        assert words in told.err
    terminal.converse(scripted_session("fine"), ["hi", "/origin"], False, None)
    assert "of no run" in capsys.readouterr().err
    write_text(run.rows / "stage.json", "{}")
    terminal.converse(scripted_session("fine"), ["hi", "/origin"], False, run)
    assert "01_filter_data.ipynb" in capsys.readouterr().err
