"""Scoring through the harness: nothing twice, nothing lost, and a sentence for everything that goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.tasks import load_tasks
from nbutils.evaluate import display
from nbutils.evaluate import run as stage
from nbutils.evaluate.heldout import YAMLS
from nbutils.evaluate.models import Model, check_model, models_of_run
from nbutils.evaluate.report import results, scores_table, settings_list
from nbutils.evaluate.run import prepare, score_all, score_in_processes
from nbutils.evaluate.scorer import RowScorer
from tests.evaluate.runs import hold_out, made_up_run, settings_for


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("evaluated") / "run")


def planned(run: Path, **changes):
    return prepare(settings_for(run, **changes))


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A folder with a task of one's own: six sums with two answers each."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"{a} plus {a}?", "right": k % 2, "answers": ["four", "six"]} for k, a in enumerate(range(6))]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: sums.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: answers\ndoc_to_target: right\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def evaluated(run_folder):
    prepared = planned(run_folder)
    scored = score_all(prepared, say=lambda _: None)
    return prepared, scored, stage.compare(prepared, scored)


def test_results_hold_base_and_run_with_intervals_and_differences(evaluated, run_folder):
    _, _, found = evaluated
    assert [m["name"] for m in found["models"]] == ["base", "run"]
    assert {(s["task"], s["metric"]) for s in found["scores"]} == {
        ("heldout_perplexity", "word_perplexity"),
        ("heldout_next_utterance", "acc"),
        ("heldout_next_utterance", "acc_mutual_info"),
    }
    for score_ in found["scores"]:
        assert score_["low"] <= score_["value"] <= score_["high"] and score_["n"] > 0
    assert [(p["model"], p["reference"]) for p in found["paired"]] == [("run", "base")] * 3
    assert read_json(run_folder / "evaluate" / "results.json") == json.loads(json.dumps(found))
    page = (run_folder / "evaluate" / "comparison.md").read_text()
    assert "these two checkpoints" in page and "lm-evaluation-harness 0.4" in page and "1,024" not in page
    display.scores_picture(found, run_folder / "evaluate" / "figures")
    for name in ("scores.png", "scores.svg", "scores-dark.png"):
        assert (run_folder / "evaluate" / "figures" / name).stat().st_size > 1000


def test_any_number_can_be_recomputed_from_the_items_alone(evaluated, run_folder):
    _, scored, found = evaluated
    values = {(s["model"], s["task"], s["metric"]): s["value"] for s in found["scores"]}
    for model in ("base", "run"):
        items = pq.read_table(
            run_folder / "evaluate" / "items" / f"{model}--heldout_next_utterance.parquet"
        ).to_pylist()
        lls = np.array([row["loglikelihoods"] for row in items])  # (items, 8): with the context, and without
        gold = np.array([row["gold"] for row in items])
        assert (lls[:, :4].argmax(1) == gold).mean() == pytest.approx(values[model, "heldout_next_utterance", "acc"])
        gained = (lls[:, :4] - lls[:, 4:]).argmax(1) == gold
        assert gained.mean() == pytest.approx(values[model, "heldout_next_utterance", "acc_mutual_info"])
    for result in scored:  # and our numbers are the harness's
        for name, value in result.answer["values"].items():
            metric = name.partition(",")[0]
            assert values[result.model.name, result.task, metric] == pytest.approx(value)


def test_a_second_run_scores_nothing(evaluated, run_folder, monkeypatch):
    monkeypatch.setattr("nbutils.evaluate.score.open_model", lambda *a, **k: pytest.fail("opened a model"))
    lines: list[str] = []
    again = score_all(planned(run_folder), say=lines.append)
    assert len(again) == 4
    assert "0 computed now, 4 known" in lines[-1]


def test_other_settings_or_other_weights_are_scored_again(evaluated, run_folder, tmp_path):
    prepared, _scored, _ = evaluated
    limited = planned(run_folder, limit=3)
    assert limited.asking != prepared.asking
    lines: list[str] = []
    score_all(limited, say=lines.append)
    assert "4 computed now" in lines[-1]
    copy = tmp_path / "final"
    shutil.copytree(run_folder / "train" / "final", copy)
    final = str(run_folder / "train" / "final")
    assert ModelRef.parse(str(copy)).identity() == ModelRef.parse(final).identity()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert ModelRef.parse(str(copy)).identity() != ModelRef.parse(final).identity()


def test_an_interruption_keeps_finished_tasks(run_folder, tmp_path, monkeypatch):
    prepared = planned(run_folder, cache_dir=str(tmp_path / "cache"), limit=4)
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
        score_all(prepared, say=lambda _: None)
    lines: list[str] = []
    assert len(score_all(prepared, say=lines.append)) == 4
    assert "3 computed now, 1 known" in lines[-1]


def test_an_unknown_task_gets_the_nearest_names(run_folder, tmp_path):
    for name, near in (("heldout_perplexty", "heldout_perplexity"), ("helaswag", "hellaswag")):
        with pytest.raises(UserError, match=f"No task is called '{name}' .* Did you mean .*{near}"):
            load_tasks([name], YAMLS)


def test_a_task_without_its_data_offline_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"The data of the task 'sciq' cannot be read"):
        load_tasks(["sciq"], {})


def test_own_tasks_with_local_data(run_folder, sums, tmp_path):
    prepared = planned(run_folder, tasks=["sums"], task_path=str(sums), cache_dir=str(tmp_path / "cache"))
    scored = score_all(prepared, say=lambda _: None)
    assert {result.answer["items"] for result in scored} == {6}
    with pytest.raises(UserError, match="does not exist"):
        planned(run_folder, tasks=["sums"], task_path=str(tmp_path / "nowhere"))


def test_the_chat_template_is_asked_for_by_name_and_never_put_around_chatml(run_folder, tmp_path):
    prepared = planned(run_folder, apply_chat_template=True, limit=2, cache_dir=str(tmp_path / "cache"))
    scored = score_all(prepared, say=lambda _: None)
    assert all(result.answer["chat_template"] is False for result in scored)
    assert "moves the newline" in stage.comparison_markdown(stage.compare(prepared, scored))


def test_models_of_a_table_read_the_same_length(run_folder):
    model = Model("run", "run", ModelRef.parse(str(run_folder / "train" / "final")))
    with pytest.raises(UserError, match="reads 256 tokens at once, and max_length is 512"):
        check_model(model, max_length=512, chat_template=False)


def test_peers_may_be_folders_hub_ids_or_gguf_files(run_folder, smollm2_gguf, monkeypatch, tmp_path):
    peers = [str(smollm2_gguf), "owner/model@abc123", str(run_folder / "train" / "base")]
    models = models_of_run(Run(run_folder), peers)
    assert [(m.name, m.role, m.ref.revision) for m in models[2:]] == [
        ("/".join(smollm2_gguf.parts[-3:]), "peer", ""),
        ("owner/model@abc123", "peer", "abc123"),
        ("run/train/base", "peer", ""),
    ]
    with pytest.raises(UserError, match=r"GGUF file nowhere\.gguf"):
        models_of_run(Run(run_folder), ["nowhere.gguf"])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be loaded"):
        models[3].ref.identity()


def test_models_of_one_name_stay_apart(run_folder, tmp_path):
    final = run_folder / "train" / "final"
    for folder in ("a/train/final", "b/train/final", "models/SmolLM2-1.7B", "c/d/x", "e/d/x", "c/d/y"):
        shutil.copytree(final, tmp_path / folder)
    peers = [str(tmp_path / f) for f in ("a/train/final", "b/train/final", "models/SmolLM2-1.7B", "c/d/x", "e/d/x")]
    hub = ["owner/model@one", "owner/model@two"]
    names = [m.name for m in models_of_run(Run(run_folder), [*peers, str(tmp_path / "c/d/y"), *hub])]
    assert names == [
        "base", "run", "a/train/final", "b/train/final", f"{tmp_path.name}/models/SmolLM2-1.7B",
        "c/d/x", "e/d/x", "c/d/y",
        "owner/model@one", "owner/model@two",
    ]  # fmt: skip
    shutil.copytree(final, tmp_path / "again" / "a" / "train" / "final")
    twins = [peers[0], str(tmp_path / "again" / "a" / "train" / "final")]
    assert [m.name for m in models_of_run(Run(run_folder), twins)[2:]] == ["a/train/final", twins[1]]


def test_peers_named_like_the_runs_own_models_have_columns_of_their_own(evaluated, run_folder, tmp_path):
    other = tmp_path / "other" / "train"
    shutil.copytree(run_folder / "train" / "base", other / "base")
    shutil.copytree(run_folder / "train" / "final", other / "final")
    prepared = planned(run_folder, peers=[str(other / "base"), str(other / "final")], tasks=["heldout_next_utterance"])
    lines: list[str] = []
    scored = score_all(prepared, say=lines.append)
    assert "0 computed now" in lines[-1], "the same weights in another place are the same model"
    found = results(prepared, scored, {})
    names = ["base", "run", "other/train/base", "other/train/final"]
    assert [m["name"] for m in found["models"]] == names
    assert [m["role"] for m in found["models"]] == ["base", "run", "peer", "peer"]
    assert [s["model"] for s in found["scores"] if s["metric"] == "acc"] == names
    assert [p["reference"] for p in found["paired"] if p["metric"] == "acc"] == ["base", *names[2:]]
    assert len(scores_table(found).splitlines()[0].split("|")) == 3 + 4 + 2
    assert "other/train/final`" in settings_list(found) and "(sha256 " in settings_list(found)
    found["models"][2]["identity"] = {"hub": "owner/model", "commit": "0123456789abcdef0123456789abcdef01234567"}
    assert "(commit 0123456789ab)," in settings_list(found), "not the branch that was asked for"


def test_flagged_items_are_scored_apart(evaluated):
    prepared, scored, _ = evaluated
    table = pq.read_table(next(r.items for r in scored if (r.model.name, r.task) == ("run", "heldout_next_utterance")))
    correct = np.array(table["acc"].to_pylist())
    flagged = set(range(0, len(correct), 3))
    found = results(prepared, scored, {"heldout_next_utterance": flagged | {10_000}, "elsewhere": {1}})
    assert found["flagged"] == {"heldout_next_utterance": sorted(flagged)}, "those that were evaluated"
    rows = {s.get("part", "all"): s for s in found["scores"] if (s["model"], s["metric"]) == ("run", "acc")}
    assert {part: row["n"] for part, row in rows.items()} == {
        "all": len(correct), "flagged": len(flagged), "not flagged": len(correct) - len(flagged),
    }  # fmt: skip
    assert rows["flagged"]["value"] == pytest.approx(correct[sorted(flagged)].mean())
    assert rows["all"]["value"] == pytest.approx(correct.mean())
    parts = {p.get("part", "all") for p in found["paired"] if p["task"] == "heldout_next_utterance"}
    assert parts == {"all", "flagged", "not flagged"}
    assert not [s for s in found["scores"] if s["task"] == "heldout_perplexity" and "part" in s]
    page = stage.comparison_markdown(found)
    assert "heldout_next_utterance (flagged)" in page and "scored apart" in page


def test_metrics_that_are_no_mean_have_no_interval_and_no_figure(run_folder, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": f"Is {a} a number?", "label": k % 2}
        for k, a in enumerate(["one", "red", "two", "dog", "six", "cat"])
    ]
    (folder / "sane.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sane.yaml").write_text(
        "task: sane\ndataset_path: json\ndataset_kwargs: {data_files: {test: sane.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: ['no', 'yes']\ndoc_to_target: label\n"
        "metric_list: [{metric: mcc}]\n"  # as in cola
    )
    run = made_up_run(tmp_path / "run")
    prepared = planned(run, tasks=["sane"], task_path=str(folder), cache_dir=str(tmp_path / "cache"))
    found = stage.compare(prepared, score_all(prepared, say=lambda _: None))
    assert [(s["metric"], "low" in s) for s in found["scores"]] == [("mcc", False)] * 2 and found["paired"] == []
    page = (run / "evaluate" / "comparison.md").read_text()
    assert "(no interval)" in page
    display.scores_picture(found, run / "evaluate" / "figures")
    assert not (run / "evaluate" / "figures" / "scores.png").exists()


def test_items_are_shown_as_they_are_asked(evaluated):
    shown = display.item(evaluated[0].tasks["heldout_next_utterance"]).data
    assert shown.count("&lt;|im_start|&gt;assistant") >= 4 and "target: " in shown


def test_a_peer_that_cannot_be_scored_is_refused_before_anything_is(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("nbutils.evaluate.score.open_model", lambda *a, **k: pytest.fail("opened a model"))
    short, cipher = tmp_path / "short", tmp_path / "bert"
    shutil.copytree(run_folder / "train" / "base", short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    prepared = planned(run_folder, peers=[str(short)])
    assert "reads 128 tokens at once, and max_length is 256" in str(prepared.left_out)
    cipher.mkdir()
    (cipher / "config.json").write_text(json.dumps({"model_type": "t5"}))
    prepared = planned(run_folder, peers=[str(cipher)])
    assert "not a causal language model" in str(prepared.left_out)
    assert [model.name for model in prepared.models] == ["base", "run"]


def test_a_wanted_chat_template_that_is_missing_is_one_sentence(run_folder, sums, tmp_path):
    peer = tmp_path / "plain"
    shutil.copytree(run_folder / "train" / "base", peer)
    (peer / "chat_template.jinja").unlink()
    wanted = {"apply_chat_template": True, "peers": [str(peer)]}
    left_out = planned(run_folder, tasks=["sums"], task_path=str(sums), **wanted).left_out
    assert "plain has no chat template: set apply_chat_template to false" in str(left_out)
    assert not planned(run_folder, **wanted).left_out  # ChatML tasks need none


def test_with_the_chat_template_a_real_task_has_the_numbers_of_stock(run_folder, sums, tmp_path, monkeypatch):
    prepared = planned(
        run_folder, tasks=["sums"], task_path=str(sums), apply_chat_template=True, cache_dir=str(tmp_path / "cache")
    )
    scored = score_all(prepared, say=lambda _: None)
    assert all(result.answer["chat_template"] for result in scored)
    stock = HFLM(str(run_folder / "train" / "base"), device="cpu", dtype="float32", batch_size=1, max_length=256)
    asked: list[tuple[list[int], list[int]]] = []
    real = stock._loglikelihood_tokens
    monkeypatch.setattr(
        stock, "_loglikelihood_tokens", lambda r, **k: (asked.extend(x[1:] for x in r), real(r, **k))[1]
    )
    found = evaluator.evaluate(stock, {"tasks": prepared.tasks}, bootstrap_iters=0, apply_chat_template=True)
    items = pq.read_table(scored[0].items).to_pylist()
    for row, sample in zip(items, found["samples"]["sums"], strict=True):
        assert "<|im_start|>assistant" in sample["arguments"][0][0], "the item stands in the template"
        assert row["loglikelihoods"] == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)
    # A detail that decides numbers: the newline behind the header is scored with the continuation.
    assert all(stock.tok_decode(continuation).startswith("\n") for _, continuation in asked)


@pytest.mark.parametrize("step", ["measure_behaviour", "take_samples", "curve"])
def test_an_interruption_of_a_later_step_is_one_sentence(run_folder, tmp_path, monkeypatch, step):
    def interrupted(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "load_to_generate", interrupted)
    prepared = planned(run_folder, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"Interrupted while .* run this cell again"):
        getattr(stage, step)(prepared)


def test_all_models_reply_to_the_same_prompts_whichever_is_asked_first(evaluated, run_folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "measure", lambda *_, prompts, **__: (given.append(prompts), {"greedy": {}})[1])
    prepared = planned(run_folder, cache_dir=str(tmp_path / "cache"))
    stage.measure_behaviour(prepared)
    assert given[0] == given[1] and len(given[0]) == 4
    other = planned(run_folder, cache_dir=str(tmp_path / "cache"), split_seed=1)
    stage.measure_behaviour(other)
    assert len(given) == 4 and given[2] != given[0], "other prompts are another question"
    stage.measure_behaviour(other)
    assert len(given) == 4


def test_behaviour_samples_and_curve_are_written_beside_the_scores(evaluated, run_folder):
    prepared, _, _ = evaluated
    behaviour = stage.measure_behaviour(prepared)
    assert set(behaviour["models"]) == {"base", "run"}
    assert behaviour["models"]["run"]["greedy"]["replies"] == 4
    rows = stage.take_samples(prepared)
    assert rows == read_jsonl(run_folder / "evaluate" / "samples.jsonl")
    assert [(r["model"], r["mode"]) for r in rows[:10]] == [("run", "alone")] * 5 + [("run", "conversation")] * 5
    assert read_json(run_folder / "evaluate" / "results.json")["behaviour"] == behaviour
    assert stage.take_samples(prepared) == rows


def test_two_processes_share_the_items_and_give_the_same_numbers(evaluated, run_folder, tmp_path, monkeypatch):
    _, scored, _ = evaluated
    prepared = planned(run_folder, processes=2, cache_dir=str(tmp_path / "cache"))
    lines: list[str] = []
    shared = score_all(prepared, say=lines.append)
    assert "4 computed now, 0 known" in lines[-1]
    assert [line.split(" in ")[0] for line in lines[1:3]] == [
        f"base · heldout_perplexity: {scored[0].answer['items']} items",
        f"base · heldout_next_utterance: {scored[1].answer['items']} items",
    ], "each result is told as it comes"
    for result in shared:
        assert result.answer["items"]
    monkeypatch.setattr(stage, "score_in_processes", lambda *_: pytest.fail("started processes for nothing"))
    score_all(prepared, say=lambda _: None)
    for one, two in zip(scored, shared, strict=True):
        for name, value in one.answer["values"].items():
            assert two.answer["values"][name] == pytest.approx(value, rel=1e-5)
        a, b = (pq.read_table(r.items).to_pylist() for r in (one, two))
        assert [r["doc_id"] for r in a] == [r["doc_id"] for r in b]


def test_an_interruption_ends_all_processes_and_keeps_what_is_finished(run_folder, tmp_path):
    import psutil

    prepared = planned(run_folder, processes=2, cache_dir=str(tmp_path / "cache"))
    workers: list[psutil.Process] = []
    others = set(psutil.Process().children(recursive=True))  # a browser of other tests may be among them

    def say(line: str) -> None:
        if line.startswith("base · heldout_perplexity"):
            workers.extend(p for p in psutil.Process().children(recursive=True) if p not in others)
            raise KeyboardInterrupt

    with pytest.raises(UserError, match=r"Interrupted while scoring .\d of 4 results are finished.* kept"):
        score_all(prepared, say=say)
    assert len(workers) >= 3, "torchrun and two workers"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_workers_say_in_a_sentence_what_is_wrong(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    prepared = planned(run, processes=2)
    (run / "train" / "final" / "config.json").unlink()
    with pytest.raises(UserError, match="holds no model: run notebooks/02_train_sft"):
        score_in_processes(prepared, 1, print)


def test_a_peer_on_the_hub_is_known_by_its_commit_and_scored_by_the_real_hub_code(run_folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small-chat"
    shutil.copytree(run_folder / "train" / "base", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from nbutils.core.run.models import ModelRef\n"
        "from nbutils.evaluate.models import Model, facts_of, open_model\n"
        "model = Model('someone/small-chat', 'peer', ModelRef.parse('someone/small-chat'))\n"
        "lm = open_model(model, 'cpu', 256, 'fp32')\n"
        "facts = facts_of(model, lm)\n"
        "print(model.ref.identity()['commit'], facts['source'], facts['identity']['commit'], lm.strategy)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == f"{commit} someone/small-chat {commit} shared rows", done.stderr[-2000:]


def test_a_task_that_has_the_model_write_is_scored_and_shown(run_folder, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"who is {name}", "answer": [name, f"the {name}"]} for name in ("ann", "bob", "cid")]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "quiz.yaml").write_text(  # as nq_open
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: quiz.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: 'Q: {{question}}?\\nA:'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    prepared = planned(run_folder, tasks=["quiz"], task_path=str(folder), cache_dir=str(tmp_path / "cache"))
    assert "the ann" in display.item(prepared.tasks["quiz"]).data
    scored = score_all(prepared, say=lambda _: None)
    found = results(prepared, scored, {})
    assert [(s["metric"], s["n"], s["value"], "low" in s) for s in found["scores"]] == [("exact_match", 3, 0, True)] * 2
    assert all(row["response"] for row in pq.read_table(scored[0].items).to_pylist())


@pytest.mark.soak
def test_workers_end_with_a_kernel_that_is_killed(run_folder, tmp_path):
    import psutil

    settings = settings_for(run_folder, processes=2, cache_dir=str(tmp_path / "cache"), selection_items=100_000)
    code = (
        "import json\n"
        "from nbutils.evaluate.run import prepare, score_in_processes\n"
        "from nbutils.evaluate.settings import EvaluateSettings\n"
        f"settings = EvaluateSettings.checked(json.loads({settings.model_dump_json()!r}))\n"
        "plan = prepare(settings)\n"
        "score_in_processes(plan, 2, lambda _: None)\n"
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


@pytest.mark.soak
def test_a_gguf_peer_is_scored_as_its_unpacked_model_is(
    run_folder, sums, smollm2_gguf, smollm2_folder, tmp_path, monkeypatch
):
    """The tokenizer of a GGUF file is read as everywhere else: AutoTokenizer gives other ids in some releases."""
    peers = [str(smollm2_gguf), str(smollm2_folder)]
    prepared = planned(
        run_folder, tasks=["sums"], task_path=str(sums), limit=2, peers=peers, cache_dir=str(tmp_path / "cache")
    )
    assert [model.name for model in prepared.models[2:]] == [
        "/".join(path.parts[-3:]) for path in (smollm2_gguf, smollm2_folder)
    ]
    calls, original = [], ModelRef.raw_tokenizer
    monkeypatch.setattr(ModelRef, "raw_tokenizer", lambda ref: calls.append(ref) or original(ref))
    scored = score_all(prepared, say=lambda _: None)
    packed, unpacked = (pq.read_table(r.items)["loglikelihoods"].to_pylist() for r in scored[2:])
    assert packed == [pytest.approx(row, abs=1e-3) for row in unpacked] and len(packed) == 2
    assert len(calls) == 1


def talks(replies: list[str]) -> list[list[dict[str, str]]]:
    """Conversations of one question and one answer."""
    return [
        [{"role": "user", "content": f"Number {k}?"}, {"role": "assistant", "content": reply}]
        for k, reply in enumerate(replies)
    ]


def test_a_task_that_the_data_cannot_make_is_left_out_with_its_reason(tmp_path):
    run = made_up_run(tmp_path / "exp[lr=1e-4] 50%, {a}?", evaluation=4)
    hold_out(run, talks(["positive", "negative", "neutral"] * 2))
    prepared = planned(run, selection_items=4)
    assert list(prepared.tasks) == ["heldout_perplexity"]
    found = stage.compare(prepared, score_all(prepared, say=lambda _: None))
    assert list(found["left_out"]) == ["heldout_next_utterance"]
    assert [(s["model"], s["n"]) for s in found["scores"]] == [("base", 6), ("run", 6)]
    assert "Left out: heldout_next_utterance (it takes four different utterances" in scores_table(found)


def test_replies_without_words_are_measured_by_byte(tmp_path):
    run = made_up_run(tmp_path / "run", evaluation=4)
    hold_out(run, talks(["山" * 60 + "水" * (10 + k) for k in range(6)]))
    prepared = planned(run, tasks=["heldout_perplexity"])
    scored = score_all(prepared, say=lambda _: None)
    found = stage.compare(prepared, scored)
    assert {s["metric"] for s in found["scores"]} == {"byte_perplexity"}
    lls = pq.read_table(scored[0].items)["loglikelihoods"].to_pylist()
    size = sum(3 * (70 + k) for k in range(6))
    assert found["scores"][0]["value"] == pytest.approx(np.exp(-sum(whole - header for header, whole in lls) / size))


def test_a_task_that_cannot_be_scored_costs_no_other(run_folder, sums, tmp_path):
    rows = [{"question": "Long?", "right": 0, "answers": ["word " * 400, "six"]}]
    (sums / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sums / "long.yaml").write_text((sums / "sums.yaml").read_text().replace("sums", "long"))
    prepared = planned(
        run_folder, tasks=["long", "sums", "helaswag"], task_path=str(sums), cache_dir=str(tmp_path / "cache")
    )
    found = results(prepared, score_all(prepared, say=lambda _: None), {})
    assert {s["task"] for s in found["scores"]} == {"sums"}
    assert list(found["left_out"]) == ["helaswag", "long of base", "long of run"]
    assert "does not fit max_length" in found["left_out"]["long of run"]
    with pytest.raises(UserError, match=r"None of the tasks can be made: .*[Dd]id you mean"):
        planned(run_folder, tasks=["helaswag"])
