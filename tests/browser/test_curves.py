"""The interactive curves of notebook 03 in a real JupyterLab: drawn by plotly, to hover and to zoom."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SCREENSHOTS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CELL = """
from nbutils.core.history import History
from nbutils.metrics.display import interactive_curves
from tests.metrics.histories import history_rows, session
interactive_curves(History.of([*history_rows(60), session(2, 600)]))
"""
RANGES = "plot => ['xaxis', 'xaxis3', 'xaxis4', 'xaxis7'].map(name => plot._fullLayout[name].range.map(Math.round))"


def test_curves_hover_and_zoom_together(open_notebook):
    page = open_notebook("curves.ipynb", [CELL]).page
    plot = page.locator(".js-plotly-plot")
    expect(plot).to_have_count(1, timeout=60_000)
    expect(plot.locator(".xtitle, .x3title, .x4title").first).to_be_visible(timeout=20_000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    plot.screenshot(path=SCREENSHOTS / "curves.png")
    before = plot.evaluate(RANGES)
    assert len({tuple(r) for r in before}) == 1
    box = plot.locator('.nsewdrag[data-subplot="x7y7"]').bounding_box()  # of the loss
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    expect(plot.locator(".hoverlayer .legend, .hoverlayer .hovertext").first).to_be_visible(timeout=10_000)
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, middle + 40, steps=5)
    page.mouse.up()
    moved = "low => document.querySelector('.js-plotly-plot')._fullLayout.xaxis7.range[0] > low + 1"
    page.wait_for_function(moved, arg=before[0][0])
    after = plot.evaluate(RANGES)
    assert len({tuple(r) for r in after}) == 1  # all four panels together
    assert after[0][0] > before[0][0] and after[0][1] < before[0][1]
