"""What of the source code counts in a cache key."""

from __future__ import annotations

from nbutils.core.run.key import normalised


def test_comments_docstrings_and_layout_do_not_count():
    plain = "def f(x):\n    return x + 1\n"
    dressed = '"""Module."""\n# why\ndef f(x):\n    """Adds one."""\n\n    return (x\n            + 1)  # here\n'
    assert normalised(plain) == normalised(dressed)
    assert normalised(plain) != normalised(plain.replace("1", "2"))


def test_the_sentence_of_an_error_does_not_count_and_its_condition_does():
    plain = "if x:\n    raise UserError(f'{x} is wrong')\n"
    assert normalised(plain) == normalised(plain.replace("is wrong", "was not understood"))
    assert normalised(plain) != normalised(plain.replace("if x", "if not x"))
    assert normalised(plain) != normalised(plain.replace("UserError", "ValueError"))


def test_magics_are_code():
    assert normalised("%matplotlib inline\nx = 1") != normalised("%matplotlib widget\nx = 1")
