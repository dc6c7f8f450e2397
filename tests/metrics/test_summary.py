"""`summary.json`, the files of the figures, and the table: what a run came to."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from nbutils.core.charts import file_of
from nbutils.core.errors import UserError
from nbutils.core.history import History
from nbutils.metrics.display import (
    FIGURES,
    PLOTLY,
    interactive_curves,
    metric_figure,
    number_table,
    picture,
    remark_list,
    save_figures,
)
from nbutils.metrics.summary import read_history, read_training_settings, summarise
from tests.metrics.histories import SECONDS, history_rows, session, write_done, write_training


def summary_of(rows) -> dict:
    return summarise(History.of(rows), {})


def test_summary_of_a_resumed_run(tmp_path):
    rows = [*history_rows(30), session(2, 200), *(r for r in history_rows(60)[1:] if r["step"] > 200)]
    run = write_training(tmp_path, rows)
    summary = summarise(read_history(run), read_training_settings(run))
    lowest = pytest.approx(3.811, abs=1e-3)
    assert summary == summary | {
        "steps": 600, "planned_steps": 600, "sessions": 2, "resumes": [200], "eval_hash": "a" * 64, "remarks": [],
        "total_tokens": 1_200_000, "supervised_tokens": 600_000, "tokens_per_second": pytest.approx(9003, abs=3),
        "hours": pytest.approx((54 + 4) / 3600),  # the first and the last evaluation took 2 s each
    }  # fmt: skip
    assert summary["final"] == summary["final"] | {
        "loss": pytest.approx(3.81, abs=0.05), "eval_loss": lowest,
        "perplexity": pytest.approx(math.exp(summary["final"]["eval_loss"])),
    }  # fmt: skip
    assert summary["best"]["eval_loss"]["value"] == lowest
    assert summary["untrained"]["eval_loss"] == pytest.approx(8.3)


@pytest.mark.parametrize(
    "broken,lost,best",
    [
        ("loss", {"loss", "token_accuracy"}, {"value": pytest.approx(3.811, abs=1e-3), "step": 400}),
        ("eval_loss", {"eval_loss", "perplexity", "eval_token_accuracy"}, {"value": 4.0, "step": 0}),
    ],
)
def test_a_run_that_ended_in_nan_has_no_final_value(broken, lost, best):
    summary = summary_of(history_rows(40, **{broken: lambda f: math.nan if f > 0.6 else 4.0}))
    missing = {name for name, value in summary["final"].items() if value is None}
    assert missing == lost | {"eval_loss_all_tokens"}  # which was not counted
    assert summary["best"]["eval_loss"] == best


def test_a_paused_run_has_taken_the_steps_behind_its_last_row(tmp_path):
    run = write_training(tmp_path, history_rows(55))
    write_done(run / "train", status="paused", facts={"step": 570})
    summary = summarise(read_history(run), {"derived": {"steps": 1000}})
    assert (summary["steps"], summary["evaluated_step"]) == (570, 550)
    assert "570 of 1000 steps" in str(summary["remarks"])


@pytest.mark.parametrize("supervise,share", [("assistant", 0.97), ("all", 0.9)])
def test_which_tokens_the_loss_counts_is_read_and_not_guessed(supervise, share):
    rows = history_rows(20, supervised_tokens=share * 1000, total_tokens=1000)
    rows[0] |= {"supervise": supervise}
    assert summary_of(rows)["counts_all_tokens"] is (supervise == "all")


def test_padding_counts_positions_and_not_rows():
    rows = history_rows(2, eval_loss=None)
    rows[1] |= {"padding": 0.5, "total_tokens": 100}  # of 200 positions
    rows[2] |= {"padding": 0.0, "total_tokens": 1000}  # of 900
    assert summary_of(rows)["padding"] == pytest.approx(100 / 1100)
    assert summary_of(history_rows(3, padding=None))["padding"] is None
    little = number_table(summary_of(history_rows(60, padding=0.0004))).data
    assert "| padding, mean | 0.04% of all token positions |" in little


@pytest.mark.parametrize("name", ["metrics.jsonl", "settings.json"])
def test_a_damaged_file_of_the_training_is_named(tmp_path, name):
    file = write_training(tmp_path, history_rows(5)) / "train" / name
    file.write_text(file.read_text().replace("}", "%", 1))
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*02_train_sft"):
        read_history(tmp_path), read_training_settings(tmp_path)


@pytest.mark.parametrize(
    "rows,words",
    [
        ([session()], "has no row"),
        (history_rows(1, loss=lambda _: 1, learning_rate=[1e-3]), r"is damaged \(the learning_rate of step 10 is"),
        (history_rows(1, seconds=SECONDS | {"data": "long"}), r"is damaged \(the data of step 10 is 'long'"),
    ],
)
def test_a_history_without_numbers_is_named_with_its_step(tmp_path, rows, words):
    with pytest.raises(UserError, match=rf"metrics.jsonl {words}.*02_train_sft"):
        read_history(write_training(tmp_path, rows))


@pytest.mark.parametrize("rows", [history_rows(1, eval_loss=None), history_rows(8, loss=lambda _: math.nan)])
def test_a_poor_history_gives_a_summary_and_a_table(rows):
    summary = summary_of(rows)
    assert summary["best"]["eval_loss"] is None or summary["final"]["loss"] is None
    assert "optimizer steps" in number_table(summary).data and remark_list(summary["remarks"]).data
    assert "Nothing stands out" in remark_list([]).data


def test_what_was_logged_is_drawn_light_and_dark_as_wide_as_a_card_and_nothing_else(tmp_path):
    rows = [{k: v for k, v in row.items() if k in ("kind", "step", "loss")} for row in history_rows(5, eval_loss=None)]
    assert list(save_figures(History.of(rows), tmp_path)) == ["loss"]
    light, dark = (Image.open(tmp_path / f"loss{theme}.png").convert("L") for theme in ("", "-dark"))
    assert light.width == dark.width == 1280  # 800 pixels of a card at 1.6 pixels each
    assert light.getpixel((5, 5)) == 255 and dark.getpixel((5, 5)) < 30
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
