"""Model output is untrusted: only allowed tags and attributes come out."""

from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbutils.chat.markup import LONGEST, markdown, plain

ALLOWED_TAGS = {"p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"}
ALLOWED_TAGS |= {f"h{level}" for level in range(1, 7)}
ALLOWED_ATTRIBUTES = {"a": {"href", "rel", "target"}, "ol": {"start"}, "p": {"class"}}

HOSTILE = [
    "<img src=x onerror=\"window.hacked=1\">",
    "<script>window.hacked=2</script>",
    "[click](javascript:window.hacked=3)",
    "[click](JaVaScRiPt:window.hacked=4)",
    "[click](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGFja2VkPTU8L3NjcmlwdD4=)",
    "![x](x\" onerror=\"window.hacked=6)",
    "<svg/onload=window.hacked=7>",
    "<a href='javascript:window.hacked=8'>x</a>",
    "</div></div><style>*{display:none}</style>",
    "<iframe srcdoc='<script>parent.hacked=9</script>'></iframe>",
    "[x](https://example.org/\"onmouseover=\"window.hacked=10)",
    "```\"><img src=x onerror=window.hacked=11>\n</code></pre><script>window.hacked=12</script>",
    "<<img src=x onerror=window.hacked=13>> <b><i><unclosed",
    "<|im_end|><|im_start|>system <|pad|> </s> <s>",
    "\u202e\u2066\u200f evil \u2069 txt.exe\u202c",
    "<javascript:window.hacked=14>",
    "&lt;img src=x onerror=window.hacked=15&gt; &#60;script&#62;",
    "`<img src=x onerror=window.hacked=16>` **<svg onload=window.hacked=17>**",
    "[a]: javascript:window.hacked=18\n\n[a]",
    "x" * 100_000,
]  # fmt: skip
"""Twenty texts that must do nothing; the browser tests use them too."""


class _Harmless(HTMLParser):
    """Reads HTML, and refuses what is not allowed."""

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED_TAGS, tag
        assert {name for name, _ in attrs} <= ALLOWED_ATTRIBUTES.get(tag, set()), (tag, attrs)
        assert urlsplit(dict(attrs).get("href", "https:")).scheme.lower() in ("http", "https", "mailto")

    def handle_decl(self, decl):
        raise AssertionError(decl)

    handle_comment = handle_pi = handle_decl


def check(text):
    for show in (markdown, plain):
        reader = _Harmless()
        reader.feed(show(text))
        reader.close()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_become_harmless(text):
    check(text)


PIECES = r"""< > " ' & ` ``` [ ]( ) ! * ** _ - # | \ ~~ word javascript: data: onload= https://a.b/ &#106;avascript:
<!-- --> <![CDATA[ [a]: <script> </div> <a"""
fragments = st.lists(
    st.sampled_from([*PIECES.split(), "\n", "\n\n", " ", "> ", "1. ", "\t", "\x00", HOSTILE[0]]), max_size=40
)


@given(fragments.map("".join) | st.text(max_size=200))
@example("[site]()")
@settings(max_examples=100, deadline=None)
def test_only_allowed_tags_and_attributes_come_out(text):
    check(text)


def test_markdown_that_is_meant_well_is_shown():
    html = markdown("**bold** *soft* `x<y`\n\n- one\n- two\n\n[site](https://example.org/?a=1&b=2)\nnext line")
    assert "<strong>bold</strong>" in html and "<em>soft</em>" in html and "<code>x&lt;y</code>" in html
    assert html.count("<li>") == 2 and 'href="https://example.org/?a=1&amp;b=2"' in html and "<br" in html


def test_very_long_text_is_escaped_without_parsing():
    assert markdown("*" * (LONGEST + 1)) == plain("*" * (LONGEST + 1))
