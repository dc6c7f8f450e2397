"""Scoring through the harness: nothing twice, nothing lost, and a sentence for everything that goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl
from nbutils.evaluate import run as stage
from nbutils.evaluate.loading import load_tasks
from nbutils.evaluate.models import Model, identity, models_of_run, open_model
from nbutils.evaluate.run import plan, score_all
from nbutils.evaluate.score import score
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.evaluate.runs import made_up_run, settings_for


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("evaluated") / "run")


def planned(run: Path, **changes):
    return plan(settings_for(run, **changes), run / "evaluate", run / "data", run / "train" / "final")


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
        assert (lls[:, :4].argmax(1) == [row["choice"] for row in items]).all()
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
    assert len(again) == 4 and all(result.cached for result in again)
    assert "0 computed now, 4 known" in lines[-1]


def test_other_settings_or_other_weights_are_scored_anew(evaluated, run_folder, tmp_path):
    prepared, _scored, _ = evaluated
    limited = planned(run_folder, limit=3)
    assert limited.asking != prepared.asking
    assert len([r for r in score_all(limited, say=lambda _: None) if not r.cached]) == 4
    copy = tmp_path / "final"
    shutil.copytree(run_folder / "train" / "final", copy)
    assert identity(Model("a", "run", str(copy))) == identity(Model("b", "peer", str(run_folder / "train" / "final")))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert identity(Model("a", "run", str(copy))) != identity(Model("b", "peer", str(run_folder / "train" / "final")))


def test_an_interruption_keeps_finished_tasks(run_folder, tmp_path, monkeypatch):
    prepared = planned(run_folder, cache_dir=str(tmp_path / "cache"), limit=4)
    calls: list[int] = []
    real = SharedPrefixLM._score

    def interrupted(self, requests):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(SharedPrefixLM, "_score", interrupted)
    with pytest.raises(UserError, match="1 of 4 results are finished and kept"):
        score_all(prepared, say=lambda _: None)
    lines: list[str] = []
    assert len(score_all(prepared, say=lines.append)) == 4
    assert "3 computed now, 1 known" in lines[-1]


def test_an_unknown_task_gets_the_nearest_names(run_folder, tmp_path):
    for name, near in (("heldout_perplexty", "heldout_perplexity"), ("helaswag", "hellaswag")):
        with pytest.raises(UserError, match=f"No task is called '{name}': did you mean .*{near}"):
            load_tasks([name], task_path="", num_fewshot=0, heldout=tmp_path)


def test_a_task_without_its_data_offline_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"The data of the task 'sciq' cannot be read"):
        load_tasks(["sciq"], task_path="", num_fewshot=0, heldout=tmp_path)


def test_own_tasks_with_local_data(run_folder, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"{a} plus {a}?", "right": k % 2, "answers": ["four", "six"]} for k, a in enumerate(range(6))]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: sums.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: answers\ndoc_to_target: right\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    prepared = planned(run_folder, tasks=["sums"], task_path=str(folder), cache_dir=str(tmp_path / "cache"))
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
    model = Model("run", "run", str(run_folder / "train" / "final"))
    with pytest.raises(UserError, match="reads 256 tokens at once, and max_length is 512"):
        open_model(model, max_length=512, precision="fp32", device="cpu", tokens_per_batch=0)


def test_peers_may_be_folders_hub_ids_or_gguf_files(run_folder, smollm2_gguf, monkeypatch, tmp_path):
    final = run_folder / "train" / "final"
    peers = [str(smollm2_gguf), "owner/model@abc123", str(run_folder / "train" / "base")]
    models = models_of_run(run_folder, final, peers)
    assert [(m.name, m.role, m.revision) for m in models[2:]] == [
        (smollm2_gguf.stem, "peer", ""),
        ("owner/model", "peer", "abc123"),
        ("base", "peer", ""),
    ]
    with pytest.raises(UserError, match=r"GGUF file nowhere\.gguf"):
        models_of_run(run_folder, final, ["nowhere.gguf"])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be loaded"):
        identity(models[3])


def test_a_model_that_is_not_causal_is_one_sentence(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a causal language model"):
        open_model(
            Model("t5", "peer", str(tmp_path)), max_length=64, precision="fp32", device="cpu", tokens_per_batch=0
        )


def test_behaviour_samples_and_curve_are_written_beside_the_scores(evaluated, run_folder):
    prepared, _, _ = evaluated
    behaviour = stage.watch(prepared)
    assert set(behaviour["models"]) == {"base", "run"}
    assert behaviour["models"]["run"]["greedy"]["replies"] == 4
    rows = stage.take_samples(prepared)
    assert rows == read_jsonl(run_folder / "evaluate" / "samples.jsonl")
    assert [(r["model"], r["mode"]) for r in rows[:10]] == [("run", "alone")] * 5 + [("run", "conversation")] * 5
    assert read_json(run_folder / "evaluate" / "results.json")["behaviour"] == behaviour
    assert stage.take_samples(prepared) == rows


@pytest.mark.slow
def test_two_processes_share_the_items_and_give_the_same_numbers(evaluated, run_folder, tmp_path):
    _, scored, _ = evaluated
    prepared = planned(run_folder, processes=2, cache_dir=str(tmp_path / "cache"))
    shared = score_all(prepared, say=lambda _: None)
    assert all(result.cached for result in shared), "the two processes have left the answers in the cache"
    for one, two in zip(scored, shared, strict=True):
        for name, value in one.answer["values"].items():
            assert two.answer["values"][name] == pytest.approx(value, rel=1e-5)
        a, b = (pq.read_table(r.items).to_pylist() for r in (one, two))
        assert [r["doc_id"] for r in a] == [r["doc_id"] for r in b]


def test_nothing_is_scored_with_settings_that_make_no_sense(run_folder):
    with pytest.raises(UserError, match="listed twice"):
        settings_for(run_folder, tasks=["sciq", "sciq"])
    assert score([], {}, planned(run_folder).asking, planned(run_folder).cache) == []


def test_a_peer_on_the_hub_is_known_by_its_commit_and_scored_by_the_real_hub_code(run_folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small-chat"
    shutil.copytree(run_folder / "train" / "base", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from nbutils.evaluate.models import Model, facts_of, identity, open_model\n"
        "model = Model('someone/small-chat', 'peer', 'someone/small-chat')\n"
        "lm = open_model(model, max_length=256, precision='fp32', device='cpu', tokens_per_batch=0)\n"
        "print(identity(model)['commit'], facts_of(model, lm)['source'], lm.way)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == f"{commit} someone/small-chat shared rows", done.stderr[-2000:]
