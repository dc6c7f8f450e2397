"""The rolling window of a chat: which turns the model still reads, and whether its context is extended.

Plain arithmetic over token counts; the same conversation always gets the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbutils.core.errors import UserError

KEPT = 2 / 3
"""Share of the room for history that stays when turns are dropped, so that many turns fit before the next time."""


class MessageTooLongError(UserError):
    """A single message that cannot fit the context; `tokens` is its size, `room` what there is."""

    def __init__(self, tokens: int, room: int) -> None:
        super().__init__(f"The message is {tokens:,} tokens long and there is room for {room:,}: shorten it.")
        self.tokens = tokens
        self.room = room


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

    def plan(self, fixed: int, turns: Sequence[int], newest: int, dropped: int) -> Plan:
        """The plan for the next reply.

        `fixed` tokens are always read (system message, header of the reply); `turns` are the sizes of the earlier
        turn pairs, of which the first `dropped` are gone already; `newest` is the size of the newest user message.
        MessageTooLongError if that cannot fit even alone.
        """
        if fixed + newest > self.room:
            raise MessageTooLongError(newest, max(0, self.room - fixed))
        if fixed + sum(turns[dropped:]) + newest > self.room:
            dropped = self.after_eviction(fixed, turns, newest, dropped)
        used = fixed + sum(turns[dropped:]) + newest
        beyond = dropped > 0 or used + self.max_new_tokens > self.trained
        return Plan(dropped, extended=self.limit > self.trained and beyond)

    def after_eviction(self, fixed: int, turns: Sequence[int], newest: int, dropped: int) -> int:
        """How many turns are gone once the oldest are dropped: history then fills no more than KEPT of the room.

        The count does not depend on `newest` unless that is very long, so that the history which remains can be read
        before the message is there.
        """
        history = fixed + sum(turns[dropped:])
        while dropped < len(turns) and (history > KEPT * self.room or history + newest > self.room):
            history -= turns[dropped]
            dropped += 1
        return dropped
