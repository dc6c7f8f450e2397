"""The models of a table: what they are called, which stay out, and what each is known by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nbutils.core.errors import UserError
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.evaluate.models import Model, facts_of, models_of_run, open_model
from nbutils.evaluate.report import results, scores_table, settings_list
from tests.evaluate.runs import SUMS, planned, scored, write_task


def test_peers_are_folders_hub_ids_or_gguf_files_and_no_two_have_one_name(run_folder, smollm2_gguf, tmp_path):
    places = ("a/train/final", "again/a/train/final", "models/SmolLM2-1.7B", "c/d/x", "e/d/x", "c/d/y")
    folders = [str(shutil.copytree(run_folder / "train" / "final", tmp_path / place)) for place in places]
    models = models_of_run(Run(run_folder), [str(smollm2_gguf), "owner/model@one", "owner/model@two", *folders])
    assert [(model.name, model.role) for model in models] == [
        ("base", "base"),
        ("run", "run"),
        ("/".join(smollm2_gguf.parts[-3:]), "peer"),
        ("owner/model@one", "peer"),
        ("owner/model@two", "peer"),
        ("a/train/final", "peer"),
        ("again/a/train/final", "peer"),
        (f"{tmp_path.name}/models/SmolLM2-1.7B", "peer"),
        *((place, "peer") for place in places[3:]),
    ]
    assert [model.ref.revision for model in models[2:5]] == ["", "one", "two"]
    assert not [model.facts for model in models if Path(model.facts["source"]).is_absolute()]
    with pytest.raises(UserError, match=r"GGUF file nowhere\.gguf"):
        models_of_run(Run(run_folder), ["nowhere.gguf"])


def test_peers_named_like_the_runs_own_models_have_columns_of_their_own(run_folder, tmp_path):
    shutil.copytree(run_folder / "train", tmp_path / "other" / "train")
    peers = [f"other/train/{name}" for name in ("base", "final")]
    prepared = planned(run_folder, peers=[str(tmp_path / peer) for peer in peers], tasks=["heldout_next_utterance"])
    answers, lines = scored(prepared)
    assert sum(" items in " in line for line in lines) == 2, "the same weights in another place are the same model"
    found = results(prepared, answers, {})
    names = ["base", "run", *peers]
    assert [m["name"] for m in found["models"]] == names
    assert [m["role"] for m in found["models"]] == ["base", "run", "peer", "peer"]
    assert [s["model"] for s in found["scores"] if s["metric"] == "acc"] == names
    assert [p["reference"] for p in found["paired"] if p["metric"] == "acc"] == ["base", *peers]
    assert len(scores_table(found).splitlines()[0].split("|")) == 3 + 4 + 2
    assert "other/train/final`" in settings_list(found) and "| sha256 " in settings_list(found)
    found["models"][2]["identity"] = {"hub": "owner/model", "commit": "0123456789abcdef0123456789abcdef01234567"}
    assert "| commit 0123456789ab |" in settings_list(found), "not the branch that was asked for"


@pytest.mark.parametrize(
    "config,words",
    [
        ({"max_position_embeddings": 128}, "reads 128 tokens at once, and max_length is 256"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"model_type": "none such"}, "could not be loaded"),
    ],
)
def test_a_peer_that_cannot_be_scored_stays_out_before_anything_is(run_folder, tmp_path, monkeypatch, config, words):
    monkeypatch.setattr("nbutils.evaluate.score.open_model", lambda *a, **k: pytest.fail("opened a model"))
    peer = shutil.copytree(run_folder / "train" / "base", tmp_path / "peers" / "a")
    (peer / "config.json").write_text(json.dumps(json.loads((peer / "config.json").read_text()) | config))
    prepared = planned(run_folder, peers=[str(peer)])
    assert [model.name for model in prepared.models] == ["base", "run"]
    ((name, why),) = prepared.left_out.items()
    assert words in why and str(tmp_path) not in name + why, "it is published: no folder of this machine"


def test_the_runs_own_model_cannot_stay_out(run_folder):
    with pytest.raises(UserError, match="reads 256 tokens at once, and max_length is 512"):
        planned(run_folder, max_length=512)


def test_a_wanted_chat_template_that_is_missing_is_one_sentence(run_folder, tmp_path):
    write_task(tmp_path, "sums", SUMS)
    peer = shutil.copytree(run_folder / "train" / "base", tmp_path / "plain")
    (peer / "chat_template.jinja").unlink()
    wanted = {"apply_chat_template": True, "peers": [str(peer)]}
    left_out = planned(run_folder, tasks=["sums"], task_path=str(tmp_path), **wanted).left_out
    assert "plain has no chat template: set apply_chat_template to false" in str(left_out)
    assert not planned(run_folder, **wanted).left_out  # ChatML tasks need none


def test_a_peer_on_the_hub_is_known_by_its_commit_and_scored_by_the_real_hub_code(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = Model("someone/small-chat", "peer", ModelRef.parse("someone/small-chat"))
    with pytest.raises(UserError, match="could not be loaded"):
        model.ref.identity()
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--small-chat"
    shutil.copytree(run_folder / "train" / "base", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    facts = facts_of(model, open_model(model, "cpu", 256, "fp32"))
    assert facts["identity"] == {"hub": "someone/small-chat", "commit": commit}
    assert (facts["source"], facts["scored_as"]) == ("someone/small-chat", "shared rows")


@pytest.mark.soak
def test_a_gguf_peer_is_scored_as_its_unpacked_model_is(
    run_folder, smollm2_gguf, smollm2_folder, fresh, tmp_path, monkeypatch
):
    """The tokenizer of a GGUF file is read as everywhere else: AutoTokenizer gives other ids in some releases."""
    write_task(tmp_path, "sums", SUMS)
    peers = [str(smollm2_gguf), str(smollm2_folder)]
    prepared = planned(run_folder, tasks=["sums"], task_path=str(tmp_path), limit=2, peers=peers, **fresh)
    calls, original = [], ModelRef.raw_tokenizer
    monkeypatch.setattr(ModelRef, "raw_tokenizer", lambda ref: calls.append(ref) or original(ref))
    *_, packed, unpacked = (pq.read_table(r.items)["loglikelihoods"].to_pylist() for r in scored(prepared)[0])
    assert packed == [pytest.approx(row, abs=1e-3) for row in unpacked] and len(packed) == 2
    assert len(calls) == 1
