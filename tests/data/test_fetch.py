"""`python -m nbutils fetch` against a hub on loopback, and every loader on what it collected, without a network."""

import json

import pandas as pd
import pytest
from datasets import config
from huggingface_hub import constants

from nbutils.cli import main
from nbutils.core.run.models import ModelRef
from nbutils.core.tasks import item_texts, load_tasks
from nbutils.pipeline.fetch import wanted_by
from tests.data.fake_hub import Reading, commit
from tests.data.making import chats, opened, refusal, rows_read, settings_for

MODEL, CHATS, TASK_DATA = "someone/tiny-llama", "someone/chats-2.5", "allenai/sciq"


@pytest.fixture
def online(hub, untrained, tmp_path, unasked, monkeypatch):
    """This process asks a hub, with caches of its own: nothing that this machine has already.

    The hub has a base model, a dataset of two splits, and the data of the task `sciq`.
    """
    model = {file.name: file.read_bytes() for file in (untrained / "train" / "base").iterdir()}
    item = {"question": "Why?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d",
            "support": "So."}  # fmt: skip
    split = pd.DataFrame([item] * 3).to_parquet()
    hub.RequestHandlerClass = Reading
    hub.repos["models", MODEL] = model | {"pytorch_model.bin": b"old weights", "onnx/model.onnx": b"others'"}
    hub.repos["datasets", CHATS] = {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        b"  - split: test\n    path: data/test-*\n---\n",
        "data/train-0.parquet": pd.DataFrame(chats(300)).to_parquet(),
        "data/test-0.parquet": pd.DataFrame(chats(7, "t")).to_parquet(),
    }
    hub.repos["datasets", TASK_DATA] = {f"data/{name}-0.parquet": split for name in ("train", "validation", "test")}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text(
        f"base_model: {MODEL}\nrun_dir: {tmp_path / 'run'}\ndatasets:\n  - path: {CHATS}\n  - chitchat\n"
        "contamination_tasks: [sciq]\n"
    )
    return str(path)


def test_files_are_not_looked_for_on_the_hub_and_a_name_with_a_dot_is_no_file(tmp_path):
    paths = ["rows.jsonl", "rows.jsonl.gz", "a/rows.json", "rows.parquet", "rows.arrow", "chitchat", "some/set-2.5"]
    assert [item.name for item in wanted_by([settings_for(tmp_path, paths)])] == ["some/set-2.5"]


def test_fetched_once_every_loader_reads_it_without_a_network(hub, online, profile, tmp_path, monkeypatch, capsys):
    out = tmp_path / "fetched"
    fetch = ["fetch", profile, "--out", str(out)]
    assert main(fetch) == main(fetch) == 0
    said = capsys.readouterr().out
    assert said.count("is there at commit") == 3  # the second time
    for words in (f"base model {MODEL}", f"conversations {CHATS}", f"task sciq {TASK_DATA}", "NBUTILS_FETCHED"):
        assert words in said
    items = {item["name"]: item for item in json.loads((out / "fetched.json").read_text())["items"]}
    assert items[CHATS]["commit"] == commit(CHATS)
    assert set(items[MODEL]["files"]) == set(hub.repos["models", MODEL]) - {"pytorch_model.bin", "onnx/model.onnx"}

    hub.requests.clear()
    monkeypatch.setenv("NBUTILS_FETCHED", str(out))
    assert main([*fetch, "--check"]) == 0
    source = opened(CHATS, split="test")
    assert (source.rows, source.revision, len(rows_read(source))) == (7, commit(CHATS), 7)
    assert len(list(item_texts(load_tasks(["sciq"], {})["sciq"]))) == 3
    assert ModelRef.parse(MODEL).load().config.vocab_size == len(ModelRef.parse(MODEL).tokenizer())
    assert not hub.requests

    weights = out / items[MODEL]["folder"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert (main([*fetch, "--check"]), "model.safetensors" in capsys.readouterr().out) == (1, True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_read_directly_with_its_commit(online, streaming):
    source = opened(CHATS, streaming=streaming)
    assert (source.rows, len(rows_read(source))) == (None if streaming else 300, 300)
    assert (source.shape.name, source.revision) == ("messages", commit(CHATS))


@pytest.mark.parametrize("wrong", [{"split": "validation"}, {"revision": "v9"}, {"name": "other"}])
def test_what_the_hub_has_not_is_named(online, wrong):
    assert next(iter(wrong.values())) in refusal(opened, CHATS, **wrong)


def test_what_cannot_be_fetched_is_one_sentence(online, profile, tmp_path, refused):
    said = refused("fetch", profile, "-p", "base_model=no/such", "--out", tmp_path / "x")
    assert "The base model no/such cannot be fetched" in said
