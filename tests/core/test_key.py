"""What of the source code counts in a cache key."""

from __future__ import annotations

import pytest

from nbutils.core.run.key import normalised

ADDS, RAISES = "def f(x):\n    return x + 1\n", "if x:\n    raise UserError(f'{x} is wrong')\n"
DRESSED = '"""Module."""\n# why\ndef f(x):\n    """Adds one."""\n\n    return (x\n            + 1)  # here\n'


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (ADDS, DRESSED, True),
        (ADDS, ADDS.replace("1", "2"), False),
        (RAISES, RAISES.replace("is wrong", "was not understood"), True),
        (RAISES, RAISES.replace("if x", "if not x"), False),
        (RAISES, RAISES.replace("UserError", "ValueError"), False),
        ("%matplotlib inline\nx = 1", "%matplotlib widget\nx = 1", False),
    ],
)
def test_code_counts_and_comments_docstrings_layout_and_the_sentences_of_errors_do_not(before, after, same):
    assert (normalised(before) == normalised(after)) is same
