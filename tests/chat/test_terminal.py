"""The terminal chat: on a pseudo-terminal as a person uses it, and with piped input."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbutils import cli
from nbutils.chat import terminal
from nbutils.chat.models import load
from nbutils.chat.transcript import write_transcript
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.run.record import RECORD, SCHEMA, write_record
from tests.chat.models import scripted_session
from tests.chat.talking import Terminal, slow_talk

PROMPT = "You:"
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


@pytest.fixture
def opened() -> Iterator[Callable[..., Terminal]]:
    screens: list[Terminal] = []

    def open_it(*program) -> Terminal:
        screens.append(Terminal(*program))
        return screens[-1]

    yield open_it
    for screen in screens:
        screen.close()


@pytest.fixture
def piped(monkeypatch) -> Callable[[bytes], None]:
    """Puts bytes on standard input."""
    return lambda said: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said), encoding="utf-8"))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "me@home"))


def test_a_conversation_on_a_pseudo_terminal(opened):
    screen = opened(slow_talk)

    def say(text: str, *seen: str) -> None:
        screen.wait_for(PROMPT)
        screen.type(text)
        for expected in seen:
            screen.wait_for(expected)

    say("hello\r", "first ␛[31mreply 🌙", "context: ")  # the escape sequence is shown, not obeyed
    say("a long one please\r", "slowly slowly")
    stopped = time.monotonic()
    screen.type(CTRL_C)
    rest = screen.wait_for("stopped")
    assert time.monotonic() - stopped < 1.5 and rest.count("slowly") < 30
    say(UP, "a long one please")  # the last line comes back
    screen.type("\r")
    screen.wait_for("after the stop")
    say(CTRL_C, "exit or Ctrl-D leaves")  # at the prompt it leaves the program alone
    say("clear\r", "a new conversation")
    say(CTRL_D)
    assert screen.status() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_window_that_is_closed_saves_the_conversation(finished, tmp_path, opened, number):
    saved = tmp_path / "said.json"
    screen = opened(cli.main, ["chat", str(finished), "--max-new-tokens", "4", "--save", str(saved)])
    screen.wait_for(PROMPT)
    screen.type("hello\r")
    screen.wait_for("context: ")
    screen.wait_for(PROMPT)
    os.kill(screen.process.pid, number)
    assert screen.status() == 128 + number
    assert read_json(saved)["messages"][0]["content"] == "hello"


def test_piped_input_works(finished, piped, capfd):
    piped(b"hi\n\nclear\nthere\nexit\nnever\n")
    assert cli.main(["chat", str(finished), "--max-new-tokens", "8"]) == 0
    told = capfd.readouterr()
    assert len(told.out.splitlines()) == 2  # two replies and nothing else
    for words in ("parameters, on the", "2,048 tokens", "a new conversation"):
        assert words in told.err


def test_quit_leaves_and_a_message_too_long_is_refused(capsys):
    session = scripted_session("fine")
    terminal.converse(session, ["x" * 2000, "hi", "QUIT", "never"], interactive=False)
    told = capsys.readouterr()
    assert told.out == "fine\n" and "there is room for" in told.err
    assert len(session.messages) == 2


def test_a_reply_that_runs_out_of_memory_does_not_end_the_conversation(capsys):
    session = scripted_session("one", "two")
    session.engine.model.failing = RuntimeError("CUDA out of memory\nand 100 lines more")
    assert not terminal.converse(session, ["hi", "hi again"], interactive=False)
    told = capsys.readouterr()
    assert told.out == "one\n" and "out of memory" in told.err and "lines" not in told.err
    assert [m["content"] for m in session.messages] == ["hi again", "one"]


def test_wrong_bytes_on_a_pipe_are_replaced(piped, capsys):
    session = scripted_session("fine")
    piped(b"caf\xe9\n")
    assert terminal.talk(session, interactive=False) == 0
    assert session.messages[0]["content"] == "caf\ufffd" and capsys.readouterr().out == "fine\n"


@pytest.mark.parametrize(("during", "words"), [("load", "before the model was there"), ("talk", "stopped")])
def test_ctrl_c_ends_the_program_with_a_word(finished, tmp_path, monkeypatch, capsys, during, words):
    def interrupted(*_):
        raise KeyboardInterrupt

    saved = tmp_path / "said.json"
    monkeypatch.setattr(terminal, during, interrupted)
    assert cli.main(["chat", str(finished), "--save", str(saved)]) == 130
    assert words in capsys.readouterr().err
    assert saved.exists() == (during == "talk")


def test_auto_says_what_the_run_s_context_curve_shows(run, piped, capsys):
    write_json(run / "evaluate" / "results.json", {"context_curve": {"best": "none"}})
    for place in (run, run / "train", run / "train" / "final"):
        piped(b"")
        assert cli.main(["chat", str(place)]) == 0
        told = capsys.readouterr().err
        assert "1,024 tokens at once (context extension: none, the best of the context curve" in told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.gguf", b"GGUF", r"model\.gguf' could not be loaded"),
        ("model.gguf", b"no GGUF at all", r"model\.gguf' could not be loaded"),
        ("model.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 64, r"model\.gguf' could not be loaded"),
        ("train/final/model.safetensors", b"cut short", "could not be loaded"),
    ],
)
def test_damaged_weights_are_named(run, name, content, words):
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(str(run / name) if "gguf" in name else "final", run)


def test_text_has_no_power_over_the_terminal():
    assert terminal.visible("a\x1b]0;title\x07b\x9bc\u202ed\ne\tf") == "a␛]0;title␇b\ufffdcd\ne\tf"


def test_models_of_a_run_are_found(run):
    final, step = run / "train" / "final", run / "train" / "checkpoints" / "step-000010"
    shutil.copytree(final, step)
    assert list(Run(run).models()) == ["final", "base", "step-000010"]
    asked = [ModelRef.parse(str(run)), ModelRef.parse("final", run), ModelRef.parse(str(run / "train"))]
    assert {ref.path for ref in asked} == {final}
    assert ModelRef.parse("some/peer", run).hub == "some/peer"
    assert ModelRef.parse("step-000010", run).path == step
    loaded = load("base", run)
    assert loaded.name == "base" and "base: " in loaded.line and not loaded.model.training
    assert load(str(run)).name == str(run), "a folder may have an at sign"
    # a training that was paused: its newest checkpoint is what there is
    shutil.rmtree(final)
    (step / "manifest.json").write_text("{}")
    record = {"schema": SCHEMA, "stage": "train", "status": "paused", "facts": {"step": 10, "steps": 20}}
    write_record(run / "train" / RECORD, record)
    assert ModelRef.parse(str(run)).path == ModelRef.parse("final", run).path == step
    assert load("final", run).line.startswith("final so far (step-000010): ")


def test_a_conversation_is_saved_and_gone_on_with(finished, tmp_path, piped, capsys):
    saved = tmp_path / "said.json"
    for said in (b"first\n", b"second\n"):
        piped(said)
        loading = ["--load", str(saved)] if saved.exists() else []
        given = ["--greedy", "--max-new-tokens", "4", "--save", str(saved), *loading]
        assert cli.main(["chat", str(finished), *given]) == 0
    assert [m["content"] for m in read_json(saved)["messages"][::2]] == ["first", "second"]
    assert "the transcript is in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--save", ".", "it is a folder): give another path"),
        ("--save", "file/t.json", "file/t.json ("),
        ("--top-p", "3", "is 3.0"),
    ],
)
def test_what_cannot_be_is_found_out_before_the_model_is_loaded(tmp_path, capsys, flag, value, words):
    (tmp_path / "file").write_text("x")
    given = value if flag == "--top-p" else str(tmp_path / value)
    assert cli.main(["chat", "no/such/model", flag, given]) == 1
    assert words in capsys.readouterr().err


def test_a_conversation_whose_place_is_lost_meanwhile_is_saved_elsewhere(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    lost = tmp_path / "file" / "t.json"
    with pytest.raises(UserError, match=r"cannot be written to .* give another path"):
        write_transcript(lost, {"messages": []})
    session = scripted_session("one")
    list(session.reply("hi"))
    terminal.save(session, str(lost))
    told = capsys.readouterr().err
    place = Path(told.rpartition("the transcript is in ")[2].strip())
    assert "cannot be written" in told and read_json(place)["messages"][1]["content"] == "one"
    shutil.rmtree(place.parent)
