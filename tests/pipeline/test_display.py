"""What is printed is safe to print, whole, and readable without a terminal."""

from __future__ import annotations

import io

from nbutils.pipeline.display import Display, clean


def display() -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(out), out


def test_a_models_control_sequences_are_not_passed_on():
    assert clean("a\x1b[2Jb\x1b]0;title\x07c\x9bd\x00e") == "abcde"
    assert clean("tab\tand [bold]markup[/bold]") == "tab\tand [bold]markup[/bold]"


def test_lines_are_printed_as_they_end_and_rewritten_ones_once():
    shown, out = display()
    shown.output("10 %\r50 %\r")
    assert out.getvalue() == ""
    shown.output("100 %\nnext")
    assert out.getvalue() == "  │ 100 %\n"
    shown.flush()
    assert out.getvalue().endswith("  │ next\n")


def test_a_secret_cut_in_two_is_hidden(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    shown, out = display()
    shown.output("token hf_123")
    shown.output("4567890\n")
    assert "4567890" not in out.getvalue() and "[secret]" in out.getvalue()
