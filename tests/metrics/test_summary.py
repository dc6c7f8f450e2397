"""`summary.json`, the files of the figures, and the table: what a run came to."""

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
from tests.metrics.histories import history_rows, session, write_done, write_training


def summary_of(rows):
    """Of a history of these rows."""
    return summarise(History.of(rows), {})


def test_summary_of_a_resumed_run(tmp_path):
    rows = [*history_rows(30), session(2, 200), *(r for r in history_rows(60)[1:] if r["step"] > 200)]
    run = write_training(tmp_path, rows)
    summary = summarise(read_history(run), read_training_settings(run))
    assert summary == summary | {
        "steps": 600, "planned_steps": 600, "sessions": 2, "resumes": [200], "eval_hash": "a" * 64, "remarks": [],
        "total_tokens": 1_200_000, "supervised_tokens": 600_000, "tokens_per_second": pytest.approx(9003, abs=3),
        "hours": pytest.approx((54 + 4) / 3600),  # the first and the last evaluation took 2 s each
    }  # fmt: skip
    assert summary["final"] == summary["final"] | {
        "loss": pytest.approx(3.81, abs=0.05), "eval_loss": pytest.approx(3.811, abs=1e-3),
        "perplexity": pytest.approx(math.exp(summary["final"]["eval_loss"])),
    }  # fmt: skip
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


def test_the_final_values_are_those_of_the_model_that_was_kept():
    rows = history_rows(80, eval_loss=lambda f: 4.0 + abs(f - 0.5), loss=lambda f: 5 - f, noise=0)
    rows[1] |= {"eval_loss_all_tokens": 8.0}  # counted before and after alone
    rows[-1] |= {"eval_loss_all_tokens": 5.0}
    rows.append({"kind": "end", "step": 800, "chosen": 400})
    summary = summarise(History.of(rows), {"settings": {"keep": "best"}, "derived": {"steps": 800}})
    assert summary == summary | {
        "steps": 800, "evaluated_step": 400, "chosen": {"step": 400, "evaluations": 8}, "last": 4.5,
    }  # fmt: skip
    assert summary["final"] == summary["final"] | {
        "eval_loss": 4.0, "eval_loss_all_tokens": None, "loss": pytest.approx(4.5, abs=0.05)
    }  # fmt: skip
    table = number_table(summary).data
    (text,) = (remark["text"] for remark in summary["remarks"] if remark["kind"] == "earlier_model")
    assert "| … of the last step | 4.500 |" in table and "step 400, the best of 8 evaluations" in table
    assert all(words in text for words in ("step 400", "4.000", "8 evaluations", "800", "4.500", "train/last"))


def test_padding_counts_positions_and_not_rows():
    rows = history_rows(2, eval_loss=None)
    rows[1] |= {"padding": 0.5, "total_tokens": 100}  # of 200 positions
    rows[2] |= {"padding": 0.0, "total_tokens": 1000}  # of 900
    assert summary_of(rows)["padding"] == pytest.approx(100 / 1100)
    assert summary_of(history_rows(3, padding=None))["padding"] is None


@pytest.mark.parametrize("supervise,over", [("assistant", ""), ("all", ", all tokens")])
def test_the_table_says_which_tokens_the_loss_is_over_and_shows_little_padding(supervise, over):
    rows = history_rows(60, padding=0.0004)
    rows[0] |= {"supervise": supervise}
    table = number_table(summary_of(rows)).data
    assert f"| training loss, smoothed{over} |" in table
    assert "| padding, mean | 0.04% of all token positions |" in table


@pytest.mark.parametrize(
    "name,old,new,words",
    [
        ("metrics.jsonl", "}", "%", ""),
        ("settings.json", "}", "%", ""),
        ("metrics.jsonl", '"learning_rate": 0.0,', '"learning_rate": [],', "the learning_rate of step 50 is"),
        ("metrics.jsonl", '"data": 0.02', '"data": "long"', "the data of step 10 is 'long'"),
    ],
)
def test_a_damaged_file_of_the_training_is_named(tmp_path, name, old, new, words):
    file = write_training(tmp_path, history_rows(5)) / "train" / name
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{name} is damaged \({words}.*02_train_sft"):
        read_history(tmp_path), read_training_settings(tmp_path)


def test_a_history_without_rows_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no row.*02_train_sft"):
        read_history(write_training(tmp_path, [session()]))


def test_a_poor_history_gives_a_summary_and_a_table():
    summary = summary_of(history_rows(1, eval_loss=None))
    assert summary["best"]["eval_loss"] is None and "optimizer steps" in number_table(summary).data
    assert "no evaluation" in remark_list(summary["remarks"]).data
    assert "Nothing stands out" in remark_list([]).data


def test_what_was_logged_is_drawn_light_and_dark_as_wide_as_a_card_and_nothing_else(tmp_path):
    rows = [{"kind": "train", "step": step, "loss": 4.0} for step in (1, 2)]
    assert list(save_figures(History.of(rows), tmp_path)) == ["loss"]
    light, dark = (Image.open(tmp_path / f"loss{theme}.png").convert("L") for theme in ("", "-dark"))
    assert light.width == 1280  # 800 pixels of a card at 1.6 pixels each
    assert light.getpixel((5, 5)) == 255 and dark.getpixel((5, 5)) < 30
    with pytest.raises(UserError, match="memory"):
        picture(tmp_path, "memory")


def test_a_long_history_is_drawn_from_a_few_thousand_points():
    history = History.of(history_rows(50_000))
    for shown in FIGURES.values():
        assert len(file_of(metric_figure(history, shown), "svg")) < 800_000  # of all points: megabytes


def test_interactive_curves_hold_every_spike_and_event_and_a_still_picture(bundles):
    rows = history_rows(5000, skipped_steps=1)
    rows[2500]["loss"], rows[40]["loss"] = 77.0, math.nan
    interactive_curves(History.of([*rows, session(2, 50_000)]))
    (bundle,) = bundles
    assert "</svg>" in bundle["image/svg+xml"] and "image/png" not in bundle
    assert len(json.dumps(bundle[PLOTLY])) < 600_000
    traces = bundle[PLOTLY]["data"]
    assert any(77.0 in trace["y"] for trace in traces)
    marks = {t["name"].split(" (")[0]: t["x"] for t in traces if "(" in t["name"]}
    assert marks == {"fp16 steps skipped": [10], "not a number": [rows[40]["step"]]}
    assert {shape["x0"] for shape in bundle[PLOTLY]["layout"]["shapes"]} == {50_000}
