"""Earlier output below `/kaggle/input`: found, chosen, copied; and what the new output has room for."""

import os

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import write_text
from nbutils.core.run.layout import Run
from nbutils.kaggle.carry_over import best, bring, keep_under, run_folders, used
from tests.kaggle.made_stages import stage_at
from tests.train.runs import checkpoint

SIZED = {"bytes": 5}


def chosen(*folders, **asked):
    """Of copies of a training the one to continue."""
    return best([folder.parent for folder in folders], "train", {"parameters": {"seed": 0}} | asked)


def test_runs_are_found_wherever_they_are_mounted(tmp_path):
    mounted = ("datasets/owner/slug/versions/3", "notebooks/owner/slug", "slug")
    for place in mounted:
        for name in ("mine", "other"):
            stage_at(tmp_path / place / "runs" / name, "paused")
    assert run_folders(tmp_path, "mine") == [tmp_path / place / "runs" / "mine" for place in mounted]


def test_of_several_versions_the_one_with_the_highest_valid_step_is_taken(tmp_path, capsys):
    folders = [
        stage_at(tmp_path / day / "mine", "paused", *steps, started=f"2026-01-{day}T10:00:00+00:00")
        for day, *steps in [("01", 10, 20), ("02", 10, 30), ("03", 10)]
    ]
    found = chosen(*folders)
    assert found.step == 30 and not capsys.readouterr().out
    (folders[1] / "checkpoints/step-000030/weights").write_bytes(b"x" * 100)
    assert chosen(*folders).step == 20 and "changed weights" in capsys.readouterr().out


def test_other_settings_come_last_and_half_written_records_are_no_records(tmp_path, capsys):
    other = stage_at(tmp_path / "a" / "mine", "paused", 50, parts={"parameters": {"seed": 1}})
    mine, broken = stage_at(tmp_path / "b" / "mine", "paused", 10), stage_at(tmp_path / "c" / "mine", "paused")
    for odd in ('{"schema": 1, "sta', "[]", '{"schema": 1, "stage": "train"}'):
        (broken / "stage.json").write_text(odd)
        remark = f"Note: {broken / 'stage.json'} is damaged, and what is beside it is passed over.\n"
        assert chosen(other, mine, broken).step == 10 and capsys.readouterr().out == remark
        assert chosen(broken) is None  # said where nothing else is attached, too
        assert capsys.readouterr().out == remark
    assert best([other.parent], "metrics", {}) is None and not capsys.readouterr().out


def test_what_fits_comes_before_what_is_further_and_does_not(tmp_path):
    """After the code or the data has changed: the newer run is younger, and not as far."""
    done, far, new = (
        stage_at(tmp_path / name / "mine", *left, parts={"parameters": {"seed": 0}, "upstream": {"data/x": name[:3]}})
        for name, *left in [("old-1", "done"), ("old-2", "paused", 10_000), ("now", "paused", 500)]
    )
    asked = {"upstream": {"data/x": "now"}}
    found = chosen(done, far, new, **asked)
    assert found.fits and found.step == 500
    found = chosen(done, far, **asked)
    assert not found.fits and found.done


def test_work_of_a_newer_smallchat_is_not_started_again(tmp_path):
    with pytest.raises(UserError, match=r"newer smallchat \(schema 99.*update smallchat"):
        chosen(stage_at(tmp_path / "mine", "paused", schema=99))


def test_a_paused_stage_goes_on_without_the_files_that_a_mirror_leaves_out(tmp_path, capsys):
    """It sends checkpoints and records, and no base: training makes that again."""
    outputs = {"base/model": SIZED, "checkpoints/step-000010/weights": SIZED}
    found = chosen(stage_at(tmp_path / "mine", "paused", 10, outputs=outputs))
    assert found.step == 10 and not capsys.readouterr().out
    assert found.record["status"] == "paused" and list(found.record["outputs"]) == ["checkpoints/step-000010/weights"]


def test_a_finished_stage_that_lacks_a_file_is_not_finished(tmp_path, capsys):
    folder, here = stage_at(tmp_path / "mine", "done", outputs={"model": SIZED}), Run(tmp_path / "here")
    (folder / "model").write_text("12345")
    assert chosen(folder).done
    (folder / "model").write_text("1")
    found = chosen(folder)
    assert not found.done and f"{folder} lacks model" in capsys.readouterr().out
    bring(found, here, own=True)
    record = here.record("train")
    assert record["status"] != "done" and not record["outputs"]


def test_what_is_brought_can_be_written_and_of_the_checkpoints_the_chosen_and_the_pinned_come(tmp_path):
    folder, copy = stage_at(tmp_path / "input" / "mine", "paused", 10, 20), tmp_path / "here" / "train"
    checkpoint(folder / "checkpoints", 5, pinned=True)
    (folder / "metrics.jsonl").touch(0o444)
    bring(chosen(folder), Run(copy.parent), own=True)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"step-000005", "step-000020"}
    there, here = ((place / "metrics.jsonl").stat() for place in (folder, copy))
    assert here.st_mode & 0o200 and there.st_mtime_ns == here.st_mtime_ns


def test_nothing_is_brought_that_kaggle_would_not_keep(tmp_path, monkeypatch):
    folder = stage_at(tmp_path / "input" / "mine", "paused", 10)
    monkeypatch.setattr("nbutils.kaggle.carry_over.LIMIT", 3)
    with pytest.raises(UserError, match="working folder"):
        bring(chosen(folder), Run(tmp_path / "here"), own=True)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("status,left", [("paused", ["step-000020"]), ("done", [])])
def test_of_an_output_too_large_what_nobody_goes_on_from_is_dropped_first(tmp_path, status, left):
    folder = stage_at(tmp_path / "runs" / "mine", status, 10, 20)
    run, checkpoints = Run(folder.parent), folder / "checkpoints"
    for name in ("step-000030.partial", "damaged-step-000005.partial", "../../../.mirror-x"):
        write_text(checkpoints / name / "w", "x" * 100_000)
    os.link(checkpoints / "step-000020/weights", checkpoints / "../../../.mirror-x/weights")
    assert used(tmp_path) == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - 100
    assert keep_under(tmp_path, run, limit=10**6) == []
    assert len(keep_under(tmp_path, run, limit=50_000)) == 3
    assert [each.step for each in run.checkpoints()] == [20, 10]
    assert keep_under(tmp_path, run, limit=100)[0] == "runs/mine/train/checkpoints/step-000010"
    assert [path.name for path in checkpoints.iterdir()] == left
