"""`summary.json`, the files of the figures, and the table: what a run came to."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from nbutils.core.errors import UserError
from nbutils.core.history import History
from nbutils.metrics.display import PLOTLY, interactive_curves, number_table, picture, remark_list
from nbutils.metrics.figures import FIGURES, save_figures
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import read_history, read_training_settings, summarise
from tests.metrics.histories import SECONDS, history_rows, session, write_done, write_training


def test_summary_of_a_resumed_run(tmp_path):
    rows = [*history_rows(30), session(2, 200), *(r for r in history_rows(60)[1:] if r["step"] > 200)]
    run = write_training(tmp_path, rows)
    summary = summarise(read_history(run), read_training_settings(run))
    assert summary["steps"] == summary["planned_steps"] == 600
    assert summary["final"]["eval_loss"] == summary["best"]["eval_loss"]["value"] == pytest.approx(3.811, abs=1e-3)
    assert summary["final"]["perplexity"] == pytest.approx(math.exp(summary["final"]["eval_loss"]))
    assert summary["final"]["loss"] == pytest.approx(3.81, abs=0.05)
    assert summary["untrained"]["eval_loss"] == pytest.approx(8.3)
    assert summary["total_tokens"] == 1_200_000 and summary["supervised_tokens"] == 600_000
    assert summary["sessions"] == 2 and summary["resumes"] == [200]
    assert summary["hours"] == pytest.approx((54 + 4) / 3600)  # the first and the last evaluation took 2 s each
    assert summary["tokens_per_second"] == pytest.approx(9003, abs=3)
    assert summary["eval_hash"] == "a" * 64 and summary["remarks"] == []
    assert json.loads(json.dumps(summary)) == summary


def test_a_run_that_ended_in_nan_has_no_final_value():
    summary = summarise(History.of(history_rows(40, loss=lambda f: math.nan if f > 0.6 else 4.0)), {})
    assert summary["final"]["loss"] is None and summary["final"]["token_accuracy"] is None
    assert summary["final"]["eval_loss"] == pytest.approx(3.811, abs=1e-3)
    summary = summarise(History.of(history_rows(40, eval_loss=lambda f: math.nan if f > 0.6 else 4.0)), {})
    final = summary["final"]
    assert final["eval_loss"] is None and final["perplexity"] is None and final["eval_token_accuracy"] is None
    assert summary["best"]["eval_loss"] == {"value": 4.0, "step": 0} and final["loss"] is not None


def test_a_paused_run_has_taken_the_steps_behind_its_last_row(tmp_path):
    run = write_training(tmp_path, history_rows(55))
    write_done(run / "train", status="paused", facts={"step": 570, "steps": 1000, "fraction": 0.57})
    history = read_history(run)
    summary = summarise(history, {"derived": {"steps": 1000}})
    assert (summary["steps"], summary["evaluated_step"], history.series("loss").steps[-1]) == (570, 550, 550)
    assert next(remark["text"] for remark in summary["remarks"] if remark["kind"] == "unfinished_schedule").startswith(
        "The schedule is unfinished: 570 of 1000 steps"
    )


@pytest.mark.parametrize("supervise,share", [("assistant", 0.97), ("all", 0.9)])
def test_which_tokens_the_loss_counts_is_read_and_not_guessed(supervise, share):
    rows = history_rows(20)
    rows[0] |= {"supervise": supervise}
    for row in rows[1:]:
        row |= {"supervised_tokens": share * 1000, "total_tokens": 1000}
    assert summarise(History.of(rows), {})["counts_all_tokens"] is (supervise == "all")


def test_padding_counts_positions_and_not_rows():
    rows = history_rows(2, eval_loss=None)
    rows[1] |= {"padding": 0.5, "total_tokens": 100}  # of 200 positions
    rows[2] |= {"padding": 0.0, "total_tokens": 1000}  # of 900
    assert summarise(History.of(rows), {})["padding"] == pytest.approx(100 / 1100)
    assert summarise(History.of(history_rows(3, padding=None)), {})["padding"] is None


def test_missing_file_and_empty_file_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="02_train_sft"):
        read_history(tmp_path)
    write_training(tmp_path, [session()])
    with pytest.raises(UserError, match=r"no row.*02_train_sft"):
        read_history(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "settings.json"])
def test_a_damaged_file_of_the_training_is_named(tmp_path, name):
    run = write_training(tmp_path, history_rows(5))
    file = run / "train" / name
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3][:-5] + "%"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*02_train_sft"):
        read_history(run), read_training_settings(run)


@pytest.mark.parametrize(
    "changes", [{"loss": "3.2?"}, {"learning_rate": [1e-3]}, {"seconds": SECONDS | {"data": "long"}}]
)
def test_a_value_that_is_no_number_is_named_with_its_step(tmp_path, changes):
    rows = history_rows(5)
    rows[4] |= changes
    name = next(iter(changes)).replace("seconds", "data")
    with pytest.raises(UserError, match=rf"metrics.jsonl is damaged \(the {name} of step 30 is .*02_train_sft"):
        read_history(write_training(tmp_path, rows))


@pytest.mark.parametrize("rows", [history_rows(1, eval_loss=None), history_rows(8, loss=lambda _: math.nan)])
def test_a_poor_history_gives_a_summary_and_a_table(rows):
    summary = summarise(History.of(rows), {})
    assert summary["best"]["eval_loss"] is None or summary["final"]["loss"] is None
    assert "optimizer steps" in number_table(summary).data
    assert remark_list(summary["remarks"]).data


def test_figures_of_a_full_history(tmp_path):
    captions = save_figures(History.of(history_rows(60)), tmp_path)
    assert list(captions) == [*FIGURES, "seconds"]
    names = {f"{n}{theme}.{form}" for n in captions for theme in ("", "-dark") for form in ("png", "svg")}
    assert {file.name for file in tmp_path.iterdir()} == names
    widths = {Image.open(file).width for file in tmp_path.glob("*.png")}
    assert widths == {1280}  # 800 pixels of a card at 1.6 pixels each
    light, dark = (Image.open(tmp_path / f).convert("L").getpixel((5, 5)) for f in ("loss.png", "loss-dark.png"))
    assert light == 255 and dark < 30


def test_what_was_not_logged_is_not_drawn(tmp_path):
    rows = [{k: v for k, v in row.items() if k in ("kind", "step", "loss")} for row in history_rows(5, eval_loss=None)]
    assert list(save_figures(History.of(rows), tmp_path)) == ["loss"]
    with pytest.raises(Exception, match="memory"):
        picture(tmp_path, "memory")


def test_a_long_history_is_drawn_from_a_few_thousand_points(tmp_path):
    save_figures(History.of(history_rows(200_000)), tmp_path)
    drawings = list(tmp_path.glob("*.svg"))
    assert drawings and all(file.stat().st_size < 600_000 for file in drawings)  # 200,000 points would be megabytes


def test_interactive_curves_hold_every_spike_and_a_still_picture(bundles):
    rows = history_rows(5000)
    rows[2500]["loss"] = 77.0
    interactive_curves(History.of(rows))
    (bundle,) = bundles
    assert "</svg>" in bundle["image/svg+xml"] and "image/png" not in bundle
    traces = bundle[PLOTLY]["data"]
    assert any(77.0 in trace["y"] for trace in traces)
    assert {t["name"] for t in traces if "name" in t} == {"as logged", "training, smoothed", "training", "evaluation"}
    assert len(json.dumps(bundle[PLOTLY])) < 600_000
    titles = {note["text"] for note in bundle[PLOTLY]["layout"]["annotations"]}
    assert len(titles) == 7 and {"Speed, tokens per second", "Peak memory, GiB"} <= titles


def test_interactive_curves_mark_events(bundles):
    rows = history_rows(60, skipped_steps=1)
    rows[40]["loss"] = math.nan
    interactive_curves(History.of([*rows, session(2, 600)]))
    bundle = bundles[0][PLOTLY]
    marks = {t["name"].split(" (")[0]: t["x"] for t in bundle["data"] if "(" in t["name"]}
    assert marks == {"fp16 steps skipped": [10], "not a number": [rows[40]["step"]]}
    assert {shape["x0"] for shape in bundle["layout"]["shapes"]} == {600}


def test_little_padding_is_not_written_as_none():
    summary = summarise(History.of(history_rows(60, padding=0.0004)), {})
    assert "| padding, mean | 0.04% of all token positions |" in number_table(summary).data


def test_the_cache_key_sees_a_compared_run_change(tmp_path):
    settings = MetricsSettings(run_dir="runs/demo", compare_runs=[str(tmp_path / "other")])
    before = settings.result_parameters()
    write_training(tmp_path / "other", history_rows(3))
    assert settings.result_parameters() != before
