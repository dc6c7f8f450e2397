"""The training figure: any history gives a figure, final values are written on it, the live one redraws sparingly."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from nbutils.core import charts
from nbutils.core.charts import THEMES, LiveFigure, draw_metric, file_of, new_figure, training_figure, write_values
from nbutils.core.history import History
from nbutils.core.training_log import LOSS
from tests.metrics.histories import evaluation, history_rows, session


def loss_figure(rows):
    """The loss alone."""
    figure, (axes,) = new_figure(1, 1, theme="light", height=3.2)
    draw_metric(axes, History.of(rows), LOSS)
    return figure


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [evaluation(0, 8.3)],
        history_rows(1),
        history_rows(3, eval_loss=None),
        history_rows(20, loss=lambda _: math.nan),
        history_rows(20, loss=lambda f: math.inf if f > 0.5 else 4.0),
        history_rows(20, learning_rate=None, grad_norm=None),
    ],
    ids=["empty", "one evaluation", "one row", "no evaluation", "all NaN", "infinite", "nulls"],
)
def test_any_history_gives_a_figure(rows):
    assert file_of(training_figure(History.of(rows)), "png").startswith(b"\x89PNG")


FLAT = {"noise": 0.0, "eval_loss": lambda _: 4.5}
EVENTS = [
    *history_rows(30),
    session(2, 150),
    *history_rows(60, skipped_steps=3)[32:],
    {**history_rows(61, skipped_steps=3)[-2], "loss": math.nan},
]


@pytest.mark.parametrize(
    "rows,there,absent",
    [
        (history_rows(60, loss=lambda _: 4.25, **FLAT), {"4.25", "4.50", "evaluation", "training, smoothed"}, set()),
        (  # a line that breaks off has no final value
            history_rows(60, loss=lambda f: math.nan if f > 0.5 else 4.25, **FLAT),
            {"4.50", "training, smoothed", "not a number (30 rows)"},
            {"4.25"},
        ),
        (EVENTS, {"resumed (1×)", "fp16 steps skipped (3)", "not a number (1 row)"}, set()),
    ],
    ids=["final values", "broken off", "events"],
)
def test_what_is_written_in_the_figure(rows, there, absent):
    found = {text.get_text() for text in loss_figure(rows).findobj(Text)}
    assert there <= found and not absent & found


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_labels_move_apart_in_their_order_and_no_further_than_they_must(values):
    _, (axes,) = new_figure(1, 1, theme="light", height=3.2)
    axes.plot(values)
    write_values(axes, LOSS, [(value, "red") for value in values])
    gap = 13 / axes.get_window_extent().height * np.ptp(axes.get_ylim())
    assert not any(a.get_window_extent().overlaps(b.get_window_extent()) for a, b in pairwise(axes.texts))
    places = np.array([text.xy[1] for text in axes.texts])
    moved = places - np.sort(values)
    assert (moved >= 0).all() and moved[0] == 0
    assert (np.isclose(moved[1:], 0) | np.isclose(np.diff(places), gap)).all()


def test_svg_is_reproducible():
    rows = history_rows(30)
    assert file_of(loss_figure(rows), "svg") == file_of(loss_figure(rows), "svg")


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("name", THEMES)
def test_colours_stand_out_from_the_page(name):
    theme = THEMES[name]
    page = luminance(theme.page)
    for colour in (theme.ink, *theme.curves):
        dark, light = sorted((luminance(colour), page))
        assert (light + 0.05) / (dark + 0.05) > 4.5, colour  # WCAG AA for text


def test_final_values_are_told_apart_by_their_colours():
    rows = history_rows(30, noise=0.0)
    rows[0] |= {"supervise": "all"}
    rows[-1] |= {"eval_loss_all_tokens": 3.5}
    assert {text.get_color() for text in loss_figure(rows).axes[0].texts} == set(THEMES["light"].curves[:3])


def test_the_axes_of_a_running_training_span_its_plan():
    assert training_figure(History.of(history_rows(30)), 1000).axes[0].get_xlim() == (0, 1000)


def test_live_figure_redraws_at_most_every_five_seconds(monkeypatch):
    drawn, now, live = [], [0.0], LiveFigure()
    handle = SimpleNamespace(update=drawn.append)
    monkeypatch.setattr(charts, "display", lambda image, **_: drawn.append(image) or handle)
    monkeypatch.setattr(charts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for now[0], images in ((0.0, 1), (4.9, 1), (5.0, 2), (9.9, 2)):
        live.update(history_rows(1))
        assert len(drawn) == images
    live.update([], now=True)
    assert len(drawn) == 3
