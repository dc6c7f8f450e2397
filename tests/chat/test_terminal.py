"""The terminal chat: on a pseudo-terminal as a person uses it, and with piped input."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbutils.chat import terminal
from nbutils.chat.models import load
from nbutils.chat.transcript import write_transcript
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.run.record import RECORD, SCHEMA, write_record
from tests.chat.models import scripted_session
from tests.chat.runs import made_up_run
from tests.conftest import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
PROMPT = "You:"
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self.process_id, self.file = pty.fork()
        if self.process_id == 0:
            os.chdir(ROOT)
            os.execvpe(command[0], command, ENVIRONMENT)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.seen = ""

    def type(self, text: str) -> None:
        """What the keyboard sends."""
        os.write(self.file, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Reads until `text` appears; returns what came up to it and forgets it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come; there is {self.seen!r}"
            if select.select([self.file], [], [], 0.2)[0]:
                try:
                    data = os.read(self.file, 4096)
                except OSError:
                    data = b""
                assert data, f"the program ended before {text!r}; there is {self.seen!r}"
                self.seen += data.decode(errors="replace")
                if "\x1b[6n" in self.seen:  # prompt_toolkit asks where the cursor is
                    self.seen = self.seen.replace("\x1b[6n", "")
                    self.type("\x1b[1;1R")
        before, _, self.seen = self.seen.partition(text)
        return before

    def status(self, seconds: float = 30) -> int:
        """The exit status, once the program has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.file], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.file, 4096)
            ended, status = os.waitpid(self.process_id, os.WNOHANG)
            if ended:
                self.process_id = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the program did not end")

    def close(self) -> None:
        """Ends the program if it still runs."""
        if self.process_id:
            os.kill(self.process_id, signal.SIGKILL)
            os.waitpid(self.process_id, 0)
        os.close(self.file)


@pytest.fixture
def screen() -> Iterator[Terminal]:
    opened = Terminal(sys.executable, "-m", "tests.chat.talking")
    yield opened
    opened.close()


def test_a_conversation_on_a_pseudo_terminal(screen):
    screen.wait_for(PROMPT)
    screen.type("hello\r")
    screen.wait_for("first ␛[31mreply 🌙")  # the escape sequence is shown, not obeyed
    screen.wait_for("tokens of context")
    screen.wait_for(PROMPT)
    screen.type("a long one please\r")
    screen.wait_for("slowly slowly")
    stopped = time.monotonic()
    screen.type(CTRL_C)
    rest = screen.wait_for("stopped")
    assert time.monotonic() - stopped < 1.5 and rest.count("slowly") < 30
    screen.wait_for(PROMPT)
    screen.type(UP)  # the last line comes back
    screen.wait_for("a long one please")
    screen.type("\r")
    screen.wait_for("after the stop")
    screen.wait_for(PROMPT)
    screen.type(CTRL_C)  # at the prompt it leaves the program alone
    screen.wait_for("exit or Ctrl-D leaves")
    screen.wait_for(PROMPT)
    screen.type("clear\r")
    screen.wait_for("a new conversation")
    screen.wait_for(PROMPT)
    screen.type(CTRL_D)
    assert screen.status() == 0


def test_piped_input_works(tmp_path):
    run = made_up_run(tmp_path / "run")
    command = [sys.executable, "-m", "nbutils", "chat", str(run), "--max-new-tokens", "8"]
    done = subprocess.run(
        command, input="hi\n\nclear\nthere\nexit\nnever\n", capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2  # two replies and nothing else
    assert "parameters, on the" in done.stderr and "2,048 tokens" in done.stderr and "a new conversation" in done.stderr


def test_quit_leaves_and_a_message_too_long_is_refused(capsys):
    session = scripted_session("fine")
    terminal.converse(session, ["x" * 2000, "hi", "QUIT", "never"], interactive=False)
    out = capsys.readouterr()
    assert out.out == "fine\n" and "there is room for" in out.err
    assert len(session.messages) == 2


def test_a_reply_that_runs_out_of_memory_does_not_end_the_conversation(capsys):
    session = scripted_session("one", "two")
    session.engine.model.failing = RuntimeError("CUDA out of memory\nand 100 lines more")
    assert not terminal.converse(session, ["hi", "hi again"], interactive=False)
    out = capsys.readouterr()
    assert out.out == "one\n" and "out of memory); the conversation is as it was" in out.err and "lines" not in out.err
    assert [m["content"] for m in session.messages] == ["hi again", "one"]


def test_wrong_bytes_on_a_pipe_are_replaced(monkeypatch, capsys):
    session = scripted_session("fine")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert terminal.talk(session, interactive=False) == 0
    assert session.messages[0]["content"] == "caf\ufffd" and capsys.readouterr().out == "fine\n"


@pytest.mark.parametrize(("during", "words"), [("load", "before the model was there"), ("talk", "stopped")])
def test_ctrl_c_ends_the_program_with_a_word(tmp_path, monkeypatch, capsys, during, words):
    run, saved = str(made_up_run(tmp_path / "run")), tmp_path / "said.json"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nbutils.chat.terminal.load" if during == "load" else "nbutils.chat.terminal.talk", interrupted)
    assert main_of_chat(run, "--save", str(saved)) == 130
    assert words in capsys.readouterr().err
    assert saved.exists() == (during == "talk")


def test_auto_says_what_the_run_s_context_curve_shows(tmp_path, monkeypatch, capsys):
    run = made_up_run(tmp_path / "run")
    write_json(run / "evaluate" / "results.json", {"context_curve": {"best": "none"}})
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    for place in (run, run / "train", run / "train" / "final"):
        assert main_of_chat(str(place)) == 0
        said = capsys.readouterr().err
        assert "1,024 tokens at once (context extension: none, the best of the context curve" in said


def test_a_folder_may_have_an_at_sign(tmp_path):
    run = made_up_run(tmp_path / "me@home")
    assert load(str(run)).name == str(run)


@pytest.mark.parametrize("content", [b"GGUF", b"no GGUF at all", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_damaged_gguf_file_is_named(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.gguf could not be read"):
        load(str(tmp_path / "model.gguf"))


def test_damaged_weights_are_named(tmp_path):
    run = made_up_run(tmp_path / "run")
    (run / "train" / "final" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="could not be loaded"):
        load("final", run)


def test_text_has_no_power_over_the_terminal():
    assert terminal.visible("a\x1b]0;title\x07b\x9bc\u202ed\ne\tf") == "a␛]0;title␇b\ufffdcd\ne\tf"


def test_models_of_a_run_are_found(tmp_path):
    run = made_up_run(tmp_path / "run")
    step = run / "train" / "checkpoints" / "step-000010"
    step.mkdir(parents=True)
    (step / "config.json").write_text("{}")
    assert list(Run(run).models()) == ["final", "base", "step-000010"]
    final = run / "train" / "final"
    asked = [ModelRef.parse(str(run)), ModelRef.parse("final", run), ModelRef.parse(str(run / "train"))]
    assert {ref.path for ref in asked} == {final}
    assert ModelRef.parse("some/peer", run).hub == "some/peer"
    assert ModelRef.parse("step-000010", run).path == step
    loaded = load("base", run)
    assert loaded.name == "base" and "base: " in loaded.line and not loaded.model.training


def test_final_is_the_newest_checkpoint_of_a_paused_training(tmp_path):
    run = made_up_run(tmp_path / "run")
    step = run / "train" / "checkpoints" / "step-000010"
    shutil.copytree(run / "train" / "final", step)
    (step / "manifest.json").write_text("{}")
    shutil.rmtree(run / "train" / "final")
    record = {"schema": SCHEMA, "stage": "train", "status": "paused", "facts": {"step": 10, "steps": 20}}
    write_record(run / "train" / RECORD, record)
    assert ModelRef.parse(str(run)).path == ModelRef.parse("final", run).path == step
    assert load("final", run).line.startswith("final so far (step-000010): ")


def main_of_chat(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    terminal.add_arguments(parser)
    return terminal.main(parser.parse_args(arguments))


@pytest.mark.parametrize("name", ["final", "no/such/model"])
def test_a_model_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"02_train_sft|could not be loaded"):
        load(name, tmp_path)


def test_a_folder_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        main_of_chat(str(tmp_path))


def test_a_conversation_is_saved_and_gone_on_with(tmp_path, monkeypatch, capsys):
    run, saved = str(made_up_run(tmp_path / "run")), tmp_path / "said.json"
    for said in ("first\n", "second\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        loading = ["--load", str(saved)] if saved.exists() else []
        assert main_of_chat(run, "--greedy", "--max-new-tokens", "4", "--save", str(saved), *loading) == 0
    assert [m["content"] for m in read_json(saved)["messages"][::2]] == ["first", "second"]
    assert "the transcript is in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"cannot be written to .*\(it is a folder\): give another path"):
        main_of_chat(run, "--save", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be written to .* give another path"):
        write_transcript(saved / "below-a-file.json", {"messages": []})
    with pytest.raises(UserError, match=r"top_p.* is 3.0"):
        main_of_chat(run, "--top-p", "3")


def test_a_place_that_cannot_be_written_is_found_out_before_the_conversation(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written to .*file/t.json .*give another path"):
        main_of_chat("no/such/model", "--save", str(tmp_path / "file" / "t.json"))


def test_a_conversation_whose_place_is_lost_meanwhile_is_saved_elsewhere(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    session = scripted_session("one")
    list(session.reply("hi"))
    terminal.save(session, str(tmp_path / "file" / "t.json"))
    said = capsys.readouterr().err
    place = said.rpartition("the transcript is in ")[2].strip()
    assert "cannot be written" in said and read_json(Path(place))["messages"][1]["content"] == "one"
    shutil.rmtree(Path(place).parent)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_window_that_is_closed_saves_the_conversation(tmp_path, number):
    run, saved = made_up_run(tmp_path / "run"), tmp_path / "said.json"
    command = [sys.executable, "-m", "nbutils", "chat", str(run), "--max-new-tokens", "4", "--save", str(saved)]
    opened = Terminal(*command)
    try:
        opened.wait_for(PROMPT)
        opened.type("hello\r")
        opened.wait_for("tokens of context")
        opened.wait_for(PROMPT)
        os.kill(opened.process_id, number)
        assert opened.status() == 128 + number
    finally:
        opened.close()
    assert next(m["content"] for m in read_json(saved)["messages"]) == "hello"
