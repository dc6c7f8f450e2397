"""Several runs: curves over one another, differences in a table, refusal where the evaluation sets differ."""

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import write_json
from nbutils.core.training_log import LOSS
from nbutils.metrics.display import COMPARED, PLOTLY, comparison, comparison_figure, interactive_comparison
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import differences, read_runs
from tests.cells import run_cells
from tests.conftest import ROOT
from tests.metrics.histories import history_rows, write_done, write_training


@pytest.fixture
def runs(tmp_path):
    """Two runs that share their evaluation set, one of another set, and one that names none."""
    write_training(tmp_path / "slow", history_rows(60))
    write_training(tmp_path / "fast", history_rows(40), learning_rate=1e-2)
    write_training(tmp_path / "unmeasured", history_rows(30, eval_loss=None))
    for name, eval_hash in (("other", "b"), ("old", "")):
        write_training(tmp_path / name, history_rows(5), eval_hash=eval_hash)
    return tmp_path


def test_the_table_holds_what_differs_and_the_scores_of_runs_that_have_any(runs, bundles):
    for name, fraction in (("slow", 0.5), ("fast", 1.0)):
        write_done(runs / name / "data", parameters={"fraction": fraction, "split_seed": 0})
    own = {"model": "run", "task": "sciq", "metric": "acc", "value": 0.31, "low": 0.29, "high": 0.33, "n": 1000}
    write_json(runs / "fast" / "evaluate" / "results.json", {"scores": [own, own | {"model": "base"}]})
    pair = read_runs([runs / "slow", runs / "fast"])
    table = comparison(differences(pair), pair, runs / "figures").data.splitlines()
    assert {
        "| learning_rate | 0.001 | 0.01 |",
        "| steps | 600 | 400 |",
        "| fraction | 0.5 | 1 |",  # of the data stage
        "| sciq, acc | not scored | 0.310 [0.290, 0.330], 1,000 items |",
    } <= set(table)
    assert not [row for row in table if "epochs" in row or "split_seed" in row or "run_dir" in row]
    assert len(list((runs / "figures").iterdir())) == len(COMPARED) * 4 == len(bundles) * 4


def test_the_notebook_draws_other_runs_over_its_own(runs):
    write_done(runs / "slow" / "data", parameters={})
    write_done(runs / "fast" / "data", parameters={"fraction": 0.5})
    given = {"run_dir": str(runs / "slow"), "compare_runs": [str(runs / "fast")]}
    names = run_cells(ROOT / "notebooks" / "03_plot_metrics.ipynb", **given)
    assert names["comparison"]["learning_rate"] == {"slow": 0.001, "fast": 0.01}
    assert {f"{name}.svg" for name in COMPARED} <= {file.name for file in (runs / "slow/metrics/figures").iterdir()}


def test_compared_runs_differ_without_colour_and_the_legend_says_how(runs):
    figure = comparison_figure(read_runs([runs / "slow", runs / "fast", runs / "unmeasured"]), LOSS)
    names = ["slow", "fast", "unmeasured", "lines: training, smoothed", "markers: evaluation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    lines = figure.axes[1].lines
    assert len({line.get_linestyle() for line in lines} - {"None"}) == len({line.get_marker() for line in lines}) == 3
    assert [text.get_text() for text in figure.axes[1].texts] == ["3.81"] * 2, "no training loss among them"


def test_the_interactive_comparison_holds_every_run_over_steps_tokens_and_time(runs, bundles):
    interactive_comparison(read_runs([runs / "slow", runs / "fast"]))
    (bundle,) = bundles
    traces = bundle[PLOTLY]["data"]
    assert len(traces) == 2 * 2 * 2 * 3  # training and evaluation, runs, curves, things to draw over
    assert [t["name"] for t in traces if t["showlegend"]] == [
        f"{run}, {kind}" for run in ("slow", "fast") for kind in ("training", "evaluation")
    ]
    assert max(max(t["x"]) for t in traces) == 1_200_000


def test_names_go_as_far_up_as_they_must(tmp_path):
    names = ["x/a/run", "y/a/run", "b/run", "alone"]
    folders = [write_training(tmp_path / "runs" / name, history_rows(5)) for name in names]
    assert [run.name for run in read_runs(folders)] == names


@pytest.mark.parametrize(
    "names,words",
    [
        (["slow", "fast", "fast/../slow"], "slow is in the comparison twice"),
        (["old"], r"'old' cannot be compared.*no evaluation set"),
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
