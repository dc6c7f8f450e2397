"""What notebook 05 calls: the scripted conversation, its tables, and the choice of a widget or none."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from transformers.utils import logging

from nbutils.chat import display
from nbutils.chat.models import LoadedModel, load
from nbutils.chat.session import ask, play
from nbutils.chat.settings import ChatSettings
from nbutils.chat.transcript import write_transcript
from nbutils.core.chat_engine.engine import Measured
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.stages import spec
from tests.chat.widgets import send, texts


def settings(run, **changes) -> ChatSettings:
    defaults = {name: p.default for name, p in parameters(notebook_path(spec("chat"))).items()}
    return ChatSettings.checked(defaults | {"run_dir": str(run), "max_new_tokens": 8} | changes)


@pytest.fixture(scope="module")
def final(finished) -> LoadedModel:
    return load("final", finished)


def test_the_scripted_conversation_is_saved_with_timings(finished, final, tmp_path):
    given = settings(finished, scripted_messages=["Hi <b>", "How are you?"])
    transcripts = [
        play(loaded, given.scripted_messages, given.session_settings()) for loaded in (final, load("base", finished))
    ]
    path = write_transcript(tmp_path / "transcript.json", transcripts[0] | {"compared": transcripts[1:]})
    saved = read_json(path)
    replies = saved["messages"][1::2]
    assert saved["schema"] == 1 and saved["model"] == "final" and saved["compared"][0]["model"] == "base"
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] * 2
    assert all(m["measured"]["seconds_to_first_token"] > 0 for m in replies)
    assert [t["tokens"] for t in saved["timings"]] == [m["measured"]["new_tokens"] for m in replies]
    assert set(saved["timings"][0]) == {"time_to_first_token", "tokens", "tokens_per_second", "ended"}
    again = play(final, given.scripted_messages, given.session_settings())
    assert [m["content"] for m in again["messages"][1::2]] == [m["content"] for m in replies]
    table = display.replies_table(transcripts).data
    assert "Hi &lt;b&gt;" in table and "<b>" not in table
    assert list(display.timings_table(transcripts).index) == [("final", 1), ("final", 2), ("base", 1), ("base", 2)]
    read = display.as_read(final, transcripts[0])
    assert read.startswith("<|im_start|>user\nHi <b><|im_end|>\n") and read.endswith("<|im_start|>assistant\n")


def test_a_reply_without_a_first_token_has_a_dash_in_the_table_of_timings():
    costs = [Measured(), Measured(new_tokens=2, seconds_to_first_token=0.12345, seconds=1.0)]
    turns = [{"role": "assistant", "measured": cost.model_dump()} for cost in costs]
    timings = [{"time_to_first_token": each.seconds_to_first_token, "tokens_per_second": 1.0} for each in costs]
    timings[0]["tokens_per_second"] = None
    table = display.timings_table([{"model": "final", "messages": turns, "timings": timings}])
    assert list(table["seconds to the first token"]) == ["–", 0.123] and list(table["tokens per second"]) == ["–", 1.0]


def test_greedy_differs_from_sampling_and_tables_shorten(finished, final):
    variants = {"greedy": {"greedy": True}, "again": {"greedy": True}, "hot": {"temperature": 3.0, "top_p": 1.0}}
    replies = ask(final, "Hi", variants, settings(finished).session_settings())
    assert replies["greedy"] == replies["again"] != replies["hot"]
    assert "x" * display.SHOWN + "…" in display.replies_by_setting({"a": "x" * 1000, "b": ""}).data


def test_the_live_chat_offers_every_model_of_the_run(finished, final, capsys):
    chat = display.live_chat(settings(finished), [final])
    assert list(chat.controls.model.options) == ["final", "base"]
    chat.close()
    assert display.live_chat(settings(finished, interactive=False), [final]) is None
    assert "interactive is off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0}, "temperature"),
        ({"context_extension": "ntk"}, "dynamic"),
        ({"scripted_messages": ["hi", " "]}, r"scripted_messages\.1"),
        ({"scripted_messages": []}, "scripted_messages.* at least 1 item"),
        ({"top_p": 1.2}, "top_p"),
    ],
)
def test_wrong_parameters_are_named(finished, changes, words):
    with pytest.raises(UserError, match=words):
        settings(finished, **changes)


@pytest.mark.parametrize("place", ["final", "step-000010", "FOLDER"])
def test_auto_takes_what_the_context_curve_of_the_run_shows(finished, tmp_path, place):
    copied = shutil.copytree(finished, tmp_path / "run")
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
    assert settings(copied, model=given.model, context_extension="linear").extension()[0] == "linear"
    assert settings(copied, model="some/hub-id").extension()[0] == "dynamic"


def test_a_cell_without_an_id_is_known_by_its_text(final, monkeypatch):
    parent = {"content": {"code": "chat = show_chat()"}}
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(get_parent=lambda: parent))

    def shown_chat():
        return display.show_chat(lambda _: final, ["final"], "final", {"max_new_tokens": 4, "read_ahead": False})

    first = shown_chat()
    send(first, "hello")
    assert texts(shown_chat()) == texts(first) != []
    assert not first.panels[0].session.engine.caches, "its caches are freed"
    parent["content"]["code"] = "another = show_chat()"
    assert texts(shown_chat()) == []


def test_no_bar_stays_where_a_model_was_loaded(finished, capfd):
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        load("final", finished)
        assert "Loading weights" not in capfd.readouterr().err
    finally:
        if not before:
            logging.disable_progress_bar()
