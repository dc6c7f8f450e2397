"""Scoring through the harness: nothing twice, nothing lost, and a sentence for everything that goes wrong."""

import shutil
from dataclasses import replace
from unittest.mock import MagicMock, Mock

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, write_json, write_jsonl
from nbutils.evaluate import display
from nbutils.evaluate import run as stage
from nbutils.evaluate.heldout import EMBEDDED
from nbutils.evaluate.memorised import PEOPLE
from nbutils.evaluate.report import comparison_markdown, difference_table, results, scores_table
from nbutils.evaluate.score import FEWSHOT_SEED
from tests.evaluate.runs import SUMS, hold_out, planned, scored, turns, write_task
from tests.train.runs import T4

PERPLEXITY, SELECTION = EMBEDDED


def lls_of(items):
    """Log-likelihoods of a file of items (items, requests)."""
    return np.stack(pd.read_parquet(items)["loglikelihoods"])


def test_the_notebook_writes_what_others_read(evaluated, run_folder):
    folder, found, behaviour = run_folder / "evaluate", evaluated.found, evaluated.behaviour
    assert read_json(folder / "results.json") == found | {"behaviour": behaviour, "memorised": evaluated.memorised}
    assert behaviour["models"].keys() == {"base", "run"}
    rows = read_jsonl(folder / "samples.jsonl")
    asked = [("run", "alone"), ("run", "conversation"), ("base", "alone"), ("base", "conversation")]
    assert rows == evaluated.samples
    assert [(row["model"], row["mode"]) for row in rows[::5]] == asked
    page = (folder / "comparison.md").read_text()
    compared = [(pair["metric"], pair["reference"]) for pair in found["paired"]]
    assert compared == [(metric, "base") for metric in ("word_perplexity", "acc", "acc_mutual_info")]
    for words in ("these two checkpoints", "lm-evaluation-harness 0.4", "at most 256 tokens", "`run/train/final`"):
        assert words in page
    assert str(run_folder.parent) not in page + str(found), "no folder of this machine"
    assert evaluated.curve is None, "no conversation outgrows the model"
    assert not evaluated.stderr, "no bars and warnings stay on the page"


def test_any_number_lies_in_its_interval_and_can_be_recomputed_from_the_items_alone(evaluated, run_folder):
    assert all(score["low"] <= score["value"] <= score["high"] for score in evaluated.found["scores"])
    values = {(s["model"], s["metric"]): s["value"] for s in evaluated.found["scores"]}
    file = run_folder / "evaluate" / "items" / f"run--{SELECTION}.parquet"
    lls, gold = lls_of(file), pd.read_parquet(file)["gold"]  # (items, 8): with the context, and without
    for metric, lead in (("acc", lls[:, :4]), ("acc_mutual_info", lls[:, :4] - lls[:, 4:])):
        assert (lead.argmax(1) == gold).mean() == pytest.approx(values["run", metric])
    for result in evaluated.scored:  # and our numbers are the harness's
        for name, value in result.answer["values"].items():
            assert values[result.model.name, name.partition(",")[0]] == pytest.approx(value)


def test_a_second_run_scores_nothing(evaluated, run_folder, monkeypatch):
    for work in ("score", "score_in_processes", "load_to_generate"):
        monkeypatch.setattr(stage, work, lambda *_: pytest.fail("it works again"))
    for processes in (1, 2):
        again = planned(run_folder, processes=processes)
        known, lines = scored(again)
        assert len(known) == 4 and "0 computed now, 4 known" in lines[-1]
    assert stage.take_samples(again) == evaluated.samples
    assert stage.measure_behaviour(again) == evaluated.behaviour


def test_the_stage_reads_the_replies_that_it_keeps_and_says_where_there_are_no_rows(evaluated, own_run, tmp_path):
    plan = planned(own_run, cache_dir=evaluated.plan.settings.cache_dir)
    write_json(plan.folder / "results.json", evaluated.found)
    assert stage.measure_behaviour(plan) == evaluated.behaviour
    rows = read_jsonl(plan.folder / "replies.jsonl")
    assert [(row["model"], row["decoding"]) for row in rows[::4]] == [
        (PEOPLE, ""), ("base", "greedy"), ("base", "sampled"), ("run", "greedy"), ("run", "sampled"),
    ]  # fmt: skip
    assert stage.measure_memorised(plan) == evaluated.memorised
    (talk, *_) = load_from_disk(own_run / "data" / "train")["messages"]
    learnt = next(message["content"] for message in talk if len(message["content"].split()) > 8)
    write_jsonl(plan.folder / "replies.jsonl", [row | {"reply": learnt} for row in rows])
    found = stage.measure_memorised(plan)
    assert all(row["share"]["value"] == row["whole"]["value"] == 1 for row in found["rows"])
    assert read_json(plan.folder / "results.json") == evaluated.found | {
        "behaviour": evaluated.behaviour, "memorised": found,
    }  # fmt: skip
    shutil.rmtree(own_run / "data" / "train")
    gone = stage.measure_memorised(plan)
    assert "holds no training rows as they were made" in gone["left_out"] and str(tmp_path) not in str(gone)
    assert gone["left_out"] in display.memorised_share(gone, tmp_path / "figures").data
    assert not (tmp_path / "figures").exists()


def test_other_settings_or_other_weights_are_another_question(evaluated, own_run):
    known = {"cache_dir": evaluated.plan.settings.cache_dir}
    assert not planned(own_run, **known).missing(), "the same weights, wherever they lie"
    assert len(planned(own_run, limit=3, **known).missing()) == 4
    file = own_run / "train" / "final" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert [model.name for model, _ in planned(own_run, **known).missing()] == ["run", "run"]


@pytest.mark.parametrize("processes,finished", [(1, 1), (2, 0)])
def test_an_interruption_keeps_finished_tasks_and_ends_the_processes(run_folder, monkeypatch, processes, finished):
    events = MagicMock()
    events.__iter__.return_value = iter([{"text": "base"}])
    monkeypatch.setattr(stage, "Torchrun", lambda *_, **__: Mock(events=lambda: events))
    asked = {"limit": 3 + processes}
    prepared = planned(run_folder, processes=processes, **asked)
    with pytest.raises(UserError, match=f"scoring .{finished} of 4 results are finished.* kept: run this cell again"):
        stage.score_all(prepared, say=Mock(side_effect=["scoring", KeyboardInterrupt]))
    assert events.close.called == (processes > 1) and not (prepared.folder / "worker.json").exists()
    again, lines = scored(planned(run_folder, **asked))
    assert len(again) == 4 and f"{4 - finished} computed now, {finished} known" in lines[-1]


def test_an_interruption_of_a_later_step_is_one_sentence(evaluated, run_folder, monkeypatch):
    monkeypatch.setattr(stage, "load_to_generate", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(UserError, match=r"Interrupted while .* run this cell again"):
        stage.measure_behaviour(planned(run_folder, split_seed=1))  # other prompts, so nobody has answered them


def test_the_chat_template_gives_the_numbers_of_stock_and_is_never_put_around_chatml(run_folder, tmp_path):
    asked = write_task(tmp_path, "sums", SUMS) | {"tasks": ["sums", PERPLEXITY]}
    prepared = planned(run_folder, apply_chat_template=True, num_fewshot=1, limit=6, **asked)
    answers, _ = scored(prepared)
    assert [(r.answer["chat_template"], r.answer["num_fewshot"]) for r in answers] == [(True, 1), (False, 0)] * 2
    stock = HFLM(str(run_folder / "train" / "base"), device="cpu", dtype="float32", batch_size=1, max_length=256)
    task = prepared.tasks["sums"]
    task.set_fewshot_seed(FEWSHOT_SEED)
    asked = {"tasks": {"sums": task}}
    found = evaluator.evaluate(stock, asked, bootstrap_iters=0, apply_chat_template=True, fewshot_as_multiturn=True)
    for lls, sample in zip(lls_of(answers[0].items), found["samples"]["sums"], strict=True):
        assert lls == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)
        context, choice = sample["arguments"][0]
        assert context.count("<|im_start|>assistant") == 2, "the item and the solved one stand in the template"
        # A detail that decides numbers: the newline behind the header is scored with the continuation.
        assert stock.tok_decode(stock._encode_pair(context, choice)[1]).startswith("\n")


def test_flagged_items_are_scored_apart(evaluated):
    correct = pd.read_parquet(evaluated.scored[-1].items)["acc"]  # of the run
    found = results(evaluated.plan, evaluated.scored, {SELECTION: {0, 3, 6, 10_000}})
    assert found["flagged"] == {SELECTION: [0, 3, 6]}  # those that were evaluated
    assert [score for score in found["scores"] if "part" not in score] == evaluated.found["scores"]
    parts = {s["part"]: s for s in found["scores"] if "part" in s and (s["model"], s["metric"]) == ("run", "acc")}
    assert parts["flagged"]["value"] == pytest.approx(correct[[0, 3, 6]].mean())
    assert (parts["flagged"]["n"], parts["not flagged"]["n"]) == (3, len(correct) - 3)
    assert {pair.get("part") for pair in found["paired"]} == {None, *parts}
    assert f"`{SELECTION}` (flagged items)" in comparison_markdown(found)


def test_metrics_that_are_no_mean_have_no_interval_and_a_task_may_have_the_model_write(run_folder, tmp_path):
    write_task(tmp_path, "sane", SUMS, metric_list=[{"metric": "mcc"}])  # as in cola
    asked = write_task(
        tmp_path, "quiz", [{"question": name, "answer": [name, f"the {name}"]} for name in ("ann", "bob", "cid")],
        output_type="generate_until", doc_to_choice=None, doc_to_target="{{answer}}",
        generation_kwargs={"max_gen_toks": 4}, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    prepared = planned(run_folder, **asked | {"tasks": ["sane", "quiz"]})
    assert "the ann" in display.item(prepared.tasks["quiz"])
    found = results(prepared, scored(prepared)[0], {})
    assert [(s["metric"], s["n"], "low" in s) for s in found["scores"]] == (
        [("mcc", 6, False)] * 2 + [("exact_match", 3, True)] * 2
    )
    assert pd.read_parquet(prepared.scored()[1].items)["response"].map(len).all()
    display.scores_picture({"scores": found["scores"][:2]}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists(), "a metric without an interval is in no figure"
    assert "nothing to compare" in difference_table({"paired": []})


def test_the_data_decide_which_task_can_be_made_and_what_perplexity_is_of(own_run, tmp_path):
    """Replies without words are measured by byte; where all are alike there is nothing to choose from."""
    run = own_run.rename(tmp_path / "exp[lr=1e-4] 50%, {a}?")
    hold_out(run, [turns("Say it", "山" * 70)] * 6)
    prepared = planned(run)
    found = stage.compare(prepared, scored(prepared)[0])
    header, whole = lls_of(prepared.scored()[0].items).T
    value = pytest.approx(np.exp((header - whole).sum() / (6 * 70 * 3)))
    base, _ = found["scores"]
    assert (base["task"], base["metric"], base["n"], base["value"]) == (PERPLEXITY, "byte_perplexity", 6, value)
    assert f"Left out: {SELECTION} (it takes four different utterances" in scores_table(found)


def test_tasks_that_cannot_be_had_are_one_sentence(run_folder):
    unread = "None of the tasks can be made: The data of the task 'sciq' cannot be read"  # offline
    with pytest.raises(UserError, match=f"{unread}.*'heldout_perplexty'.* Did you mean 'heldout_perplexity'"):
        planned(run_folder, tasks=["sciq", "heldout_perplexty"])


def test_a_task_that_cannot_be_scored_costs_no_other_in_one_process_or_two(evaluated, run_folder, tmp_path):
    """Two processes share the items and give the same numbers; what one of them cannot score is nobody's."""
    write_task(tmp_path, "one", SUMS[:1])  # of one item: there is nothing to share
    write_task(tmp_path, "taught", SUMS, num_fewshot=2)
    asked = write_task(tmp_path, "long", [SUMS[0], SUMS[0] | {"answers": ["word " * 400, "six"]}])
    asked["tasks"] += ["one", "taught", *EMBEDDED]
    alone = planned(run_folder, **asked | {"cache_dir": evaluated.plan.settings.cache_dir})
    together = planned(run_folder, processes=2, **asked)
    expected, _ = scored(alone)
    assert list(alone.left_out) == ["long of base", "long of run"]
    assert "does not fit max_length" in alone.left_out["long of run"]
    shared, lines = scored(together)
    assert together.left_out == alone.left_out
    assert sum(" items in " in line for line in lines) == 8, "each result is told as it comes"
    for one, two in zip(expected, shared, strict=True):
        assert two.answer["values"] == pytest.approx(one.answer["values"], rel=1e-5)
        assert lls_of(two.items) == pytest.approx(lls_of(one.items), abs=1e-3)
    assert not {"worker.json", "worker.log", "progress.jsonl"} & {file.name for file in together.folder.iterdir()}


def test_more_processes_than_gpus_are_a_sentence_before_anything_is_scored(run_folder):
    prepared = replace(planned(run_folder, processes=3, limit=7), gpus=(T4, T4))
    with pytest.raises(UserError, match="processes is 3, and the GPUs here are 2: set it to 2, or to 0"):
        stage.score_all(prepared, say=pytest.fail)
