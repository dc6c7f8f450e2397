"""The interactive curves of notebook 03 in a real JupyterLab: drawn by plotly, to hover and to zoom."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CELL = """
from nbutils.core.history import History
from nbutils.metrics.display import interactive_curves
from tests.metrics.histories import history_rows, session
interactive_curves(History.of([*history_rows(60), session(2, 600)]))
"""
RANGES = "plot => ['xaxis', 'xaxis3', 'xaxis4', 'xaxis7'].map(name => plot._fullLayout[name].range.map(Math.round))"


def test_curves_hover_and_zoom_together(open_notebook):
    notebook = open_notebook("curves.ipynb", [CELL])
    plot, mouse = notebook.page.locator(".js-plotly-plot"), notebook.page.mouse
    expect(plot.locator(".xtitle, .x3title, .x4title").first).to_be_visible()
    notebook.screenshot("curves", plot)

    def shown():
        """From which step to which all four panels show."""
        (all_together,) = {tuple(found) for found in plot.evaluate(RANGES)}
        return all_together

    first, last = shown()
    box = plot.locator('.nsewdrag[data-subplot="x7y7"]').bounding_box()  # of the loss
    quarter, middle = box["width"] / 4, box["y"] + box["height"] / 2
    mouse.move(box["x"] + 2 * quarter, middle)
    expect(plot.locator(".hoverlayer .legend, .hoverlayer .hovertext").first).to_be_visible()
    mouse.move(box["x"] + quarter, middle)
    mouse.down()
    mouse.move(box["x"] + 2 * quarter, middle + 40, steps=5)
    mouse.up()
    moved = "low => document.querySelector('.js-plotly-plot')._fullLayout.xaxis7.range[0] > low + 1"
    notebook.page.wait_for_function(moved, arg=first)
    assert first < shown()[0] < shown()[1] < last
