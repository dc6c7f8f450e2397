"""Progress of the scoring: lines where nobody looks on, a bar that goes away where somebody may."""

from __future__ import annotations

from nbutils.evaluate import display


def test_headless_a_line_a_minute_and_nothing_for_short_work():
    now = [0.0]
    lines: list[str] = []
    with display.progress(1000, lines.append, clock=lambda: now[0]) as count:
        for _ in range(10):
            now[0] += 20
            count(100)
    assert lines == [
        "300 of 1,000 requests (30%), about 2 minutes left",
        "600 of 1,000 requests (60%), about 80 seconds left",
        "900 of 1,000 requests (90%), about 20 seconds left",
    ]


def test_the_bar_of_a_notebook_leaves_nothing_behind(monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, what) -> None:
            shown.append(what.data)

    monkeypatch.setattr(display, "interactive", lambda: True)
    monkeypatch.setattr(display, "show", lambda what, **_: (shown.append(what.data), Handle())[1])
    now = [0.0]
    with display.progress(100, clock=lambda: now[0]) as count:
        for _ in range(4):
            now[0] += 2.5
            count(25)
    assert len(shown) == 4 and 'value="50"' in shown[0] and shown[-1] == ""
