"""What is printed is safe to print, whole, and readable without a terminal."""

from nbutils.pipeline.display import Display, clean


def test_a_models_control_sequences_are_not_passed_on():
    assert clean("a\x1b[2Jb\x1b]0;title\x07c\x9bd\x00e") == "abcde"
    assert clean("tab\tand [bold]markup[/bold]") == "tab\tand [bold]markup[/bold]"


def test_lines_are_printed_as_they_end_and_rewritten_ones_once(capsys):
    display = Display()
    display.output("10 %\r50 %\r")
    assert capsys.readouterr().out == ""
    display.output("100 %\nnext")
    assert capsys.readouterr().out == "  │ 100 %\n"
    display.flush()
    assert capsys.readouterr().out == "  │ next\n"
