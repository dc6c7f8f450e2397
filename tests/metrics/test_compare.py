"""Several runs: curves over one another, differences in a table, refusal where the evaluation sets differ."""

from __future__ import annotations

from itertools import combinations

import pytest

from nbutils.core.charts import png
from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.training_log import LOSS
from nbutils.metrics.compare import differences, read_runs
from nbutils.metrics.display import PLOTLY, comparison, interactive_comparison
from nbutils.metrics.figures import comparison_figure, save_comparisons
from nbutils.metrics.settings import MetricsSettings
from tests.metrics.histories import history_rows, write_done, write_training


@pytest.fixture
def runs(tmp_path):
    write_training(tmp_path / "slow", history_rows(30), learning_rate=1e-3)
    write_training(tmp_path / "fast", history_rows(40, noise=0.2), learning_rate=1e-2)
    return tmp_path


def test_differences_and_figures(runs, monkeypatch):
    monkeypatch.setattr("nbutils.metrics.display.picture", lambda *_: None)
    settings = MetricsSettings(run_dir=str(runs / "slow"), compare_runs=[str(runs / "fast")])
    both = read_runs(settings.compared)
    save_comparisons(both, runs / "figures")
    found = differences(both)
    assert found["learning_rate"] == {"slow": 1e-3, "fast": 1e-2}
    assert found["steps"] == {"slow": 300, "fast": 400}
    assert "epochs" not in found and "run_dir" not in found and "final eval_loss" in found
    names = {file.name for file in (runs / "figures").iterdir()}
    assert {"compare_loss.png", "compare_loss-dark.svg", "compare_accuracy.png"} <= names
    assert "| learning_rate | 0.001 | 0.01 |" in comparison(found, both, runs / "figures").data


def test_final_values_of_many_runs_do_not_overlap(tmp_path):
    """Five runs that end alike, one that was never evaluated: each label its own line, no training loss among them."""
    for n in range(5):
        write_training(tmp_path / f"run{n}", history_rows(30, eval_loss=lambda f, n=n: 4.5 + n / 1000))
    write_training(tmp_path / "unmeasured", history_rows(30, noise=0.0, loss=lambda _: 4.25, eval_loss=None))
    figure = comparison_figure(read_runs([*sorted(tmp_path.iterdir())]), LOSS)
    png(figure)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == ["4.50"] * 5
        assert not any(a.y1 - 1 > b.y0 and b.y1 - 1 > a.y0 for a, b in combinations(boxes, 2))  # a pixel may be shared


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in "ab":
        write_training(tmp_path / parent / "run", history_rows(5))
    assert [run.name for run in read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])] == ["a/run", "b/run"]


def test_names_go_as_far_up_as_they_must(tmp_path):
    folders = [tmp_path / top / "a" / "run" for top in "xy"] + [tmp_path / "alone"]
    for folder in folders:
        write_training(folder, history_rows(5))
    assert [run.name for run in read_runs(folders)] == ["x/a/run", "y/a/run", "alone"]


def test_a_run_is_not_compared_with_itself(runs):
    with pytest.raises(UserError, match="slow is in the comparison twice"):
        read_runs([runs / "slow", runs / "fast", runs / "fast" / ".." / "slow"])


def test_a_run_that_names_no_evaluation_set_is_refused(tmp_path):
    for name in "ab":
        write_training(tmp_path / name, history_rows(5), eval_hash="")
    with pytest.raises(UserError, match=r"'a' cannot be compared.*no evaluation set"):
        read_runs([tmp_path / "a", tmp_path / "b"])


def test_parameters_of_the_data_stage_are_compared_too(runs):
    for name, fraction in (("slow", 0.5), ("fast", 1.0)):
        write_done(runs / name / "data", parameters={"run_dir": name, "fraction": fraction, "split_seed": 0})
    found = differences(read_runs([runs / "slow", runs / "fast"]))
    assert found["fraction"] == {"slow": 0.5, "fast": 1.0} and "split_seed" not in found


def test_the_table_holds_the_scores_of_runs_that_have_any(runs, monkeypatch):
    monkeypatch.setattr("nbutils.metrics.display.picture", lambda *_: None)
    own = {"model": "run", "task": "sciq", "metric": "acc", "value": 0.31, "low": 0.29, "high": 0.33, "n": 1000}
    write_json(runs / "fast" / "evaluate" / "results.json", {"scores": [own, own | {"model": "base"}]})
    both = read_runs([runs / "slow", runs / "fast"])
    table = comparison(differences(both), both, runs / "figures").data
    assert "| sciq, acc | not scored | 0.310 [0.290, 0.330], 1,000 items |" in table
    assert sum("sciq" in line for line in table.splitlines()) == 1


def test_the_legend_says_what_lines_and_markers_are(runs):
    figure = comparison_figure(read_runs([runs / "slow", runs / "fast"]), LOSS)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "slow", "fast", "lines: training, smoothed", "markers: evaluation",
    ]  # fmt: skip


def test_compared_runs_differ_without_colour(runs):
    axes = comparison_figure(read_runs([runs / "slow", runs / "fast"]), LOSS).axes[1]
    assert {line.get_linestyle() for line in axes.lines} == {"-", "--", "None"}
    assert {line.get_marker() for line in axes.lines} == {"o", "s", "None"}


def test_the_interactive_comparison_holds_every_run_over_steps_tokens_and_time(runs, bundles):
    interactive_comparison(read_runs([runs / "slow", runs / "fast"]))
    (bundle,) = bundles
    traces = bundle[PLOTLY]["data"]
    assert len(traces) == 2 * 2 * 2 * 3  # training and evaluation, runs, curves, things to draw over
    assert [t["name"] for t in traces if t["showlegend"]] == [
        f"{run}, {kind}" for run in ("slow", "fast") for kind in ("training", "evaluation")
    ]
    assert max(max(t["x"]) for t in traces) == 800_000 and "</svg>" in bundle["image/svg+xml"]


def test_other_evaluation_sets_are_refused(runs):
    write_training(runs / "other", history_rows(5), eval_hash="b" * 64)
    with pytest.raises(UserError, match=r"'slow' and 'other'.*evaluation sets differ.*split_seed"):
        read_runs([runs / "slow", runs / "fast", runs / "other"])


def test_a_missing_run_is_named(runs):
    with pytest.raises(UserError, match=r"nothing/train/metrics.jsonl does not exist"):
        read_runs([runs / "slow", runs / "nothing"])


def test_nothing_to_compare(runs, bundles):
    settings = MetricsSettings(run_dir=str(runs / "slow"), compare_runs=[])
    alone = read_runs(settings.compared)
    save_comparisons(alone, runs / "figures")
    interactive_comparison(alone)
    assert differences(alone) == {} and not bundles and not (runs / "figures").exists()
    assert "compare_runs" in comparison({}, alone, runs / "figures").data
