"""What every engine of a chat knows: the token ids of a conversation, their sizes, and which turns still fit."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from nbutils.core.chat_engine.reply import Measured
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.template import ChatMLTemplate, OwnTemplate, has_own_template
from nbutils.core.chat_engine.window import Plan, Sizes, Window
from nbutils.core.chatml import Conversation, Message
from nbutils.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """A reply that is asked for: the messages that `plan` keeps are read, `sampling` and `generator` choose the tokens,
    until `stopped` says so. What it costs is noted in `measured`. With `ahead` an engine that can reads between the
    tokens what the plan that follows will need.
    """

    messages: Conversation
    plan: Plan
    sampling: Sampling
    generator: torch.Generator
    stopped: Callable[[], bool] = lambda: False
    measured: Measured = field(default_factory=Measured)
    ahead: bool = False


class BaseEngine(ABC):
    """One model, trained on `trained` tokens at once and read up to `limit`; `ends` are the ids that end a reply."""

    extension: str

    def __init__(self, tokenizer: PreTrainedTokenizerBase, trained: int, limit: int) -> None:
        self.tokenizer = tokenizer
        self.trained = trained
        self.limit = limit
        self._template = (OwnTemplate if has_own_template(tokenizer) else ChatMLTemplate)(tokenizer)
        self.ends = self._template.ends
        self._background: threading.Thread | None = None
        self._hurry = threading.Event()

    @abstractmethod
    def write(self, request: Request) -> Iterator[str]:
        """The reply, piece by piece."""

    @abstractmethod
    def read_ahead(self, plan: Plan, ids: list[int], interrupted: Callable[[], bool]) -> bool:
        """Reads what a plan will need, in small pieces; whether there is time and memory for more. UserError where the
        engine has ended."""

    def prepare(self, messages: Conversation, dropped: int, sampling: Sampling) -> None:
        """Starts reading in the background what the next reply will need, and what the plan that follows will."""
        self.pause()
        self._hurry.clear()
        arguments = list(messages), dropped, sampling
        self._background = threading.Thread(target=self._prepare, args=arguments, name="chat-reads-ahead")
        self._background.start()

    def _prepare(self, messages: list[Message], dropped: int, sampling: Sampling) -> None:
        window, sizes = self.window(sampling), self.sizes(messages)
        with suppress(UserError):  # a system message may leave no room
            plans = [window.plan(sizes, dropped)]
            if coming := window.coming(sizes, dropped):
                plans.append(coming.plan)
            for plan in dict.fromkeys(plans):
                if not self.read_ahead(plan, self.ids(messages, plan, prompt=False), self._hurried):
                    return

    def _hurried(self) -> bool:
        # The main thread is over when the program ends: the background must not keep it waiting.
        return self._hurry.is_set() or not threading.main_thread().is_alive()

    def pause(self) -> None:
        """Ends the background reading; what it has read stays."""
        self._hurry.set()
        self.wait()

    def wait(self) -> None:
        """Waits until the background reading is through."""
        if self._background is not None:
            self._background.join()

    def forget(self) -> None:
        """Frees what was kept for this conversation."""
        self.pause()

    def close(self) -> None:
        """Frees all: no reply follows."""
        self.forget()

    def window(self, sampling: Sampling) -> Window:
        """The window for replies of that length. UserError where a reply alone would fill the context."""
        if sampling.max_new_tokens > self.limit // 2:
            raise UserError(
                f"max_new_tokens is {sampling.max_new_tokens}, more than half of the context of {self.limit} tokens; "
                f"choose at most {self.limit // 2}."
            )
        return Window(self.trained, self.limit, sampling.max_new_tokens)

    def sizes(self, messages: Conversation) -> Sizes:
        """Sizes in tokens, each turn's by itself; a user's message at the end is the newest, and no turn yet."""
        system, turns = _turns(messages)
        newest = turns.pop() if messages and messages[-1]["role"] == "user" else []
        hello: list[Message] = [{"role": "user", "content": "Hi"}]
        header = self._size(hello, prompt=True) - self._size(hello)
        return Sizes(header + self._size(system), [self._size(turn) for turn in turns], self._size(newest))

    def _size(self, messages: Conversation, *, prompt: bool = False) -> int:
        return len(self._template.ids(messages, prompt=prompt))

    def plan(self, messages: Conversation, dropped: int, sampling: Sampling) -> Plan:
        """What is read for the next reply."""
        return self.window(sampling).plan(self.sizes(messages), dropped)

    def ids(self, messages: Conversation, plan: Plan, *, prompt: bool) -> list[int]:
        """Token ids of the messages that the plan keeps, with the header of a reply behind them if `prompt`."""
        system, turns = _turns(messages)
        kept = [*system, *(message for turn in turns[plan.dropped :] for message in turn)]
        return self._template.ids(kept, prompt=prompt)


def _turns(messages: Conversation) -> tuple[list[Message], list[list[Message]]]:
    """The system's messages at the start, never dropped, and the turns: a user's message and what follows it."""
    system = list(takewhile(lambda message: message["role"] == "system", messages))
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns
