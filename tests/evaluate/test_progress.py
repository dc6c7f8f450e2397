"""Progress of the scoring: lines where nobody looks on, a bar that goes away where somebody may."""

import re

from nbutils.evaluate import scorer


def test_headless_a_line_a_minute_and_nothing_for_short_work(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with scorer.progress(1000, lines.append) as count:
        for now[0] in range(20, 220, 20):
            count(100)
    assert re.findall(r"\d+/1000", "\n".join(lines)) == ["300/1000", "600/1000", "900/1000"]


def test_the_bar_of_a_notebook_leaves_nothing_behind(monkeypatch, capsys):
    monkeypatch.setattr(scorer, "interactive", lambda: True)
    monkeypatch.setattr(scorer, "BAR_AFTER", 0.0)
    lines = []
    with scorer.progress(100, lines.append) as count:
        count(50)
        count(50)
    *drawn, blank, end = capsys.readouterr().err.split("\r")
    assert "/100" in "".join(drawn) and not blank.strip() and not end and not lines
