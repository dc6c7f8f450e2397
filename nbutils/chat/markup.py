"""What the chat widget shows, as HTML strings.

Text that a person or a model wrote is untrusted: a few marks of Markdown, everything else escaped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from html import escape, unescape
from itertools import groupby
from math import log10
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

from nbutils.chat.session import Context
from nbutils.core.chat_engine.reply import Measured
from nbutils.core.files import Json
from nbutils.core.origin.command import NOTHING, description
from nbutils.core.origin.index import WORD, Index, Span
from nbutils.core.text import counted

NAMES = {"user": "You", "assistant": "Model", "system": "System"}
LONGEST = 8_000
"""Characters up to which Markdown is read; longer text is shown as it is, so that nobody waits for the parser."""


class Traced(NamedTuple):
    """A reply that was looked up in the training data: its HTML with the spans underlined, and what is below it."""

    body: str
    fold: str


_SCHEMES = ("http", "https", "mailto")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb]")


@lru_cache(maxsize=512)
def markdown(text: str) -> str:
    """HTML of a reply: paragraphs, emphasis, lists, quotes, headings, code and links to http, https and mailto.

    Raw HTML, images and every other link stay visible as the text that they are.
    """
    return plain(text) if len(text) > LONGEST else str(_PARSER.render(text))


def plain(text: str) -> str:
    """HTML of a text that is shown as it was typed, line breaks included."""
    return f'<p class="sc-plain">{escape(text)}</p>'


def without_controls(text: str) -> str:
    """The text with a replacement character for each control character but tab and line feed."""
    return _INVISIBLE.sub("\ufffd", text)


def _safe_link(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.disable(["image", "reference"])
    parser.enable("strikethrough")
    parser.validateLink = _safe_link  # type: ignore[method-assign]
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("fence", RendererHTML.code_block)  # names no language
    return parser


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    href = escape(str(tokens[index].attrGet("href") or ""))
    return f'<a href="{href}" target="_blank" rel="noopener noreferrer nofollow">' if href else "<a>"  # of `[text]()`


_PARSER = _parser()


def bubble(message: Json, traced: Mapping[str, Traced], *, state: str = "", writing: bool = False) -> str:
    """One message; `traced` has the replies that are, by their text, `state` is "" or a note such as "no longer read",
    `writing` shows a cursor at the end."""
    role, text = message["role"], without_controls(message["content"])
    body, fold = markdown(text) if role == "assistant" else plain(text), ""
    if writing:
        body += '<span class="sc-cursor" aria-hidden="true"></span>'
    elif role == "assistant" and not text:
        body = '<p class="sc-note">(nothing)</p>'
    elif role == "assistant" and message["content"] in traced:
        body, fold = traced[message["content"]]
    note = f'<span class="sc-state">{escape(state)}</span>' if state else ""
    foot = _footer(message, text) + fold if role == "assistant" and not writing else ""
    faded = " sc-faded" if state else ""
    return (
        f'<article class="sc-bubble sc-{role}{faded}" aria-label="{NAMES[role]}">'
        f'<div class="sc-who">{NAMES[role]}{note}</div><div class="sc-text" dir="auto">{body}</div>{foot}</article>'
    )


def with_origins(text: str, index: Index) -> Traced:
    """A reply with its spans in the training data underlined, the long and rare ones more, and where they stand."""
    shown, spans = without_controls(text), index.trace(text)
    if not spans:
        return without_origins(text, NOTHING)
    folds = ""
    for number, span in enumerate(spans):
        head, *places = description(index, span, _safe, "<b>{}</b>: {}<mark>{}</mark>{}")
        items = "".join(f'<li dir="auto">{place}</li>' for place in places)
        folds += f'<details data-span="{number}"><summary dir="auto">{head}</summary><ul>{items}</ul></details>'
    summary = f"in the training data: {counted(len(spans), 'passage')}"
    fold = f'<details class="sc-origins"><summary>{summary}</summary>{folds}</details>'
    return Traced(_underlined(markdown(shown), text, spans, index.read), fold)


def without_origins(text: str, why: str) -> Traced:
    """A reply without anything underlined, and the reason below it."""
    return Traced(markdown(without_controls(text)), f'<div class="sc-origins">{escape(why)}</div>')


def _safe(text: str) -> str:
    return escape(without_controls(text))


def _strength(span: Span) -> int:
    """From 1 to 3: a level for each six words, one less for each ten times as often."""
    return max(1, min(3, span.words // 6 - int(log10(span.count))))


def _underlined(html: str, text: str, spans: Sequence[Span], read: Callable[[str], str]) -> str:
    """The HTML of a text with its spans underlined: word for word, since marks of Markdown are no more there.

    `read` changes characters as the index does; in the HTML they are those of the text.
    """
    strongest = sorted(range(len(spans)), key=lambda number: -_strength(spans[number]))
    words = [*WORD.finditer(read(text))]
    names, done = [word[0] for word in words], 0

    def number_of(word: str) -> int | None:
        nonlocal done
        with suppress(ValueError):  # it stands otherwise in the text
            done = names.index(read(word).strip(), done) + 1
            at = words[done - 1].start()
            return next((number for number in strongest if spans[number].start <= at < spans[number].end), None)
        return None

    def marked(part: str) -> Iterator[str]:
        shown = 0
        for number, group in groupby([(number_of(word[0]), word) for word in WORD.finditer(part)], itemgetter(0)):
            if number is not None:
                first, *_, last = 2 * [word for _, word in group]  # one word is both
                yield escape(part[shown : first.start()])
                yield f'<span class="sc-origin sc-origin-{_strength(spans[number])}" data-span="{number}">'
                yield f"{escape(part[first.start() : last.end()])}</span>"
                shown = last.end()
        yield escape(part[shown:])

    parts = re.split("(<[^>]*>)", html)
    return "".join(part if part.startswith("<") else "".join(marked(unescape(part))) for part in parts)


def conversation(messages: Sequence[Json], context: Context, traced: Mapping[str, Traced]) -> str:
    """All messages, those of dropped turns faded, those that go next marked."""
    next_to_go = context.dropped + context.next_dropped
    parts, turn = [], 0
    for message in messages:
        turn += message["role"] == "user"
        state = "no longer read" if turn <= context.dropped else "goes next" if turn <= next_to_go else ""
        parts.append(bubble(message, traced, state=state if turn else ""))  # a system message always stays
    return "".join(parts)


def meter(context: Context) -> str:
    """Tokens used of the limit, as a bar and in words, with what is gone and what goes next."""
    filled = 100.0 * context.used / context.limit
    level = " sc-full" if context.next_dropped else ""
    return (
        f'<div class="sc-meter"><div class="sc-bar" role="progressbar" aria-label="Context used" aria-valuemin="0" '
        f'aria-valuemax="{context.limit}" aria-valuenow="{context.used}">'
        f'<div class="sc-fill{level}" style="width:{filled:.1f}%"></div></div>'
        f"<span>{escape(context.summary)}</span></div>"
    )


def download_link(transcript: Json) -> str:
    """A link that saves the transcript from the browser, without any server."""
    data = base64.b64encode(json.dumps(transcript, ensure_ascii=False, indent=2).encode()).decode()
    return f'<a class="sc-link" download="transcript.json" href="data:application/json;base64,{data}">Download</a>'


def notice(text: str) -> str:
    """A remark or an error, read out by screen readers."""
    return f'<div class="sc-notice" role="alert">{escape(text)}</div>' if text else ""


def announcement(text: str) -> str:
    """Text for screen readers alone."""
    return f'<div class="sc-hidden" role="status">{escape(text)}</div>'


def _footer(message: Json, text: str) -> str:
    cost = escape(Measured(**message["measured"]).summary) if message.get("measured") else ""
    written = escape(text)  # Markdown and all
    copy = f'<button type="button" class="sc-copy" aria-label="Copy this reply" data-text="{written}">Copy</button>'
    return f'<div class="sc-foot"><span>{cost}</span>{copy}</div>'
