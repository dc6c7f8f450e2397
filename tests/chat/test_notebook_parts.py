"""What notebook 05 calls: the scripted conversation, its tables, and the choice of a widget or none."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from nbutils.chat import display
from nbutils.chat.models import load
from nbutils.chat.scripted import ask, play, save
from nbutils.chat.settings import ChatSettings
from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.stages import spec
from tests.chat.runs import made_up_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("chat") / "run", context=256)


def settings(run, **changes) -> ChatSettings:
    defaults = {name: p.default for name, p in parameters(notebook_path(spec("chat"))).items()}
    return ChatSettings.checked(defaults | {"run_dir": str(run), "max_new_tokens": 8} | changes)


def test_the_scripted_conversation_is_saved_with_timings(run, tmp_path):
    given = settings(run, scripted_messages=["Hi <b>", "How are you?"])
    transcripts = [
        play(load(name, run), given.scripted_messages, given.session_settings()) for name in ("final", "base")
    ]
    path = save(transcripts, tmp_path / "transcript.json")
    saved = json.loads(path.read_text())
    assert saved["schema"] == 1 and saved["model"] == "final" and saved["compared"][0]["model"] == "base"
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] * 2
    for message in saved["messages"][1::2]:
        assert message["measured"]["seconds_to_first_token"] > 0 and message["measured"]["new_tokens"] > 0
    assert [t["tokens"] for t in saved["timings"]] == [m["measured"]["new_tokens"] for m in saved["messages"][1::2]]
    assert set(saved["timings"][0]) == {"time_to_first_token", "tokens", "tokens_per_second", "ended"}
    again = play(load("final", run), given.scripted_messages, given.session_settings())
    assert [m["content"] for m in again["messages"]] == [m["content"] for m in saved["messages"]]
    table = display.replies_table(transcripts).data
    assert "Hi &lt;b&gt;" in table and "<b>" not in table
    assert list(display.timings_table(transcripts).index) == [("final", 1), ("final", 2), ("base", 1), ("base", 2)]
    read = display.as_read(load("final", run), transcripts[0])
    assert read.startswith("<|im_start|>user\nHi <b><|im_end|>\n") and read.endswith("<|im_start|>assistant\n")


def test_greedy_differs_from_sampling_and_tables_shorten(run):
    given = settings(run)
    variants = {"greedy": {"greedy": True}, "again": {"greedy": True}, "hot": {"temperature": 3.0, "top_p": 1.0}}
    replies = ask(load("final", run), "Hi", variants, given.session_settings())
    assert replies["greedy"] == replies["again"] != replies["hot"]
    assert "x" * display.SHOWN + "…" in display.replies_by_setting({"a": "x" * 1000, "b": ""}).data


def test_the_live_chat_offers_every_model_of_the_run(run, capsys):
    final = load("final", run)
    chat = display.live_chat(settings(run), [final])
    assert list(chat.controls.model.options) == ["final", "base"]
    chat.close()
    assert display.live_chat(settings(run, interactive=False), [final]) is None
    assert "interactive is off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0}, "temperature"),
        ({"context_extension": "ntk"}, "dynamic"),
        ({"scripted_messages": ["hi", " "]}, "needs some text"),
        ({"scripted_messages": []}, "one message at least"),
        ({"top_p": 1.2}, "top_p"),
    ],
)
def test_wrong_parameters_are_named(run, changes, words):
    with pytest.raises(UserError, match=words):
        settings(run, **changes)


@pytest.mark.parametrize("place", ["final", "step-000010", "FOLDER"])
def test_auto_takes_what_the_context_curve_of_the_run_shows(run, tmp_path, place):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    given = settings(copied, model=str(copied / "train" / "final") if place == "FOLDER" else place)
    before = given.result_parameters()
    assert given.session_settings()["context_extension"] == "dynamic" and "dynamic, since" in given.extension()[1]
    results = copied / "evaluate" / "results.json"
    for curve in (None, {}, {"best": None}, {"best": "ntk"}, []):
        write_json(results, {"context_curve": curve})
        assert given.result_parameters() == before
    write_json(results, {"context_curve": {"best": "yarn"}})
    assert given.session_settings()["context_extension"] == "yarn" and "yarn, the best" in given.extension()[1]
    assert given.result_parameters() != before, "the stage is made anew"
    asked = settings(copied, model=given.model, context_extension="linear")
    assert asked.session_settings()["context_extension"] == "linear"
    assert settings(copied, model="some/hub-id").session_settings()["context_extension"] == "dynamic"


def test_a_cell_without_an_id_is_known_by_its_text(run, monkeypatch):
    final, parent = load("final", run), {"content": {"code": "chat = show_chat()"}}
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(get_parent=lambda: parent))

    def shown_chat():
        return display.show_chat(display.loader(final), ["final"], "final", {"max_new_tokens": 4, "read_ahead": False})

    first = shown_chat()
    first.send("hello")
    first.wait(20)
    again = shown_chat()
    assert again.panels[0].session.messages == first.panels[0].session.messages != []
    assert not first.panels[0].session.engine.cached, "its caches are freed"
    parent["content"]["code"] = "another = show_chat()"
    assert shown_chat().panels[0].session.messages == []


def test_no_bar_stays_where_a_model_was_loaded(run, capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        load("final", run)
        assert "Loading weights" not in capfd.readouterr().err
    finally:
        if not before:
            logging.disable_progress_bar()


@pytest.mark.soak
def test_try_this_holds_for_the_demo_model(demo_run):
    final = load("final", demo_run)
    given = settings(demo_run, max_new_tokens=250)

    def replies(**changes) -> list[str]:
        transcript = play(final, given.scripted_messages, given.session_settings() | changes)
        return [m["content"] for m in transcript["messages"][1::2]]

    def words_of(texts: list[str]) -> set[str]:
        return {word for text in texts for word in text.lower().split()}

    dull = replies(greedy=True, repetition_penalty=1.0)
    assert len(set(dull)) < len(dull), "greedy replies resemble each other"
    hot, normal = words_of(replies(temperature=2.0, top_p=1.0)), words_of(replies())
    known = words_of(replies(seed=1) + replies(seed=2) + replies(seed=3))
    assert len(hot & known) / len(hot) < len(normal & known) / len(normal), "hot replies fall apart into stray words"
