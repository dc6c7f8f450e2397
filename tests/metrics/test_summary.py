"""`summary.json`, the files of the figures, and the table: what a run came to."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from nbutils.core.charts import file_of
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.history import History
from nbutils.metrics.display import (
    COMPARED,
    FIGURES,
    PLOTLY,
    interactive_curves,
    metric_figure,
    number_table,
    picture,
    remark_list,
    save_figures,
)
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import read_history, read_training_settings, summarise
from tests.metrics.histories import SECONDS, history_rows, session, write_done, write_training


def test_the_notebook_draws_every_figure_and_lists_its_files(notebook):
    folder = notebook.stage.folder
    record, summary = read_json(folder / "stage.json"), read_json(folder / "summary.json")
    assert record["status"] == "done" and "Nothing stands out" in notebook.display.remark_list([]).data
    assert list(summary["figures"]) == [*FIGURES, "seconds"] and summary["differences"] == notebook.comparison
    names = {f"{n}{theme}.{form}" for n in (*FIGURES, "seconds", *COMPARED) for theme in ("", "-dark")
             for form in ("png", "svg")}  # fmt: skip
    assert set(record["outputs"]) == {f"figures/{name}" for name in names} | {"summary.json"}
    widths = {name: Image.open(folder / "figures" / f"{name}.png").width for name in (*FIGURES, "seconds")}
    assert set(widths.values()) == {1280}  # 800 pixels of a card at 1.6 pixels each
    corners = (Image.open(folder / "figures" / f"loss{theme}.png").convert("L") for theme in ("", "-dark"))
    light, dark = (image.getpixel((5, 5)) for image in corners)
    assert light == 255 and dark < 30
    assert len(notebook.bundles) == 1 + 7 + 2 + 1  # curves, figures, comparisons, curves


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


@pytest.mark.parametrize(
    "broken,lost,best",
    [
        ("loss", {"loss", "token_accuracy"}, {"value": pytest.approx(3.811, abs=1e-3), "step": 400}),
        ("eval_loss", {"eval_loss", "perplexity", "eval_token_accuracy"}, {"value": 4.0, "step": 0}),
    ],
)
def test_a_run_that_ended_in_nan_has_no_final_value(broken, lost, best):
    summary = summarise(History.of(history_rows(40, **{broken: lambda f: math.nan if f > 0.6 else 4.0})), {})
    of_all_tokens = {"eval_loss_all_tokens"}  # was not counted
    assert {name for name, value in summary["final"].items() if value is None} - of_all_tokens == lost
    assert summary["best"]["eval_loss"] == best


def test_a_paused_run_has_taken_the_steps_behind_its_last_row(tmp_path):
    run = write_training(tmp_path, history_rows(55))
    write_done(run / "train", status="paused", facts={"step": 570, "steps": 1000, "fraction": 0.57})
    history = read_history(run)
    summary = summarise(history, {"derived": {"steps": 1000}})
    assert (summary["steps"], summary["evaluated_step"], history.series("loss").steps[-1]) == (570, 550, 550)
    assert "570 of 1000 steps" in str(summary["remarks"])


@pytest.mark.parametrize("supervise,share", [("assistant", 0.97), ("all", 0.9)])
def test_which_tokens_the_loss_counts_is_read_and_not_guessed(supervise, share):
    rows = history_rows(20, supervised_tokens=share * 1000, total_tokens=1000)
    rows[0] |= {"supervise": supervise}
    assert summarise(History.of(rows), {})["counts_all_tokens"] is (supervise == "all")


def test_padding_counts_positions_and_not_rows():
    rows = history_rows(2, eval_loss=None)
    rows[1] |= {"padding": 0.5, "total_tokens": 100}  # of 200 positions
    rows[2] |= {"padding": 0.0, "total_tokens": 1000}  # of 900
    assert summarise(History.of(rows), {})["padding"] == pytest.approx(100 / 1100)
    assert summarise(History.of(history_rows(3, padding=None)), {})["padding"] is None
    little = number_table(summarise(History.of(history_rows(60, padding=0.0004)), {})).data
    assert "| padding, mean | 0.04% of all token positions |" in little


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
    assert "optimizer steps" in number_table(summary).data and remark_list(summary["remarks"]).data


def test_what_was_not_logged_is_not_drawn(tmp_path):
    rows = [{k: v for k, v in row.items() if k in ("kind", "step", "loss")} for row in history_rows(5, eval_loss=None)]
    assert list(save_figures(History.of(rows), tmp_path)) == ["loss"]
    with pytest.raises(UserError, match="memory"):
        picture(tmp_path, "memory")


def test_a_long_history_is_drawn_from_a_few_thousand_points():
    history = History.of(history_rows(50_000))
    assert all(
        len(file_of(metric_figure(history, shown), "svg")) < 600_000 for shown in FIGURES.values()
    )  # all: megabytes


def test_interactive_curves_hold_every_spike_and_event_and_a_still_picture(bundles):
    rows = history_rows(5000, skipped_steps=1)
    rows[2500]["loss"], rows[40]["loss"] = 77.0, math.nan
    interactive_curves(History.of([*rows, session(2, 50_000)]))
    (bundle,) = bundles
    assert "</svg>" in bundle["image/svg+xml"] and "image/png" not in bundle
    assert len(json.dumps(bundle[PLOTLY])) < 600_000
    traces, layout = bundle[PLOTLY]["data"], bundle[PLOTLY]["layout"]
    assert any(77.0 in trace["y"] for trace in traces)
    names = {trace["name"] for trace in traces if "(" not in trace["name"]}
    assert names == {"as logged", "training, smoothed", "training", "evaluation"}
    marks = {t["name"].split(" (")[0]: t["x"] for t in traces if "(" in t["name"]}
    assert marks == {"fp16 steps skipped": [10], "not a number": [rows[40]["step"]]}
    assert {shape["x0"] for shape in layout["shapes"]} == {50_000}
    titles = {note["text"] for note in layout["annotations"]}
    assert len(titles) == 7 and {"Speed, tokens per second", "Peak memory, GiB"} <= titles


def test_the_cache_key_sees_a_compared_run_change(tmp_path):
    settings = MetricsSettings(run_dir="runs/demo", compare_runs=[str(tmp_path / "other")])
    before = settings.result_parameters()
    write_training(tmp_path / "other", history_rows(3))
    assert settings.result_parameters() != before
