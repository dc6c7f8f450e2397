"""The terminal chat: on a pseudo-terminal as a person uses it, and with piped input."""

import io
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from nbutils import cli
from nbutils.chat import terminal
from nbutils.chat.models import load
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from tests.chat.models import contents, say, scripted_session
from tests.chat.talking import Terminal, slow_talk
from tests.core.test_chatml import turns
from tests.metrics.histories import write_done

PROMPT = "You:"
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


@pytest.fixture
def piped(monkeypatch):
    """Puts bytes on standard input."""
    return lambda said: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said), encoding="utf-8"))


@pytest.fixture
def run(untrained, tmp_path):
    """A run that a test may change."""
    return shutil.copytree(untrained, tmp_path / "me@home")


def test_a_conversation_on_a_pseudo_terminal():
    with Terminal(slow_talk) as screen:

        def say(text, *seen):
            screen.wait_for(PROMPT)
            screen.send(text)
            screen.wait_for(*seen)

        say("hello\r", "first ␛[31mreply 🌙", "context: ")  # the escape sequence is shown, not obeyed
        say("a long one please\r", "slowly slowly")
        stopped = time.monotonic()
        screen.send(CTRL_C)
        screen.wait_for("stopped")
        assert time.monotonic() - stopped < 1.5 and screen.before.count("slowly") < 30
        say(UP, "a long one please")  # the last line comes back
        screen.send("\r")
        screen.wait_for("after the stop")
        say(CTRL_C, "exit or Ctrl-D leaves")  # at the prompt it leaves the program alone
        say("clear\r", "a new conversation")
        say(CTRL_D)
        assert screen.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_conversation_is_gone_on_with_and_saved_where_its_window_is_closed(untrained, tmp_path, number):
    saved = tmp_path / "said.json"
    write_json(saved, {"messages": turns("first", "fine")})
    given = ["chat", str(untrained), "--max-new-tokens", "4", "--load", str(saved), "--save", str(saved)]
    with Terminal(cli.main, given) as screen:
        screen.wait_for(PROMPT)
        screen.send("second\r")
        screen.wait_for("context: ", PROMPT)
        os.kill(screen.process.pid, number)
        assert screen.exit_status() == 128 + number
    assert contents(read_json(saved)["messages"])[::2] == ["first", "second"]


def test_piped_input_gives_replies_alone_and_what_is_talked_to_is_told(run, piped, capfd):
    write_json(run / "evaluate" / "results.json", {"context_curve": {"best": "none"}})
    piped(b"hi\n\nclear\nthere\nexit\nnever\n")
    assert cli.main(["chat", str(run / "train"), "--max-new-tokens", "8"]) == 0
    told = capfd.readouterr()
    assert len(told.out.splitlines()) == 2
    curve = "256 tokens at once (context extension: none, the best of the context curve"
    for words in ("parameters, on the", curve, "a new conversation"):
        assert words in told.err


@pytest.mark.parametrize(
    "replies,typed,told,texts",
    [
        (["fine"], "x" * 2000 + "\nhi\nQUIT\nnever", "2,008 tokens long and there is room for 763", ["hi", "fine"]),
        (
            ["one", RuntimeError("CUDA out of memory\nand more"), "two"],
            "a\nb\nc",
            "out of memory",
            ["a", "one", "c", "two"],
        ),
        (["fine"], "caf\udce9", "", ["caf\ufffd", "fine"]),  # a wrong byte
    ],
    ids=["too long", "out of memory", "wrong byte"],
)
def test_a_piped_message_that_gets_no_reply_is_told_and_the_conversation_goes_on(
    piped, capsys, replies, typed, told, texts
):
    session = scripted_session(*replies)
    piped(typed.encode(errors="surrogateescape"))
    assert terminal.talk(session, interactive=False) == bool(told)
    out, err = capsys.readouterr()
    assert contents(session.messages) == texts
    assert out.splitlines() == texts[1::2] and told in err and "and more" not in err


@pytest.mark.parametrize("during,words", [("load", "before the model was there"), ("talk", "stopped")])
def test_ctrl_c_ends_the_program_with_a_word(untrained, tmp_path, monkeypatch, capsys, during, words):
    def interrupted(*_):
        raise KeyboardInterrupt

    saved = tmp_path / "said.json"
    monkeypatch.setattr(terminal, during, interrupted)
    assert cli.main(["chat", str(untrained), "--save", str(saved)]) == 130
    assert words in capsys.readouterr().err
    assert saved.exists() == (during == "talk")


@pytest.mark.parametrize(
    "model,file,content",
    [
        ("model.gguf", "model.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 64),
        ("train/final", "train/final/model.safetensors", b"cut short"),
    ],
)
def test_damaged_weights_are_named(run, model, file, content):
    (run / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{model}' could not be loaded"):
        load(str(run / model))


def test_text_has_no_power_over_the_terminal():
    assert terminal.visible("a\x1b]0;title\x07b\x9bc\u202ed\ne\tf") == "a␛]0;title␇b\ufffdcd\ne\tf"


def test_models_of_a_run_are_found(run):
    final, step = run / "train" / "final", run / "train" / "checkpoints" / "step-000010"
    shutil.copytree(final, step)
    assert Run(run).models() == {"final": final, "base": run / "train" / "base", "step-000010": step}
    for place in (run, run / "train"):
        assert ModelRef.parse(str(place)).path == final, "a folder may have an at sign"
    # a training that was paused: its newest checkpoint is what there is
    shutil.rmtree(final)
    (step / "manifest.json").touch()
    write_done(run / "train", status="paused")
    assert ModelRef.parse(str(run)).path == ModelRef.parse("final", run).path == step
    assert load("final", run).line.startswith("final so far (step-000010): ")
    assert [load(name, run).run for name in ("final", "base")] == [Run(run), None]  # whose rows it was trained on


@pytest.mark.parametrize(
    "flag,value,words",
    [
        ("--save", Path(__file__).parent, "it is a folder): give another path"),
        ("--save", f"{__file__}/t.json", "test_terminal.py/t.json ("),
        ("--top-p", 3, "is 3.0"),
    ],
)
def test_what_cannot_be_is_found_out_before_the_model_is_loaded(refused, flag, value, words):
    assert words in refused("chat", "no/such/model", flag, value)


def test_a_conversation_whose_place_is_lost_meanwhile_is_saved_elsewhere(capsys):
    session = scripted_session("one")
    say(session, "hi")
    terminal.save(session, f"{__file__}/t.json")
    told, _, place = capsys.readouterr().err.partition("the transcript is in ")
    assert "cannot be written to" in told
    assert read_json(Path(place.strip()))["messages"][1]["content"] == "one"
    shutil.rmtree(Path(place.strip()).parent)
