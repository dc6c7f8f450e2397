"""Untrusted text as HTML: Markdown from an allow-list, everything else escaped."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt

LONGEST = 8_000
"""Characters up to which Markdown is read; longer text is shown as it is, so that nobody waits for the parser."""

ALLOWED_TAGS = {"p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"}
ALLOWED_TAGS |= {f"h{level}" for level in range(1, 7)}
ALLOWED_ATTRIBUTES = {"a": {"href", "rel", "target"}, "ol": {"start"}, "p": {"class"}}
_SCHEMES = ("http", "https", "mailto")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb]")


def markdown(text: str) -> str:
    """HTML of a reply: paragraphs, emphasis, lists, quotes, headings, code and links to http, https and mailto.

    Raw HTML, images and every other link stay visible as the text that they are.
    """
    text = without_controls(text)
    if len(text) > LONGEST:
        return plain(text)
    return _rendered(text)


@lru_cache(maxsize=512)
def _rendered(text: str) -> str:
    return str(_PARSER.render(text))


def plain(text: str) -> str:
    """HTML of a text that is shown as it was typed, line breaks included."""
    return f'<p class="sc-plain">{escape(without_controls(text))}</p>'


def without_controls(text: str) -> str:
    """The text with a replacement character for each control character but tab and line feed."""
    return _INVISIBLE.sub("\ufffd", text)


def _safe_link(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True, "maxNesting": 20})
    parser.disable(["image", "html_block", "html_inline", "reference"])
    parser.enable("strikethrough")
    parser.validateLink = _safe_link  # type: ignore[method-assign]
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("fence", _fence)
    return parser


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    href = escape(str(tokens[index].attrGet("href") or ""), quote=True)
    return f'<a href="{href}" target="_blank" rel="noopener noreferrer nofollow">'


def _fence(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return f"<pre><code>{escape(tokens[index].content)}</code></pre>\n"


_PARSER = _parser()
