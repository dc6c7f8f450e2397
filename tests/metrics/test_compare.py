"""Several runs: curves over one another, differences in a table, refusal where the evaluation sets differ."""

from __future__ import annotations

from itertools import combinations

import pytest

from nbutils.core.charts import file_of
from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.training_log import LOSS
from nbutils.metrics.display import PLOTLY, comparison, comparison_figure, interactive_comparison
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import differences, read_runs
from tests.metrics.histories import history_rows, write_training


@pytest.fixture
def runs(tmp_path):
    """Two runs that share their evaluation set, one of another set, and two that name none."""
    for name, eval_hash in (("slow", "a"), ("fast", "a"), ("other", "b"), ("old", ""), ("older", "")):
        write_training(tmp_path / name, history_rows(5), eval_hash=eval_hash)
    return tmp_path


def test_what_differs_is_in_the_table(notebook):
    found = notebook.comparison
    assert found["learning_rate"] == {"slow": 1e-3, "fast": 1e-2}
    assert found["steps"] == {"slow": 600, "fast": 400}
    assert found["fraction"] == {"slow": 0.5, "fast": 1.0}, "of the data stage"
    assert "final eval_loss" in found and not {"epochs", "run_dir", "split_seed"} & found.keys()


def test_the_table_holds_the_scores_of_runs_that_have_any(runs, bundles):
    own = {"model": "run", "task": "sciq", "metric": "acc", "value": 0.31, "low": 0.29, "high": 0.33, "n": 1000}
    write_json(runs / "fast" / "evaluate" / "results.json", {"scores": [own, own | {"model": "base"}]})
    both = read_runs([runs / "slow", runs / "fast"])
    table = comparison({"learning_rate": {"slow": 1e-3, "fast": 1e-2}}, both, runs).data.splitlines()
    assert "| learning_rate | 0.001 | 0.01 |" in table and len(bundles) == 2
    assert [line for line in table if "sciq" in line] == [
        "| sciq, acc | not scored | 0.310 [0.290, 0.330], 1,000 items |"
    ]


def test_final_values_of_many_runs_do_not_overlap(tmp_path):
    """Five runs that end alike, one that was never evaluated: each label its own line, no training loss among them."""
    for n in range(5):
        write_training(tmp_path / f"run{n}", history_rows(30, eval_loss=lambda f, n=n: 4.5 + n / 1000))
    write_training(tmp_path / "unmeasured", history_rows(30, noise=0.0, loss=lambda _: 4.25, eval_loss=None))
    figure = comparison_figure(read_runs([*sorted(tmp_path.iterdir())]), LOSS)
    file_of(figure, "png")
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == ["4.50"] * 5
        assert not any(a.y1 - 1 > b.y0 and b.y1 - 1 > a.y0 for a, b in combinations(boxes, 2))  # a pixel may be shared


def test_compared_runs_differ_without_colour_and_the_legend_says_how(notebook):
    figure = comparison_figure(notebook.runs, LOSS)
    names = ["slow", "fast", "lines: training, smoothed", "markers: evaluation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    lines = figure.axes[1].lines
    assert {line.get_linestyle() for line in lines} == {"-", "--", "None"}
    assert {line.get_marker() for line in lines} == {"o", "s"}


def test_the_interactive_comparison_holds_every_run_over_steps_tokens_and_time(notebook):
    traces = notebook.bundles[-1][PLOTLY]["data"]
    assert len(traces) == 2 * 2 * 2 * 3  # training and evaluation, runs, curves, things to draw over
    assert [t["name"] for t in traces if t["showlegend"]] == [
        f"{run}, {kind}" for run in ("slow", "fast") for kind in ("training", "evaluation")
    ]
    assert max(max(t["x"]) for t in traces) == 1_200_000 and "</svg>" in notebook.bundles[-1]["image/svg+xml"]


def test_names_go_as_far_up_as_they_must(tmp_path):
    folders = [tmp_path / top / "a" / "run" for top in "xy"] + [tmp_path / "b" / "run", tmp_path / "alone"]
    for folder in folders:
        write_training(folder, history_rows(5))
    assert [run.name for run in read_runs(folders)] == ["x/a/run", "y/a/run", "b/run", "alone"]


@pytest.mark.parametrize(
    "names,words",
    [
        (["slow", "fast", "fast/../slow"], "slow is in the comparison twice"),
        (["old", "older"], r"'old' cannot be compared.*no evaluation set"),
        (["slow", "fast", "other"], r"'slow' and 'other'.*evaluation sets differ.*split_seed"),
        (["slow", "nothing"], r"nothing/train/metrics.jsonl does not exist"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(runs, names, words):
    with pytest.raises(UserError, match=words):
        read_runs([runs / name for name in names])


def test_nothing_to_compare(runs, bundles):
    settings = MetricsSettings(run_dir=str(runs / "slow"), compare_runs=[])
    alone = read_runs(settings.compared)
    interactive_comparison(alone)
    assert differences(alone) == {} and "compare_runs" in comparison({}, alone, runs / "figures").data
    assert not bundles and not (runs / "figures").exists()
