"""Scoring through the harness: nothing twice, nothing lost, and a sentence for everything that goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, write_json
from nbutils.core.hardware import Gpu
from nbutils.core.notebooks import parameters
from nbutils.core.run.models import ModelRef
from nbutils.evaluate import display, worker
from nbutils.evaluate import run as stage
from nbutils.evaluate.report import comparison_markdown, results, scores_table
from nbutils.evaluate.scorer import RowScorer
from nbutils.evaluate.settings import EvaluateSettings
from tests.evaluate.runs import SMALL, SUMS, hold_out, planned, scored, settings_for, write_task


@pytest.fixture
def own(tmp_path, fresh) -> dict[str, str]:
    """Settings that ask a task of one's own, six sums, with a new cache."""
    write_task(tmp_path, "sums", SUMS)
    return {"tasks": ["sums"], "task_path": str(tmp_path)} | fresh


def items_of(result) -> list[dict]:
    return pq.read_table(result.items).to_pylist()


def test_the_parameters_cell_is_the_settings(root):
    found = parameters(root / "notebooks" / "04_evaluate.ipynb")
    assert set(found) == set(EvaluateSettings.model_fields)
    EvaluateSettings.checked({name: parameter.default for name, parameter in found.items()})


def test_the_notebook_writes_what_others_read(evaluated, run_folder):
    folder = run_folder / "evaluate"
    assert read_json(folder / "stage.json")["status"] == "done"
    behaviour = evaluated.behaviour
    assert read_json(folder / "results.json") == json.loads(json.dumps(evaluated.found | {"behaviour": behaviour}))
    assert set(behaviour["models"]) == {"base", "run"} and behaviour["models"]["run"]["greedy"]["replies"] == 4
    rows = read_jsonl(folder / "samples.jsonl")
    assert rows == evaluated.samples and len(rows) == 20
    assert [(r["model"], r["mode"]) for r in rows[:10]] == [("run", "alone")] * 5 + [("run", "conversation")] * 5
    files = {f"{model}--{task}.parquet" for model in ("base", "run") for task in SMALL["tasks"]}
    assert {file.name for file in (folder / "items").iterdir()} == files
    assert {"scores.png", "scores.svg", "scores-dark.png"} <= {file.name for file in (folder / "figures").iterdir()}
    assert not evaluated.stderr, "no bars and warnings stay on the page"


def test_results_hold_base_and_run_with_intervals_and_differences(evaluated, run_folder):
    found = evaluated.found
    assert [m["name"] for m in found["models"]] == ["base", "run"]
    assert [(s["task"], s["metric"]) for s in found["scores"] if s["model"] == "run"] == [
        ("heldout_perplexity", "word_perplexity"),
        ("heldout_next_utterance", "acc"),
        ("heldout_next_utterance", "acc_mutual_info"),
    ]
    assert all(score["low"] <= score["value"] <= score["high"] and score["n"] > 0 for score in found["scores"])
    assert [(p["model"], p["reference"]) for p in found["paired"]] == [("run", "base")] * 3
    page = (run_folder / "evaluate" / "comparison.md").read_text()
    assert page.startswith("# Comparison") and "these two checkpoints" in page
    assert "lm-evaluation-harness 0.4" in page and "at most 256 tokens" in page
    assert "`run/train/final`" in page and str(run_folder.parent) not in page + str(found), "no folder of this machine"
    shown = display.item(evaluated.plan.tasks["heldout_next_utterance"])
    assert shown.count("<|im_start|>assistant") >= 4 and "target: " in shown


def test_any_number_can_be_recomputed_from_the_items_alone(evaluated, run_folder):
    values = {(s["model"], s["task"], s["metric"]): s["value"] for s in evaluated.found["scores"]}
    for model in ("base", "run"):
        items = pq.read_table(run_folder / "evaluate" / "items" / f"{model}--heldout_next_utterance.parquet")
        lls = np.array(items["loglikelihoods"].to_pylist())  # (items, 8): with the context, and without
        for metric, lead in (("acc", lls[:, :4]), ("acc_mutual_info", lls[:, :4] - lls[:, 4:])):
            right = lead.argmax(1) == items["gold"].to_numpy()
            assert right.mean() == pytest.approx(values[model, "heldout_next_utterance", metric])
    for result in evaluated.scored:  # and our numbers are the harness's
        for name, value in result.answer["values"].items():
            assert values[result.model.name, result.task, name.partition(",")[0]] == pytest.approx(value)


def test_a_second_run_scores_nothing(evaluated, run_folder, monkeypatch):
    monkeypatch.setattr("nbutils.evaluate.score.open_model", lambda *a, **k: pytest.fail("opened a model"))
    monkeypatch.setattr(stage, "score_in_processes", lambda *_: pytest.fail("started processes for nothing"))
    monkeypatch.setattr(stage, "sample_rows", lambda *_: pytest.fail("sampled"))
    for processes in (1, 2):
        again, lines = scored(planned(run_folder, processes=processes))
        assert len(again) == 4 and "0 computed now, 4 known" in lines[-1]
    assert stage.take_samples(planned(run_folder)) == evaluated.samples


def test_other_settings_or_other_weights_are_scored_again(evaluated, own_run):
    limited = planned(own_run, limit=3)
    assert limited.asking != evaluated.plan.asking and "4 computed now" in scored(limited)[1][-1]
    final = own_run / "train" / "final"
    before = ModelRef.parse(str(final)).identity()
    assert before == {m.name: m.ref.identity() for m in evaluated.plan.models}["run"], "wherever it lies"
    weights = bytearray((final / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (final / "model.safetensors").write_bytes(weights)
    assert ModelRef.parse(str(final)).identity() != before


def test_an_interruption_keeps_finished_tasks(run_folder, fresh, monkeypatch):
    prepared = planned(run_folder, limit=4, **fresh)
    calls: list[int] = []
    real = RowScorer.score

    def interrupted(self, requests, *options):
        if len(requests) > 3:  # else it tries out how the model can be scored
            calls.append(len(requests))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return real(self, requests, *options)

    monkeypatch.setattr(RowScorer, "score", interrupted)
    with pytest.raises(UserError, match=r"1 of 4 results are finished.* kept: run this cell again"):
        scored(prepared)
    again, lines = scored(prepared)
    assert len(again) == 4 and "3 computed now, 1 known" in lines[-1]


@pytest.mark.parametrize("step", ["measure_behaviour", "take_samples", "curve"])
def test_an_interruption_of_a_later_step_is_one_sentence(run_folder, fresh, monkeypatch, step):
    def interrupted(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "load_to_generate", interrupted)
    with pytest.raises(UserError, match=r"Interrupted while .* run this cell again"):
        getattr(stage, step)(planned(run_folder, **fresh))


@pytest.mark.parametrize(
    "name,words",
    [
        (
            "heldout_perplexty",
            "None of the tasks can be made: No task .*'heldout_perplexty'.* Did .*heldout_perplexity",
        ),
        ("helaswag", "Did you mean .*hellaswag"),
        ("sciq", "The data of the task 'sciq' cannot be read"),  # offline
    ],
)
def test_a_task_that_cannot_be_had_is_one_sentence(run_folder, name, words):
    with pytest.raises(UserError, match=words):
        planned(run_folder, tasks=[name])


def test_the_chat_template_is_asked_for_by_name_and_never_put_around_chatml(run_folder, fresh):
    prepared = planned(run_folder, apply_chat_template=True, limit=2, **fresh)
    found, _ = scored(prepared)
    assert all(result.answer["chat_template"] is False for result in found)
    assert "moves the newline" in comparison_markdown(results(prepared, found, {}))


def test_with_the_chat_template_a_real_task_has_the_numbers_of_stock(run_folder, own, monkeypatch):
    prepared = planned(run_folder, apply_chat_template=True, **own)
    base, run = scored(prepared)[0]
    assert base.answer["chat_template"] and base.answer["items"] == run.answer["items"] == 6
    stock = HFLM(str(run_folder / "train" / "base"), device="cpu", dtype="float32", batch_size=1, max_length=256)
    asked: list[list[int]] = []
    real = stock._loglikelihood_tokens
    monkeypatch.setattr(stock, "_loglikelihood_tokens", lambda r, **k: (asked.extend(x[2] for x in r), real(r, **k))[1])
    found = evaluator.evaluate(stock, {"tasks": prepared.tasks}, bootstrap_iters=0, apply_chat_template=True)
    for row, sample in zip(items_of(base), found["samples"]["sums"], strict=True):
        assert "<|im_start|>assistant" in sample["arguments"][0][0], "the item stands in the template"
        assert row["loglikelihoods"] == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)
    # A detail that decides numbers: the newline behind the header is scored with the continuation.
    assert all(stock.tok_decode(continuation).startswith("\n") for continuation in asked)


def test_flagged_items_are_scored_apart(evaluated):
    table = next(r for r in evaluated.scored if (r.model.name, r.task) == ("run", "heldout_next_utterance"))
    correct = np.array([row["acc"] for row in items_of(table)])
    flagged = set(range(0, len(correct), 3))
    named = {"heldout_next_utterance": flagged | {10_000}, "elsewhere": {1}}
    found = results(evaluated.plan, evaluated.scored, named)
    assert found["flagged"] == {"heldout_next_utterance": sorted(flagged)}, "those that were evaluated"
    rows = {s.get("part", "all"): s for s in found["scores"] if (s["model"], s["metric"]) == ("run", "acc")}
    others = len(correct) - len(flagged)
    counts = {"all": len(correct), "flagged": len(flagged), "not flagged": others}
    assert {part: row["n"] for part, row in rows.items()} == counts
    assert rows["flagged"]["value"] == pytest.approx(correct[sorted(flagged)].mean())
    assert rows["all"]["value"] == pytest.approx(correct.mean())
    assert {p.get("part", "all") for p in found["paired"] if p["task"] == "heldout_next_utterance"} == set(counts)
    assert not [s for s in found["scores"] if s["task"] == "heldout_perplexity" and "part" in s]
    page = comparison_markdown(found)
    assert "`heldout_next_utterance` (flagged items)" in page and "scored apart" in page


def test_metrics_that_are_no_mean_have_no_interval_and_no_figure(run_folder, own, tmp_path):
    write_task(tmp_path, "sane", SUMS, metric_list=[{"metric": "mcc"}])  # as in cola
    prepared = planned(run_folder, **own | {"tasks": ["sane"]})
    found = results(prepared, scored(prepared)[0], {})
    assert [(s["metric"], "low" in s) for s in found["scores"]] == [("mcc", False)] * 2 and found["paired"] == []
    assert "[" not in scores_table(found) and "has no interval" in comparison_markdown(found)
    display.scores_picture(found, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_task_that_has_the_model_write_is_scored_and_shown(run_folder, own, tmp_path):
    rows = [{"question": f"who is {name}", "answer": [name, f"the {name}"]} for name in ("ann", "bob", "cid")]
    write_task(
        tmp_path, "quiz", rows, output_type="generate_until", doc_to_text="Q: {{question}}?\nA:", doc_to_choice=None,
        doc_to_target="{{answer}}", generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    prepared = planned(run_folder, **own | {"tasks": ["quiz"]})
    assert "the ann" in display.item(prepared.tasks["quiz"])
    answers, _ = scored(prepared)
    found = results(prepared, answers, {})
    assert [(s["metric"], s["n"], s["value"], "low" in s) for s in found["scores"]] == [("exact_match", 3, 0, True)] * 2
    assert all(row["response"] for row in items_of(answers[0]))


def test_all_models_reply_to_the_same_prompts_whichever_is_asked_first(evaluated, run_folder, fresh, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "measure", lambda *_, prompts, **__: (given.append(prompts), {"greedy": {}})[1])
    stage.measure_behaviour(planned(run_folder, **fresh))
    assert given[0] == given[1] and len(given[0]) == 4
    other = planned(run_folder, split_seed=1, **fresh)
    for _ in range(2):
        stage.measure_behaviour(other)
        assert len(given) == 4 and given[2] != given[0], "other prompts are another question, asked once"


def talks(replies: list[str]) -> list[list[dict[str, str]]]:
    """Conversations of one question and one answer."""
    return [
        [{"role": "user", "content": f"Number {k}?"}, {"role": "assistant", "content": reply}]
        for k, reply in enumerate(replies)
    ]


def test_a_task_that_the_data_cannot_make_is_left_out_with_its_reason(own_run, tmp_path):
    run = own_run.rename(tmp_path / "exp[lr=1e-4] 50%, {a}?")
    hold_out(run, talks(["positive", "negative", "neutral"] * 2))
    prepared = planned(run, selection_items=4)
    found = stage.compare(prepared, scored(prepared)[0])
    assert [(s["model"], s["task"], s["n"]) for s in found["scores"]] == [
        (model, "heldout_perplexity", 6) for model in ("base", "run")
    ]
    assert list(found["left_out"]) == ["heldout_next_utterance"]
    assert "leave the task out where replies are a few labels" in found["left_out"]["heldout_next_utterance"]
    assert "Left out: heldout_next_utterance (it takes four different utterances" in scores_table(found)


def test_replies_without_words_are_measured_by_byte(own_run):
    hold_out(own_run, talks(["山" * 60 + "水" * (10 + k) for k in range(6)]))
    prepared = planned(own_run, tasks=["heldout_perplexity"])
    answers, _ = scored(prepared)
    (score, _) = results(prepared, answers, {})["scores"]
    size = sum(3 * (70 + k) for k in range(6))
    said = sum(whole - header for header, whole in (row["loglikelihoods"] for row in items_of(answers[0])))
    assert (score["metric"], score["value"]) == ("byte_perplexity", pytest.approx(np.exp(-said / size)))


def test_a_task_that_cannot_be_scored_costs_no_other_in_one_process_or_two(evaluated, run_folder, own, tmp_path):
    """Two processes share the items and give the same numbers; what one of them cannot score is nobody's."""
    long = {"question": "Long?", "right": 0, "answers": ["word " * 400, "six"]}
    write_task(tmp_path, "long", [SUMS[0], long])
    asked = own | {"tasks": ["long", *SMALL["tasks"]]}
    known = {"tasks": ["helaswag", *asked["tasks"]], "cache_dir": str(run_folder.parent / "cache")}
    alone = planned(run_folder, **asked | known)
    expected, _ = scored(alone)
    assert {result.task for result in expected} == set(SMALL["tasks"])
    assert list(alone.left_out) == ["helaswag", "long of base", "long of run"]
    assert "does not fit max_length" in alone.left_out["long of run"]
    together = planned(run_folder, processes=2, **asked)
    shared, lines = scored(together)
    assert {"helaswag": alone.left_out["helaswag"]} | together.left_out == alone.left_out
    assert "4 computed now, 0 known" in lines[-1]
    assert [line.split(" in ")[0] for line in lines[1:-1]] == [
        f"{result.model.name} · {result.task}: {result.answer['items']} items" for result in shared
    ], "each result is told as it comes"
    for one, two in zip(expected, shared, strict=True):
        assert two.answer["values"] == pytest.approx(one.answer["values"], rel=1e-5)
        assert [row["doc_id"] for row in items_of(one)] == [row["doc_id"] for row in items_of(two)]
    assert not {"worker.json", "worker.log", "progress.jsonl"} & {file.name for file in together.folder.iterdir()}


def test_more_processes_than_gpus_are_a_sentence_before_anything_is_scored(run_folder, fresh):
    two = (Gpu("T4", (7, 5), 15.0),) * 2
    prepared = replace(planned(run_folder, processes=3, **fresh), gpus=(*two, Gpu("P100", (6, 0), 16.0)))
    with pytest.raises(UserError, match="processes is 3, and the GPUs here are 2: set it to 2, or to 0"):
        stage.score_all(prepared, say=lambda line: pytest.fail(line))


def test_an_interruption_ends_the_processes(run_folder, fresh, monkeypatch):
    ended = []

    def events():
        try:
            yield {"event": "said", "text": "base"}
        finally:
            ended.append(True)

    def interrupt(line):
        if line == "base":
            raise KeyboardInterrupt

    prepared = planned(run_folder, processes=2, **fresh)
    monkeypatch.setattr(stage, "Torchrun", lambda *_, **__: SimpleNamespace(events=events))
    with pytest.raises(UserError, match=r"Interrupted while scoring .0 of 4 results are finished.* kept"):
        stage.score_all(prepared, say=interrupt)
    assert ended and not (prepared.folder / "worker.json").exists()


def test_a_worker_says_in_a_sentence_what_is_wrong(own_run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (own_run / "train" / "final" / "config.json").unlink()
    write_json(tmp_path / "worker.json", settings_for(own_run).model_dump(mode="json"))
    with pytest.raises(UserError, match="holds no model: run notebooks/02_train_sft"):
        worker.fill(tmp_path / "worker.json")


@pytest.mark.soak
def test_workers_end_with_a_kernel_that_is_killed(run_folder, fresh):
    import psutil

    settings = settings_for(run_folder, processes=2, selection_items=100_000, **fresh)
    code = (
        "import json\n"
        "from nbutils.evaluate.run import prepare, score_in_processes\n"
        "from nbutils.evaluate.settings import EvaluateSettings\n"
        f"settings = EvaluateSettings.checked(json.loads({settings.model_dump_json()!r}))\n"
        "score_in_processes(prepare(settings), 2, lambda _: None)\n"
    )
    kernel = subprocess.Popen([sys.executable, "-c", code])
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(workers) < 3 and time.monotonic() < deadline and kernel.poll() is None:
        workers = psutil.Process(kernel.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1.0)  # Python has started in them
    kernel.kill()
    kernel.wait()
    assert len(workers) >= 3, "torchrun and two workers"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
