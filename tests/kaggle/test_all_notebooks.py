"""Every bundle of a profile on a simulated Kaggle: no parameters, no repository on the path, each fed the others."""

import json
import re

import pytest
import yaml
from datasets import Dataset

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.run.models import tiny_model
from nbutils.core.stages import STAGES
from nbutils.pipeline.fetch import Wanted, _add
from tests.builders import chitchat, small_tokenizer
from tests.conftest import ROOT
from tests.kaggle.simulated import SMALL, Kaggle, bundles

pytestmark = pytest.mark.soak

BASE, TALK = "someone/base", "someone/talk"
"""On the hub, if there were one."""
FETCHED, WHEELS = "someone/fetched-things", "someone/wheels"
"""The Kaggle datasets."""


@pytest.fixture
def fetched(tmp_path):
    """A folder with a base model and conversations, as `python -m nbutils fetch` makes it."""
    folder, talk = tmp_path / "fetched", chitchat(400, turns=4)
    tokenizer = small_tokenizer([turn["content"] for turns in talk for turn in turns], 600)
    model, data = folder / "base", folder / "talk" / "data"
    tokenizer.save_pretrained(model)
    tiny_model(tokenizer, 128, 0).save_pretrained(model)
    data.mkdir(parents=True)
    Dataset.from_list([{"messages": turns} for turns in talk]).to_parquet(data / "train-0.parquet")
    _add(Wanted("model", BASE, "", "base model"), "1" * 40, folder, "base")
    _add(Wanted("dataset", TALK, "", "conversations"), "2" * 40, folder, "talk")
    return folder


def offline(profile, folder, *attached, **changes):
    """The bundles of a profile with the values of SMALL and these, for sessions with no internet."""
    own = folder / profile.name
    values = yaml.safe_load(profile.read_text()) | yaml.safe_load(SMALL.read_text()) | changes
    own.write_text(json.dumps(values))
    return bundles(own, folder / "bundles", "--offline", *(f"--attach={name}" for name in attached))


def test_six_notebooks_one_after_the_other_without_internet(bare, wheels, fetched, tmp_path):
    """On an image with Kaggle's libraries, each with just what its metadata name: outputs of earlier notebooks, and
    model, conversations and packages as Kaggle datasets.

    Each notebook installs what it lacks into the image, which later ones find there: sessions of the real Kaggle start
    from the image again.
    """
    made = offline(SMALL, tmp_path, FETCHED, WHEELS, base_model=BASE, datasets=[TALK], plain_loop_steps=3)
    attached = {FETCHED: fetched, WHEELS: wheels}
    account, outputs, texts = Kaggle(tmp_path, bare), dict(attached), {}
    for stage, bundle in zip(STAGES, made[:-1], strict=True):
        facts = read_json(bundle / "kernel-metadata.json")
        assert facts["enable_internet"] is False and facts["dataset_sources"] == list(attached)
        inputs = {name: outputs[name] for name in (*facts["kernel_sources"], *attached) if name in outputs}
        assert len(inputs) == len(stage.reads) + len(stage.consults) + len(attached)
        outcome = account.run(bundle, inputs)
        run, texts[stage.name], outputs[facts["id"]] = outcome.run, outcome.text, outcome.working
        assert run.state(stage.name) == "done"
    for row in (r"plotly +>=6.0 +5\.24\.1 +\d", r"trl +\S+ +nothing +1\.16\.\d",
                r"torch +\S+ +2\S+ +kept", r"transformers +\S+ +5\.0\.\d +kept"):  # fmt: skip
        assert re.search(row, texts["data"]), (row, texts["data"][:3000])
    beside = re.findall(r"(?m)^[123] +[\d.]+ +(\d\.\d+e-\d+)", texts["train"])
    assert len(beside) == 3 and all(float(each) < 1e-3 for each in beside), beside  # the worker equals the plain loop
    record = run.record("train")
    assert record["facts"]["step"] == 8 and record["versions"]["transformers"].startswith("5.0.")
    paired = read_json(run.folder("evaluate") / "results.json")["paired"]
    assert [each["word"] for each in paired if each["metric"] == "word_perplexity"] == ["better"]
    card = (run.folder("publish") / "README.md").read_text()
    assert "transformers 5.0." in card and "## Use" in card


def test_the_rehearsal_pauses_and_goes_on_with_newer_libraries(oldest, wheels, account, tmp_path):
    """The whole pipeline in two sessions, on two CPU cores and without the hub."""
    shorter = {"max_steps": 4, "pause_after_steps": 2, "precision": "auto", "processes": 0, "tune_minutes": 0.1,
               "tasks": ["heldout_next_utterance"]}  # fmt: skip
    bundle = offline(ROOT / "params" / "kaggle_rehearsal.yaml", tmp_path, WHEELS, **shorter)[-1]

    paused = Kaggle(tmp_path, oldest).run(bundle, {WHEELS: wheels})
    assert "Save Version" in paused.text
    assert paused.run.state("train") == "paused" == read_json(paused.run.path / "session.json")["status"]

    last = account.run(bundle, {WHEELS: wheels, f"someone/{bundle.name}": paused.working})
    assert re.search(r"Continues the session of .* at step 2;", last.text) and "transformers 5.0.0 (now " in last.text
    rows = read_jsonl(last.run.path / "kaggle.jsonl")
    assert rows[0]["versions"]["transformers"] == "5.0.0" != rows[-1]["versions"]["transformers"]
    assert [last.run.state(stage.name) for stage in STAGES] == ["done"] * 6
    assert read_json(last.run.path / "session.json")["status"] == "done"
    assert re.search(r"training steps of the full run.* GPU-hours in 1 session.* notebook 04 come", last.text)
    assert re.search(r"\nas it is: [\d,]+ tokens a second", last.text) and (last.run.path / "tune.json").is_file()
    assert last.run.record("data")["started"] == paused.run.record("data")["started"]  # the data was made once
