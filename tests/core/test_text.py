"""Numbers, sizes and tables read as a person would write them."""

import pytest

from nbutils.core import text


@pytest.mark.parametrize(
    "shown,expected",
    {
        text.number(0.12345): "0.123",
        text.number(12345.6): "12,346",
        text.with_interval(0.02, -0.01, 0.05, "+"): "+0.020 [-0.010, +0.050]",
        text.size(512): "0.5 KiB",
        text.size(1.5 * 2**30): "1.5 GiB",
        text.duration(0.84): "0.8 seconds",
        text.duration(600): "10 minutes",
        text.markdown_table(["a", "b"], [["x|y", 1]]): "| a | b |\n|---|---|\n| x\\|y | 1 |",
    }.items(),
)
def test_text(shown, expected):
    assert shown == expected
