"""Several runs: curves over one another, differences in a table, refusal where the evaluation sets differ."""

from __future__ import annotations

from itertools import combinations

import pytest

from nbutils.core.charts import file_of
from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.training_log import LOSS
from nbutils.metrics.display import COMPARED, PLOTLY, comparison, comparison_figure, interactive_comparison
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import differences, read_runs
from tests.metrics.histories import history_rows, write_done, write_training


@pytest.fixture
def runs(tmp_path):
    """Two runs that share their evaluation set, one of another set, and two that name none."""
    write_training(tmp_path / "slow", history_rows(60))
    write_training(tmp_path / "fast", history_rows(40), learning_rate=1e-2)
    for name, eval_hash in (("other", "b"), ("old", ""), ("older", "")):
        write_training(tmp_path / name, history_rows(5), eval_hash=eval_hash)
    return tmp_path


@pytest.fixture
def pair(runs):
    """The two that can be compared."""
    return read_runs([runs / "slow", runs / "fast"])


def test_what_differs_is_told_apart(runs):
    for name, fraction in (("slow", 0.5), ("fast", 1.0)):
        write_done(runs / name / "data", parameters={"run_dir": name, "fraction": fraction, "split_seed": 0})
    found = differences(read_runs([runs / "slow", runs / "fast"]))
    assert found["learning_rate"] == {"slow": 1e-3, "fast": 1e-2}
    assert found["steps"] == {"slow": 600, "fast": 400}
    assert found["fraction"] == {"slow": 0.5, "fast": 1.0}, "of the data stage"
    assert "final eval_loss" in found and not {"epochs", "run_dir", "split_seed"} & found.keys()


def test_the_table_holds_the_scores_of_runs_that_have_any(runs, pair, bundles):
    own = {"model": "run", "task": "sciq", "metric": "acc", "value": 0.31, "low": 0.29, "high": 0.33, "n": 1000}
    write_json(runs / "fast" / "evaluate" / "results.json", {"scores": [own, own | {"model": "base"}]})
    table = comparison(differences(pair), pair, runs / "figures").data.splitlines()
    assert "| learning_rate | 0.001 | 0.01 |" in table
    assert [line for line in table if "sciq" in line] == [
        "| sciq, acc | not scored | 0.310 [0.290, 0.330], 1,000 items |"
    ]
    files = {f"{name}{theme}.{form}" for name in COMPARED for theme in ("", "-dark") for form in ("png", "svg")}
    assert {file.name for file in (runs / "figures").iterdir()} == files and len(bundles) == len(COMPARED)


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


def test_compared_runs_differ_without_colour_and_the_legend_says_how(pair):
    figure = comparison_figure(pair, LOSS)
    names = ["slow", "fast", "lines: training, smoothed", "markers: evaluation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    lines = figure.axes[1].lines
    assert {line.get_linestyle() for line in lines} == {"-", "--", "None"}
    assert {line.get_marker() for line in lines} == {"o", "s"}


def test_the_interactive_comparison_holds_every_run_over_steps_tokens_and_time(pair, bundles):
    interactive_comparison(pair)
    (bundle,) = bundles
    traces = bundle[PLOTLY]["data"]
    assert len(traces) == 2 * 2 * 2 * 3  # training and evaluation, runs, curves, things to draw over
    assert [t["name"] for t in traces if t["showlegend"]] == [
        f"{run}, {kind}" for run in ("slow", "fast") for kind in ("training", "evaluation")
    ]
    assert max(max(t["x"]) for t in traces) == 1_200_000 and "</svg>" in bundle["image/svg+xml"]


def test_names_go_as_far_up_as_they_must(tmp_path):
    names = ["x/a/run", "y/a/run", "b/run", "alone"]
    folders = [write_training(tmp_path / "runs" / name, history_rows(5)) for name in names]
    assert [run.name for run in read_runs(folders)] == names


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


def test_nothing_to_compare(tmp_path, bundles):
    alone = read_runs(MetricsSettings(run_dir=str(tmp_path), compare_runs=[]).compared)
    interactive_comparison(alone)
    assert differences(alone) == {} and "compare_runs" in comparison({}, alone, tmp_path / "figures").data
    assert not bundles and not (tmp_path / "figures").exists()


def test_the_cache_key_sees_a_compared_run_change(tmp_path):
    settings = MetricsSettings(run_dir="runs/demo", compare_runs=[str(tmp_path / "other")])
    before = settings.result_parameters()
    write_training(tmp_path / "other", history_rows(3))
    assert settings.result_parameters() != before
