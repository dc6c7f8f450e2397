"""The rolling window of a chat: which turns the model still reads, and whether its context is extended.

Plain arithmetic over token counts; the same conversation always gets the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbutils.core.errors import UserError

EXTENSIONS = ("dynamic", "yarn", "linear", "none")
"""Ways to read beyond the trained length (see `nbutils.core.chat_engine.rotation`)."""

FACTOR = 2
"""How many times the trained length an extended context has."""

KEPT = 2 / 3
"""Share of the room for history that stays when turns are dropped, so that many turns fit before the next time."""


class MessageTooLongError(UserError):
    """A single message that cannot fit the context; `tokens` is its size, `room` what there is."""

    def __init__(self, tokens: int, room: int) -> None:
        super().__init__(f"The message is {tokens:,} tokens long and there is room for {room:,}: shorten it.")
        self.tokens = tokens
        self.room = room


@dataclass(frozen=True)
class Sizes:
    """Tokens of a conversation's parts: always read (system message, header of the reply); each earlier turn; the
    newest user message."""

    fixed: int
    turns: Sequence[int]
    newest: int = 0

    def used(self, dropped: int) -> int:
        """Tokens that are read when the first `dropped` turns are left out."""
        return self.fixed + sum(self.turns[dropped:]) + self.newest


@dataclass(frozen=True)
class Plan:
    """What the model reads: the number of oldest turns left out, and whether the extended rotation is used."""

    dropped: int
    extended: bool


@dataclass(frozen=True)
class Window:
    """Lengths in tokens: trained context, limit of the (extended) context, and the longest reply."""

    trained: int
    limit: int
    max_new_tokens: int

    @property
    def room(self) -> int:
        """Tokens for everything that is read before a reply."""
        return self.limit - self.max_new_tokens

    def plan(self, sizes: Sizes, dropped: int) -> Plan:
        """The plan for the next reply where the first `dropped` turns are gone already.

        MessageTooLongError if the newest message cannot fit even alone.
        """
        if sizes.fixed + sizes.newest > self.room:
            raise MessageTooLongError(sizes.newest, max(0, self.room - sizes.fixed))
        if sizes.used(dropped) > self.room:
            dropped = self.after_eviction(sizes, dropped)
        beyond = dropped > 0 or sizes.used(dropped) + self.max_new_tokens > self.trained
        return Plan(dropped, extended=self.limit > self.trained and beyond)

    def after_eviction(self, sizes: Sizes, dropped: int) -> int:
        """How many turns are gone once the oldest are dropped: history then fills no more than KEPT of the room.

        The count does not depend on the newest message unless that is very long, so that the history which remains
        can be read before the message is there.
        """
        allowed = min(KEPT * self.room, self.room - sizes.newest)
        while dropped < len(sizes.turns) and sizes.used(dropped) - sizes.newest > allowed:
            dropped += 1
        return dropped
