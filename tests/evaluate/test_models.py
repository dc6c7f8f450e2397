"""The models of a table: what they are called, which stay out, and what each is known by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.evaluate.models import Model, check_model, facts_of, models_of_run, open_model
from nbutils.evaluate.report import results, scores_table, settings_list
from tests.evaluate.runs import SUMS, planned, scored, write_task

CHATML_TASK = "heldout_next_utterance"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_peers_are_folders_hub_ids_or_gguf_files_and_no_two_have_one_name(run_folder, smollm2_gguf, tmp_path):
    places = ("a/train/final", "again/a/train/final", "models/SmolLM2-1.7B")
    folders = [str(shutil.copytree(run_folder / "train" / "final", tmp_path / place)) for place in places]
    models = models_of_run(Run(run_folder), [str(smollm2_gguf), "owner/model@one", "owner/model@two", *folders])
    assert [model.name for model in models] == [
        "base", "run", "/".join(smollm2_gguf.parts[-3:]), "owner/model@one", "owner/model@two", *places[:2],
        f"{tmp_path.name}/{places[2]}",
    ]  # fmt: skip
    assert [model.role for model in models] == ["base", "run", *["peer"] * 6]
    assert [model.ref.revision for model in models[2:5]] == ["", "one", "two"]
    assert not [model.facts for model in models if Path(model.facts["source"]).is_absolute()]


def test_peers_named_like_the_runs_own_models_have_columns_of_their_own(run_folder, tmp_path):
    shutil.copytree(run_folder / "train", tmp_path / "other" / "train")
    peers = [f"other/train/{name}" for name in ("base", "final")]
    prepared = planned(run_folder, peers=[str(tmp_path / peer) for peer in peers], tasks=[CHATML_TASK])
    answers, lines = scored(prepared)
    assert sum(" items in " in line for line in lines) == 2, "the same weights in another place are the same model"
    found = results(prepared, answers, {})
    assert [m["name"] for m in found["models"]] == ["base", "run", *peers]
    assert [s["model"] for s in found["scores"] if s["metric"] == "acc"] == ["base", "run", *peers]
    assert [p["reference"] for p in found["paired"] if p["metric"] == "acc"] == ["base", *peers]
    assert len(scores_table(found).splitlines()[0].split("|")) == 3 + 4 + 2
    found["models"][2]["identity"] = {"hub": "owner/model", "commit": COMMIT}
    for words in ("other/train/final`", "| sha256 ", "| commit 0123456789ab |"):
        assert words in settings_list(found)


@pytest.mark.parametrize(
    "config,asked,words",
    [
        ({"max_position_embeddings": 128}, {}, "reads 128 tokens at once, and max_length is 256"),
        ({"model_type": "t5"}, {}, "not a causal language model"),
        ({"model_type": "none such"}, {}, "could not be loaded"),
        ({}, {"apply_chat_template": True}, "plain has no chat template: set apply_chat_template to false"),
        ({}, {"apply_chat_template": True, "tasks": [CHATML_TASK]}, ""),
    ],
)
def test_a_peer_that_cannot_be_scored_stays_out_before_anything_is(run_folder, tmp_path, config, asked, words):
    peer = shutil.copytree(run_folder / "train" / "base", tmp_path / "peers" / "plain")
    write_json(peer / "config.json", read_json(peer / "config.json") | config)
    (peer / "chat_template.jinja").unlink()
    left_out = planned(run_folder, **write_task(tmp_path, "sums", SUMS) | {"peers": [str(peer)]} | asked).left_out
    assert len(left_out) == bool(words) and words in str(left_out)
    assert str(tmp_path) not in str(left_out), "it is published: no folder of this machine"


def test_the_runs_own_model_cannot_stay_out(own_run):
    with pytest.raises(UserError, match="reads 256 tokens at once, and max_length is 512"):
        planned(own_run, max_length=512)
    (own_run / "train" / "final" / "config.json").unlink()
    with pytest.raises(UserError, match="holds no model: run notebooks/02_train_sft"):
        planned(own_run)


def test_a_peer_on_the_hub_is_known_by_its_commit_and_scored_by_the_real_hub_code(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--small-chat"
    shutil.copytree(run_folder / "train" / "base", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    model = Model("someone/small-chat", "peer", ModelRef.parse("someone/small-chat"))
    facts = facts_of(model, open_model(model, "cpu", 256, "fp32"))
    assert facts["identity"] == {"hub": "someone/small-chat", "commit": COMMIT}
    assert (facts["source"], facts["scored_as"]) == ("someone/small-chat", "shared rows")


@pytest.mark.soak
def test_a_gguf_peer_is_scored_as_its_unpacked_model_is(smollm2_gguf, smollm2_folder, monkeypatch):
    """The tokenizer of a GGUF file is read as everywhere else: AutoTokenizer gives other ids in some releases."""
    read, original = [], ModelRef.raw_tokenizer
    monkeypatch.setattr(ModelRef, "raw_tokenizer", lambda ref: read.append(ref) or original(ref))
    request = Instance("loglikelihood", {}, ("2 plus 4?", " six"), 0)
    answers = []
    for place in (smollm2_gguf, smollm2_folder):
        model = Model("peer", "peer", ModelRef.parse(str(place)))
        check_model(model, max_length=256, chat_template=False)
        (answer,) = open_model(model, "cpu", 256, "fp32").loglikelihood([request])
        answers.append(answer)
    packed, unpacked = answers
    assert packed == pytest.approx(unpacked, abs=1e-3) and len(read) == 1
