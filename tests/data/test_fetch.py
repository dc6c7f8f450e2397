"""`python -m nbutils fetch` against a hub on loopback, and every loader on what it collected, without a network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from nbutils.pipeline.fetch import wanted_by
from tests.data.fake_hub import FakeHub
from tests.data.making import chats, settings_for

MODEL, CHATS, TASK_DATA = "someone/tiny-llama", "someone/chats-2.5", "allenai/sciq"


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_list(rows).to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[FakeHub]:
    """A hub with a base model, a dataset of two splits, and the data of the task `sciq`."""
    from nbutils.core.run.models import tiny_model
    from nbutils.data.tokenizer import train_bpe

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(["What is one plus one? It is two, I think."] * 3, 300)
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, 64, 0).save_pretrained(folder)
    model = {file.name: file.read_bytes() for file in folder.iterdir()}
    item = {"question": "Why?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d",
            "support": "So."}  # fmt: skip
    split = parquet([item] * 3)
    hub = FakeHub()
    hub.repos["models", MODEL] = model | {"pytorch_model.bin": b"old weights", "onnx/model.onnx": b"others'"}
    hub.repos["datasets", CHATS] = {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        b"  - split: test\n    path: data/test-*\n---\n",
        "data/train-0.parquet": parquet(chats(300)),
        "data/test-0.parquet": parquet(chats(7, "t")),
    }
    hub.repos["datasets", TASK_DATA] = {f"data/{name}-0.parquet": split for name in ("train", "validation", "test")}
    yield hub
    hub.close()


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """An environment with caches of its own: nothing that this machine has already."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "NBUTILS"))}
    return kept | {"HF_HOME": str(tmp / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", **more}


def test_files_are_not_looked_for_on_the_hub_and_a_name_with_a_dot_is_no_file(tmp_path):
    paths = ["rows.jsonl", "rows.jsonl.gz", "a/rows.json", "rows.parquet", "rows.arrow", "chitchat", "some/set-2.5"]
    assert [item.name for item in wanted_by({"data": settings_for(tmp_path, paths)})] == ["some/set-2.5"]


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, *arguments], env=env, cwd=root, capture_output=True, text=True, timeout=300)


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "profile.yaml"
    path.write_text(
        f"base_model: {MODEL}\nrun_dir: {tmp_path / 'run'}\ndatasets:\n  - path: {CHATS}\n  - chitchat\n"
        "contamination_tasks: [sciq]\n"
    )
    return path


TWICE = """
from nbutils.cli import main

assert main({0}) == 0
print("the second time")
assert main({0}) == 0
"""
OFFLINE = """
import json
from nbutils.cli import main
from nbutils.core.run.models import ModelRef
from nbutils.core.tasks import item_texts, load_tasks
from nbutils.data.settings import DatasetSpec
from nbutils.data.sources import open_source

assert main({0}) == 0
source = open_source(DatasetSpec(path="someone/chats-2.5", split="test"), False)
print(json.dumps({{
    "tokens": len(ModelRef.parse("someone/tiny-llama").tokenizer()),
    "parameters": ModelRef.parse("someone/tiny-llama").load().num_parameters(),
    "rows": [source.rows, source.revision, sum(b.read().num_rows for b in source.batches())],
    "items": len(list(item_texts(load_tasks(["sciq"], {{}})["sciq"]))),
}}))
"""


def test_fetched_once_every_loader_reads_it_without_a_network(hub, profile, tmp_path):
    out = tmp_path / "fetched"
    online = environment(tmp_path / "online", HF_ENDPOINT=hub.url)
    fetch = ["fetch", str(profile), "--out", str(out)]
    done = python("-c", TWICE.format(fetch), env=online)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there at commit") == 3  # the second time
    for words in (f"base model {MODEL}", f"conversations {CHATS}", f"task sciq {TASK_DATA}", "NBUTILS_FETCHED"):
        assert words in done.stdout
    items = {item["name"]: item for item in json.loads((out / "fetched.json").read_text())["items"]}
    assert items[CHATS]["commit"] == hub.commit("datasets", CHATS)
    assert set(items[MODEL]["files"]) == set(hub.repos["models", MODEL]) - {"pytorch_model.bin", "onnx/model.onnx"}
    assert not list(out.rglob("*.partial"))

    offline = environment(tmp_path / "offline", HF_HUB_OFFLINE="1", NBUTILS_FETCHED=str(out))
    loaded = python("-c", OFFLINE.format([*fetch, "--check"]), env=offline)
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout.splitlines()[-1])
    assert found["rows"] == [7, hub.commit("datasets", CHATS), 7]
    assert found["items"] == 3
    assert found["tokens"] > 256 and found["parameters"] > 500_000

    weights = out / items[MODEL]["folder"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    checked = python("-m", "nbutils", *fetch, "--check", env=offline)
    assert (checked.returncode, "model.safetensors" in checked.stdout) == (1, True)


DIRECT = """
import json, sys
from nbutils.data.settings import DatasetSpec
from nbutils.data.sources import open_source
from nbutils.core.errors import UserError

found = {}
for streaming in (False, True):
    source = open_source(DatasetSpec(path="someone/chats-2.5"), streaming)
    rows = sum(batch.read().num_rows for batch in source.batches())
    found[f"streaming {streaming}"] = [source.rows, rows, source.shape.name, source.revision]
wrong = {"split": {"split": "validation"}, "revision": {"revision": "v9"}, "config": {"name": "other"}}
for name, spec in wrong.items():
    try:
        open_source(DatasetSpec(path="someone/chats-2.5", **spec), False)
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_a_hub_dataset_is_read_directly_streaming_or_not_with_its_commit(hub, tmp_path):
    done = python("-c", DIRECT, env=environment(tmp_path, HF_ENDPOINT=hub.url))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    commit = hub.commit("datasets", CHATS)
    assert found["streaming False"] == [300, 300, "messages", commit]
    assert found["streaming True"] == [None, 300, "messages", commit]
    assert "validation" in found["split"]
    assert "v9" in found["revision"]
    assert "other" in found["config"]
    assert not any("\n" in found[name] for name in ("split", "revision", "config"))


def test_what_cannot_be_fetched_is_one_sentence(hub, profile, tmp_path):
    env = environment(tmp_path, HF_ENDPOINT=hub.url)
    done = python(
        "-m", "nbutils", "fetch", str(profile), "-p", "base_model=no/such", "--out", str(tmp_path / "x"), env=env
    )
    assert done.returncode == 1
    assert "The base model no/such cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr
