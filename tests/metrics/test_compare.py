"""Several runs: curves over one another, differences in a table, refusal where the evaluation sets differ."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from nbutils.metrics.compare import read_runs, save_comparisons
from nbutils.metrics.display import difference_table
from nbutils.metrics.settings import MetricsSettings
from tests.metrics.histories import history_rows, write_training


@pytest.fixture
def runs(tmp_path):
    write_training(tmp_path / "slow", history_rows(30), learning_rate=1e-3)
    write_training(tmp_path / "fast", history_rows(40, noise=0.2), learning_rate=1e-2)
    return tmp_path


def test_differences_and_figures(runs):
    settings = MetricsSettings(run_dir=str(runs / "slow"), compare_runs=[str(runs / "fast")])
    found = save_comparisons(settings, runs / "figures")
    assert found["learning_rate"] == {"slow": 1e-3, "fast": 1e-2}
    assert found["steps"] == {"slow": 300, "fast": 400}
    assert "epochs" not in found and "run_dir" not in found and "final eval_loss" in found
    names = {file.name for file in (runs / "figures").iterdir()}
    assert {"compare_loss.png", "compare_loss-dark.svg", "compare_accuracy.png"} <= names
    assert "| learning_rate | 0.001 | 0.01 |" in difference_table(found).data


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in "ab":
        write_training(tmp_path / parent / "run", history_rows(5))
    assert [run.name for run in read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])] == ["a/run", "b/run"]


def test_other_evaluation_sets_are_refused(runs):
    write_training(runs / "other", history_rows(5), eval_hash="b" * 64)
    with pytest.raises(UserError, match=r"'slow' and 'other'.*evaluation sets differ.*split_seed"):
        read_runs([runs / "slow", runs / "fast", runs / "other"])


def test_a_missing_run_is_named(runs):
    with pytest.raises(UserError, match=r"nothing/train/metrics.jsonl does not exist"):
        read_runs([runs / "slow", runs / "nothing"])


def test_nothing_to_compare(runs):
    settings = MetricsSettings(run_dir=str(runs / "slow"), compare_runs=[])
    assert save_comparisons(settings, runs / "figures") == {}
