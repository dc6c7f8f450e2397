"""Talking to a model in the terminal: `python -m nbutils chat MODEL`."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession

from nbutils.chat.models import load
from nbutils.chat.settings import AUTO, chosen_extension, in_effect
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import EXTENSIONS
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.origin.command import lines as origin_lines
from nbutils.core.origin.index import Index
from nbutils.core.run.layout import Run
from nbutils.core.text import first_line, visible

if TYPE_CHECKING:
    from nbutils.chat.session import ChatSession

LEAVE = ("exit", "quit")
PROMPT = "You: "
LLAMACPP = "llamacpp"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `chat`: a model, and every setting of a session."""
    parser.add_argument(
        "model", metavar="MODEL", help="a model's folder, a run's folder (its final model), a GGUF file or a hub id"
    )
    for name, field in Sampling.model_fields.items():
        flag, default = f"--{name.replace('_', '-')}", field.default
        if default is False:
            parser.add_argument(flag, action="store_true", help=field.description)
        else:
            kind = type(default)
            parser.add_argument(flag, type=kind, default=default, help=f"{field.description} (%(default)s)")
    parser.add_argument(
        "--context-extension", choices=(AUTO, *EXTENSIONS), default=AUTO,
        help="how to read twice the trained length; auto takes what notebook 04 found best for the run, else dynamic",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("transformers", LLAMACPP), default="transformers",
        help="what writes the replies; llamacpp reads a GGUF file as it is, and needs the package xllamacpp",
    )  # fmt: skip
    parser.add_argument(
        "--system", metavar="TEXT", default="",
        help="a system message that is never dropped; a model that smallchat trained has learnt from none",
    )  # fmt: skip
    parser.add_argument("--load", metavar="FILE", help="a transcript (JSON) to continue")
    parser.add_argument("--save", metavar="FILE", help="where the transcript is written at the end")


def main(arguments: argparse.Namespace) -> int:
    """Talks until `exit`, `quit` or the end of input; `clear` forgets; Ctrl-C stops a reply; `/origin` shows where the
    words of the last reply stand in the training data of the model's run. Returns the exit status.

    Replies go to standard output and everything else to standard error, so that piped input gives clean output. The
    status is 1 where a piped message got no reply, and 130 after a Ctrl-C that met no reply. UserError where the model
    or the transcript cannot be loaded, or a setting is out of range.
    """
    from nbutils.chat.transcript import check_writable  # imports torch

    session = None
    try:
        if arguments.save:
            check_writable(arguments.save)
        session, run = _session(arguments)
        _when_closed(lambda number, _: sys.exit(128 + number))
        return talk(session, sys.stdin.isatty() and sys.stdout.isatty(), run)
    except KeyboardInterrupt:
        _say("stopped" if session else "stopped before the model was there")
        return INTERRUPTED
    finally:
        if session and arguments.save:
            save(session, arguments.save)


def save(session: ChatSession, path: str) -> None:
    """Saves the conversation, in the system's folder for temporary files where the path has become unwritable."""
    from nbutils.chat.transcript import write_transcript  # imports torch

    try:
        saved = write_transcript(path, session.transcript())
    except UserError as error:
        _say(str(error))
        saved = write_transcript(Path(mkdtemp(prefix="smallchat-")) / "transcript.json", session.transcript())
    _say(f"the transcript is in {shown(saved)}")


def _session(arguments: argparse.Namespace) -> tuple[ChatSession, Run | None]:
    """The session that the arguments ask for, and the run that its model is of; says what it talks to."""
    from nbutils.chat.session import ChatSession  # imports torch
    from nbutils.chat.transcript import read_transcript

    sampling = Sampling(**{name: value for name, value in vars(arguments).items() if name in Sampling.model_fields})
    settings = sampling.model_dump() | {"system": arguments.system}
    if arguments.engine == LLAMACPP:
        from nbutils.chat import llama  # imports torch

        loaded, line = llama.load(arguments.model), "context extension: none, as always with llama.cpp"
        settings["engine"] = llama.LlamaEngine
    else:
        loaded = load(arguments.model)
        extension, why = chosen_extension(arguments.context_extension, loaded.run)
        line = in_effect(extension, why, loaded.model)
        settings["context_extension"] = extension
    session = ChatSession(loaded.model, loaded.tokenizer, **settings)
    if arguments.load:
        session.restore(read_transcript(arguments.load))
    _say(f"{loaded.line}; it reads {session.context.limit:,} tokens at once ({line})")
    return session, loaded.run


def talk(session: ChatSession, interactive: bool, run: Run | None = None) -> int:
    """The conversation itself, line by line; the exit status."""
    if interactive:
        _say("exit or quit leaves, clear forgets, Ctrl-C stops a reply, arrow keys bring back what you typed")
        if run:
            _say("/origin shows where the words of the last reply stand in the training data")
        with _interrupt_stops(session):  # between reply and prompt too, where Ctrl-C would end the program
            converse(session, _typed_lines(), interactive, run)
        return 0
    lines = io.TextIOWrapper(sys.stdin.buffer, sys.stdin.encoding, "replace")  # one wrong byte must not end it
    return int(not converse(session, lines, interactive, run))


def converse(session: ChatSession, lines: Iterable[str], interactive: bool, run: Run | None) -> bool:
    """Answers line by line; whether every message got its reply. `run`: where replies are traced."""
    answered = True
    try:
        for line in lines:
            text = line.strip()
            if text.lower() in LEAVE:
                break
            if text.lower() == "clear":
                session.clear()
                _say("a new conversation")
            elif text.lower() == "/origin":
                _say("\n".join(_origin(session, run)))
            elif text:
                answered &= _answer(session, text, interactive)
    finally:
        session.close()
    return answered


def _origin(session: ChatSession, run: Run | None) -> Iterator[str]:
    """Where the words of the last reply stand in a run's training data, or why that cannot be told."""
    if run is None:
        yield "this model is of no run, so that there is no training data to look in"
    elif not (messages := session.messages) or messages[-1]["role"] != "assistant":
        yield "there is no reply yet"
    else:
        try:
            index = Index(run)
            yield from origin_lines(index, index.trace(messages[-1]["content"]))
        except UserError as error:
            yield str(error)


def _answer(session: ChatSession, text: str, interactive: bool) -> bool:
    """Writes a reply; False, with a word about it, for a message that gets none."""
    try:
        with _interrupt_stops(session):
            for piece in session.reply(text):
                print(visible(piece), end="", flush=True)
    except UserError as error:
        _say(str(error))
        return False
    except (RuntimeError, MemoryError) as error:  # out of memory, on any device: a shorter message may go through
        _say(f"\nThe reply failed ({first_line(error)}); the conversation is as it was before the message.")
        return False
    print(flush=True)
    if interactive or session.context.dropped:
        _say(f"{session.measured.summary} · context: {session.context.summary}")
    return True


def _typed_lines() -> Iterator[str]:
    """Lines from the keyboard, with history; Ctrl-C empties the line, Ctrl-D ends."""
    prompt = PromptSession[str]()
    ended: list[SystemExit] = []

    def leave() -> None:
        if ended and not prompt.app.is_done:
            prompt.app.exit(exception=ended[0])

    def end(number: int, _: object) -> None:
        ended.append(SystemExit(128 + number))
        if loop := prompt.app.loop:  # an exception raised here may meet a destructor, which swallows it
            loop.call_soon_threadsafe(leave)
        else:
            raise ended[0]

    _when_closed(end)
    while True:
        try:
            yield prompt.prompt(PROMPT, pre_run=leave)
        except KeyboardInterrupt:
            _say("exit or Ctrl-D leaves")
        except EOFError:
            return


def _when_closed(end: Callable[[int, object], None]) -> None:
    """Installs what ends the conversation, and does not lose it, where its window is closed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


@contextmanager
def _interrupt_stops(session: ChatSession) -> Iterator[None]:
    """While a reply is written, Ctrl-C stops it and not the program."""
    before = signal.signal(signal.SIGINT, lambda *_: session.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    line = f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text
    print(line, file=sys.stderr, flush=True)
