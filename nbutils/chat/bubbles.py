"""What the chat widget shows, as HTML strings. Every text that a person or a model wrote goes through `markup`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from nbutils.chat.markup import markdown, plain, without_controls
from nbutils.chat.session import Context
from nbutils.core.session import Measured

NAMES = {"user": "You", "assistant": "Model", "system": "System"}


def bubble(message: dict[str, Any], *, state: str = "", writing: bool = False) -> str:
    """One message; `state` is "" or a note such as "no longer read", `writing` shows a cursor at the end."""
    role = message["role"]
    text = message["content"]
    body = markdown(text) if role == "assistant" else plain(text)
    if writing:
        body += '<span class="sc-cursor" aria-hidden="true"></span>'
    elif role == "assistant" and not text:
        body = '<p class="sc-note">(nothing)</p>'
    note = f'<span class="sc-state">{escape(state)}</span>' if state else ""
    foot = "" if writing else _footer(message)
    faded = " sc-faded" if state else ""
    return (
        f'<article class="sc-bubble sc-{role}{faded}" aria-label="{NAMES[role]}">'
        f'<div class="sc-who">{NAMES[role]}{note}</div><div class="sc-text" dir="auto">{body}</div>{foot}</article>'
    )


def conversation(messages: Sequence[dict[str, Any]], context: Context) -> str:
    """All messages, those of dropped turns faded, those that go next marked."""
    parts, turn = [], 0
    for message in messages:
        turn += message["role"] == "user"
        state = ""
        if message["role"] != "system" and turn <= context.dropped:
            state = "no longer read"
        elif message["role"] != "system" and soon(context) and turn <= context.dropped + context.next_dropped:
            state = "goes next"
        parts.append(bubble(message, state=state))
    return "".join(parts)


def soon(context: Context) -> bool:
    """Whether the window is so full that it is worth saying which turns go next."""
    return context.next_dropped > 0 and context.used - context.fixed > 0.75 * context.room


def meter(context: Context) -> str:
    """Tokens used of the limit, as a bar and in words, with what is gone and what goes next."""
    words = [f"{context.used:,} of {context.limit:,} tokens"]
    if context.dropped:
        words.append(f"the first {_turns(context.dropped)} no longer read")
    if soon(context):
        words.append(f"next to go: {_turns(context.next_dropped)}")
    filled = min(100.0, 100.0 * context.used / context.limit)
    level = " sc-full" if soon(context) else ""
    return (
        f'<div class="sc-meter"><div class="sc-bar" role="progressbar" aria-label="Context used" aria-valuemin="0" '
        f'aria-valuemax="{context.limit}" aria-valuenow="{min(context.used, context.limit)}">'
        f'<div class="sc-fill{level}" style="width:{filled:.1f}%"></div></div>'
        f"<span>{escape(' · '.join(words))}</span></div>"
    )


def download_link(transcript: dict[str, Any]) -> str:
    """A link that saves the transcript from the browser, without any server."""
    data = base64.b64encode(json.dumps(transcript, ensure_ascii=False, indent=2).encode()).decode()
    return f'<a class="sc-link" download="transcript.json" href="data:application/json;base64,{data}">Download</a>'


def notice(text: str) -> str:
    """A remark or an error, read out by screen readers."""
    return f'<div class="sc-notice" role="alert">{escape(text)}</div>' if text else ""


def announcement(text: str) -> str:
    """Text for screen readers alone."""
    return f'<div class="sc-hidden" role="status">{escape(text)}</div>'


def speed(measured: dict[str, Any]) -> str:
    """Tokens per second and time to first token of a reply, in words."""
    cost = Measured(**measured)
    words = [f"{cost.new_tokens} tokens"]
    if cost.tokens_per_second is not None:
        words.append(f"{cost.tokens_per_second:.1f} tokens/s")
    if cost.seconds_to_first_token is not None:
        words.append(f"first after {cost.seconds_to_first_token:.2f} s")
    if cost.ended != "end":
        words.append({"stopped": "stopped", "length": "longest reply reached"}[cost.ended])
    return " · ".join(words)


def _footer(message: dict[str, Any]) -> str:
    if message["role"] != "assistant":
        return ""
    cost = escape(speed(message["measured"])) if message.get("measured") else ""
    text = escape(without_controls(message["content"]))  # as it was written, Markdown and all
    copy = f'<button type="button" class="sc-copy" aria-label="Copy this reply" data-text="{text}">Copy</button>'
    return f'<div class="sc-foot"><span>{cost}</span>{copy}</div>'


def _turns(count: int) -> str:
    return f"{count} turn" + ("" if count == 1 else "s")
