"""Earlier output below `/kaggle/input`: found, chosen, copied."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.kaggle.carry_over import best, bring, run_folders
from tests.kaggle.made_stages import checkpoint, stage_at


@pytest.mark.parametrize("place", ["slug", "notebooks/owner/slug", "datasets/owner/slug/versions/3"])
def test_runs_are_found_wherever_they_are_mounted(tmp_path, place):
    stage_at(tmp_path / place / "runs" / "mine", "paused")
    stage_at(tmp_path / place / "runs" / "other", "paused")
    assert run_folders(tmp_path, "mine") == [tmp_path / place / "runs" / "mine"]


def test_of_several_versions_the_one_with_the_highest_valid_step_is_taken(tmp_path):
    for name, steps, started in [("a", [10, 20], "01"), ("b", [10, 30], "02"), ("c", [10], "03")]:
        folder = stage_at(tmp_path / name / "mine", "paused", f"2026-01-{started}T10:00:00+00:00")
        for step in steps:
            checkpoint(folder, step)
    runs = run_folders(tmp_path, "mine")
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert not remarks
    assert found is not None and found.step == 30 and found.date == "2026-01-02 10:00 UTC"
    (tmp_path / "b/mine/train/checkpoints/step-000030/weights").write_bytes(b"x" * 100)
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert found is not None and found.step == 20
    assert len(remarks) == 1 and "changed weights" in remarks[0]


def test_other_settings_come_last_and_half_written_records_are_no_records(tmp_path):
    checkpoint(stage_at(tmp_path / "a" / "mine", "paused", seed=1), 50)
    checkpoint(stage_at(tmp_path / "b" / "mine", "paused"), 10)
    broken = stage_at(tmp_path / "c" / "mine", "paused")
    (broken / "stage.json").write_text('{"schema": 1, "sta')
    runs = run_folders(tmp_path, "mine")
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert len(runs) == 3 and found is not None and found.step == 10
    assert remarks == [f"{broken / 'stage.json'} is damaged, and what is beside it is passed over"]
    assert best(runs, "metrics", None) == (None, [])
    assert best([broken.parent], "train", None)[1] == remarks  # said where nothing else is attached, too
    for odd in ("[]", '{"schema": "x"}', '{"schema": 1, "stage": "train"}'):
        (broken / "stage.json").write_text(odd)
        assert best([broken.parent], "train", None) == (None, remarks)


def test_what_fits_comes_before_what_is_further_and_does_not(tmp_path):
    """After the code or the data has changed: the newer run is younger, and not as far."""
    done = stage_at(tmp_path / "done" / "mine", "done")
    far = checkpoint(stage_at(tmp_path / "far" / "mine", "paused"), 10_000).parents[1]
    new = checkpoint(stage_at(tmp_path / "new" / "mine", "paused"), 500).parents[1]
    for folder, upstream in ((done, "old"), (far, "old"), (new, "now")):
        record = read_json(folder / "stage.json")
        write_json(folder / "stage.json", record | {"parts": record["parts"] | {"upstream": {"data/x": upstream}}})
    asked = {"parameters": {"seed": 0}, "upstream": {"data/x": "now"}}
    found, _ = best(run_folders(tmp_path, "mine"), "train", asked)
    assert found is not None and found.fits and found.step == 500
    found, _ = best([done.parent, far.parent], "train", asked)
    assert found is not None and not found.fits and found.done


def test_work_of_a_newer_smallchat_is_not_started_again(tmp_path):
    newer = stage_at(tmp_path / "a" / "mine", "paused")
    write_json(newer / "stage.json", read_json(newer / "stage.json") | {"schema": 99})
    with pytest.raises(UserError, match=r"newer smallchat \(schema 99.*update smallchat"):
        best([newer.parent], "train", None)


def test_a_paused_stage_goes_on_without_the_files_that_a_mirror_leaves_out(tmp_path):
    """It sends checkpoints and records, and no base: training makes that again."""
    folder = stage_at(tmp_path / "a" / "mine", "paused")
    checkpoint(folder, 10)
    entry = {"bytes": 100, "sha256": "", "mtime_ns": 0}
    outputs = {"base/model": entry, "checkpoints/step-000010/weights": entry}
    write_json(folder / "stage.json", read_json(folder / "stage.json") | {"outputs": outputs})
    found, remarks = best([folder.parent], "train", None)
    assert found is not None and found.step == 10 and not remarks
    assert found.record["status"] == "paused" and list(found.record["outputs"]) == ["checkpoints/step-000010/weights"]


def test_a_finished_stage_that_lacks_a_file_is_not_finished(tmp_path):
    folder = stage_at(tmp_path / "a" / "mine", "done")
    record = {"schema": 1, "stage": "train", "status": "done", "started": "2026-01-01T10:00:00+00:00", "facts": {}}
    outputs = {"final/model": {"bytes": 5, "sha256": "", "mtime_ns": 0}}
    write_json(folder / "stage.json", record | {"outputs": outputs, "parts": {"parameters": {}}})
    (folder / "final").mkdir()
    (folder / "final" / "model").write_bytes(b"12345")
    found, _ = best([folder.parent], "train", None)
    assert found is not None and found.done
    (folder / "final" / "model").write_bytes(b"1")
    found, remarks = best([folder.parent], "train", None)
    assert found is not None and not found.done and "final/model" in remarks[0]
    bring(found, Run(tmp_path / "here"), own=True)
    record = read_json(tmp_path / "here" / "train" / "stage.json")
    assert record["status"] != "done" and not record["outputs"]


def test_what_is_brought_can_be_written_and_only_the_chosen_checkpoint_comes(tmp_path):
    folder = stage_at(tmp_path / "input" / "mine", "paused")
    checkpoint(folder, 10)
    checkpoint(folder, 20)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "metrics.jsonl").chmod(0o444)
    found, _ = best([folder.parent], "train", None)
    assert found is not None
    bring(found, Run(tmp_path / "here"), own=True)
    assert [path.name for path in (tmp_path / "here" / "train" / "checkpoints").iterdir()] == ["step-000020"]
    copy = tmp_path / "here" / "train" / "metrics.jsonl"
    assert copy.stat().st_mode & 0o200 and copy.stat().st_mtime_ns == (folder / "metrics.jsonl").stat().st_mtime_ns
