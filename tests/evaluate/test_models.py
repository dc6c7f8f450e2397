"""The models of a table: what they are called, which stay out, and what each is known by."""

from __future__ import annotations

import shutil

import pytest
from lm_eval.api.instance import Instance

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json, write_text
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.evaluate.models import Model, check_model, models_of_run, open_model
from nbutils.evaluate.report import results, settings_list
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


def test_peers_have_columns_of_their_own_and_are_known_by_what_was_measured(run_folder, tmp_path, monkeypatch):
    """Two named like the run's own models, and one on the hub, which the real hub code reads."""
    shutil.copytree(run_folder / "train", tmp_path / "other" / "train")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be loaded"):
        ModelRef.parse("someone/small-chat").identity()
    repository = tmp_path / "models--someone--small-chat"
    shutil.copytree(run_folder / "train" / "base", repository / "snapshots" / COMMIT)
    write_text(repository / "refs" / "main", COMMIT)
    names = ["base", "run", "other/train/base", "other/train/final", "someone/small-chat"]
    peers = [*(str(tmp_path / name) for name in names[2:4]), names[4]]
    prepared = planned(run_folder, peers=peers, tasks=[CHATML_TASK])
    answers, lines = scored(prepared)
    assert sum(" items in " in line for line in lines) == 3, "the same weights in another place are the same model"
    found = results(prepared, answers, {})
    assert [s["model"] for s in found["scores"] if s["metric"] == "acc"] == names
    assert [p["reference"] for p in found["paired"] if p["metric"] == "acc"] == [names[0], *names[2:]]
    hub = f"| `someone/small-chat` | commit {COMMIT[:12]} | False | shared rows |"
    for words in ("`other/train/final`", "| sha256 ", hub):
        assert words in settings_list(found)


@pytest.mark.parametrize(
    "config,asked,words",
    [
        ({"max_position_embeddings": 128}, {}, "reads 128 tokens at once, and max_length is 256"),
        ({"model_type": "t5"}, {}, "not a causal language model"),
        ({"tie_word_embeddings": False}, {}, "weights 1 missing (lm_head.weight)"),
        ({}, {"apply_chat_template": True}, "plain has no chat template: set apply_chat_template to false"),
        ({}, {"apply_chat_template": True, "tasks": [CHATML_TASK]}, ""),
    ],
)
def test_a_peer_that_cannot_be_scored_stays_out(run_folder, tmp_path, config, asked, words):
    peer = shutil.copytree(run_folder / "train" / "base", tmp_path / "peers" / "plain")
    write_json(peer / "config.json", read_json(peer / "config.json") | config)
    (peer / "chat_template.jinja").unlink()
    prepared = planned(run_folder, **write_task(tmp_path, "sums", SUMS) | {"peers": [str(peer)]} | asked)
    if not (left_out := prepared.left_out):
        scored(prepared)
    assert len(left_out) == bool(words) and words in str(left_out)
    assert str(tmp_path) not in str(left_out), "it is published: no folder of this machine"


def test_the_runs_own_model_cannot_stay_out(own_run):
    with pytest.raises(UserError, match="reads 256 tokens at once, and max_length is 512"):
        planned(own_run, max_length=512)
    (own_run / "train" / "final" / "config.json").unlink()
    with pytest.raises(UserError, match="holds no model: run notebooks/02_train_sft"):
        planned(own_run)


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
        answers += open_model(model, "cpu", 256, "fp32").loglikelihood([request])
    packed, unpacked = answers
    assert packed == pytest.approx(unpacked, abs=1e-3) and len(read) == 1
