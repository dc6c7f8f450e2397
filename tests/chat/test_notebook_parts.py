"""What notebook 05 calls: the scripted conversation, its tables, and the choice of a widget or none."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from transformers.utils import logging

from nbutils.chat import display
from nbutils.chat.models import load
from nbutils.chat.session import ask, play
from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from tests.chat.models import contents
from tests.chat.widgets import last, pick, sampling, send, texts, widget


def settings(run, **changes):
    return settings_of(spec("chat"), {"run_dir": str(run), "max_new_tokens": 8} | changes)


@pytest.fixture(scope="module")
def final(untrained):
    return load("final", untrained)


def test_a_scripted_conversation_is_the_same_again_and_shown_in_tables(untrained, final):
    given, messages = settings(untrained).session_settings(), ["Hi <b>", "How are you?"]
    transcripts = [play(loaded, messages, given) for loaded in (final, load("base", untrained))]
    assert [transcript["model"] for transcript in transcripts] == ["final", "base"]
    said, timings = transcripts[0]["messages"], transcripts[0]["timings"]
    assert contents(said) == contents(play(final, messages, given)["messages"])
    assert [timing["tokens"] for timing in timings] == [m["measured"]["new_tokens"] for m in said[1::2]]
    assert set(timings[0]) == {"time_to_first_token", "tokens", "tokens_per_second", "ended"}
    table = display.replies_table(transcripts).data
    assert "Hi &lt;b&gt;" in table and "<b>" not in table
    read = display.as_read(final, transcripts[0])
    assert read.startswith("<|im_start|>user\nHi <b><|im_end|>\n") and read.endswith("<|im_start|>assistant\n")
    of_one_token = display.timings_table([play(final, messages, given | {"max_new_tokens": 1})])
    assert list(of_one_token["tokens per second"]) == ["–"] * 2
    assert list(of_one_token.index) == [("final", 1), ("final", 2)]


def test_greedy_differs_from_sampling_and_tables_shorten(untrained, final):
    variants = {"greedy": {"greedy": True}, "hot": {"temperature": 3.0, "top_p": 1.0}}
    replies = ask(final, "Hi", variants, settings(untrained).session_settings())
    assert replies["greedy"] != replies["hot"]
    assert "x" * display.SHOWN + "…" in display.replies_by_setting({"a": "x" * 1000}).data


def test_the_live_chat_offers_every_model_of_the_run(untrained, final, capsys):
    chat = display.live_chat(settings(untrained), [final])
    assert list(chat.controls.model.options) == ["final", "base"] == pick(chat, beside="base")
    chat.close()
    assert display.live_chat(settings(untrained, interactive=False), [final]) is None
    assert "interactive is off" in capsys.readouterr().out


def test_wrong_parameters_are_named(untrained):
    with pytest.raises(UserError, match=r"'top_p' is 1\.2.*'scripted_messages\.1' is ' '"):
        settings(untrained, top_p=1.2, scripted_messages=["hi", " "])


def test_auto_takes_what_the_context_curve_of_the_run_shows(untrained, tmp_path):
    run = shutil.copytree(untrained, tmp_path / "run")
    for curve in (None, {"best": None}, {"best": "ntk"}):
        write_json(run / "evaluate" / "results.json", {"context_curve": curve})
        assert "dynamic, since" in settings(run).extension()[1]
    before = settings(run).result_parameters()
    write_json(run / "evaluate" / "results.json", {"context_curve": {"best": "yarn"}})
    for model in ("final", "step-000010", str(run / "train" / "final")):
        assert "yarn, the best" in settings(run, model=model).extension()[1]
    assert settings(run).session_settings()["context_extension"] == "yarn"
    assert settings(run).result_parameters() != before, "the stage is made anew"
    assert settings(run, context_extension="linear").extension()[0] == "linear"
    assert settings(run, model="some/hub-id").extension()[0] == "dynamic"


def test_a_cell_that_runs_again_keeps_what_was_said_and_with_the_same_arguments_what_was_picked_and_set(monkeypatch):
    parent = {"content": {"code": "chat = show_chat()"}}  # by which a cell without an id is known
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(get_parent=lambda: parent))
    run_cell = partial(widget, "left")
    first = run_cell(temperature=0.5)
    pick(first, beside="base")
    send(first, "hi")
    first.set("top_p", 0.5)
    again = run_cell(temperature=0.5)
    assert not first.panels[0].session.engine.caches, "its caches are freed"
    assert pick(again) == ["final", "base"] and last(again) == ["left", "base left"]
    assert sampling(again, "top_p") == [0.5] * 3
    changed = run_cell(temperature=0.9)
    assert pick(changed) == ["final"] and last(changed) == ["left"]
    assert sampling(changed, "temperature") == sampling(changed, "top_p") == [0.9] * 2, "as now asked for"
    parent["content"]["code"] = "another = show_chat()"
    assert texts(run_cell()) == []


def test_no_bar_stays_where_a_model_was_loaded(untrained, capfd):
    logging.enable_progress_bar()
    load("final", untrained)
    assert "Loading weights" not in capfd.readouterr().err
