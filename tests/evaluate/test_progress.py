"""Progress of the scoring: lines where nobody looks on, a bar that goes away where somebody may."""

from __future__ import annotations

from nbutils.evaluate import progress
from nbutils.evaluate.progress import Progress


def test_headless_a_line_a_minute_and_nothing_for_short_work():
    now = [0.0]
    lines: list[str] = []
    with Progress(1000, lines.append, clock=lambda: now[0]) as counted:
        for _ in range(10):
            now[0] += 20
            counted.update(100)
    assert lines == [
        "300 of 1,000 requests (30%), about 2 min left",
        "600 of 1,000 requests (60%), about 80 s left",
        "900 of 1,000 requests (90%), about 20 s left",
    ]
    with Progress(10, lines.append, off=True, clock=lambda: now[0]) as counted:
        now[0] += 500
        counted.update(5)
    assert len(lines) == 3


def test_the_bar_of_a_notebook_leaves_nothing_behind(monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, what) -> None:
            shown.append(what.data)

    monkeypatch.setattr(progress, "interactive", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda what, **_: (shown.append(what.data), Handle())[1])
    now = [0.0]
    with Progress(100, lambda _: None, clock=lambda: now[0]) as counted:
        for _ in range(4):
            now[0] += 2.5
            counted.update(25)
    assert len(shown) == 4 and 'value="50"' in shown[0] and shown[-1] == ""
