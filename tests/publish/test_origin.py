"""Where a model comes from: base and datasets on the Hub or on a disk, revisions, the command that makes it again."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, sha256_of_file, write_json
from nbutils.core.stages import STAGES
from nbutils.pipeline.parameters import plan
from nbutils.publish.card import render_card
from nbutils.publish.facts import read_facts
from nbutils.train.base import SOURCE, ensure_base, source_of
from tests.publish.conftest import publish, settings_for
from tests.publish.made_up_run import record_stages, rewrite
from tests.train.runs import small_settings


def test_hub_ids_are_told_from_files_and_folders_that_may_be_gone(spare):
    """By what the stages recorded as read, wherever that is today."""
    read = ["mine/saved/state.json", "models/base.Q4_1.gguf", "/elsewhere/talk/a.parquet", "data/talk.jsonl"]
    record_stages(spare, files=read)
    facts = read_facts(spare)
    for name in ("HuggingFaceTB/smol-smoltalk", "gpt2", "mine/other", "me/peer@v1"):
        assert facts.on_hub(name), name
    for name in (
        "chitchat",
        "mine/saved",
        "./mine/saved",
        "models/base.Q4_1.gguf",
        "/elsewhere/talk",
        "data/talk.jsonl",
    ):
        assert not facts.on_hub(name), name


def test_a_local_base_is_named_without_its_path_and_as_the_hub_knows_it(spare):
    record_stages(spare, base_model="models/base.Q4_1.gguf", local=True)
    rewrite(spare, f"train/base/{SOURCE}", read_json(spare / "train" / "base" / SOURCE) | {"sha256": "5" * 64})
    card = render_card(read_facts(spare), settings_for(spare))
    assert "models/" not in card and "`base.Q4_1.gguf`, a local file, fine-tuned for" in card
    assert "base_model:" not in card and f"| base model's file, SHA-256 | `{'5' * 64}` |" in card
    assert "newest when it was run" not in card and "write there where yours lies" in card
    weights = read_json(spare / "train" / "stage.json")["outputs"]["base/model.safetensors"]["sha256"]
    assert f"| weights before training, SHA-256 | `{weights}` |" in card
    settings = settings_for(spare, base_model_id="me/base", dataset_ids=["me/talk"])
    data = ModelCard(render_card(read_facts(spare), settings)).data
    assert data.base_model == "me/base" and data.datasets == ["me/talk"]


def test_a_hub_base_is_named_with_the_commit_that_it_was(spare):
    record_stages(spare, base_model="me/base", commit="c" * 40)
    card = render_card(read_facts(spare), settings_for(spare))
    assert f"| base model | `me/base`, revision {'c' * 40} |" in card and "base_model: me/base" in card


def test_datasets_of_the_hub_and_of_a_disk(spare):
    record_stages(spare, files=["data/talk.jsonl"])
    summary = read_json(spare / "data" / "summary.json")
    (dataset,) = summary["datasets"]
    hub = dataset | {"path": "me/talk", "revision": "d" * 40, "fingerprint": ""}
    local = dataset | {"path": "data/talk.jsonl"}
    rewrite(spare, "data/summary.json", summary | {"datasets": [hub, local]})
    card = render_card(read_facts(spare), settings_for(spare))
    assert ModelCard(card).data.datasets == ["me/talk"]
    assert f"| `me/talk` | {'d' * 40} | 200 | — |" in card and "| `talk.jsonl` | — | 200 | `dddd" in card
    assert "`talk.jsonl`" in card and "data/talk.jsonl" not in card


def test_the_published_parameters_pin_what_was_read(spare):
    """`main` of today is not what the card lists: the file names the commits."""
    twice = [{"path": "me/talk", "revision": tag} for tag in ("v1", "v2")]
    peers = ["me/peer@v1", "/elsewhere/models/peer.gguf"]
    record_stages(spare, base_model="me/base", commit="c" * 40, datasets=[*twice, "data/talk.jsonl"], peers=peers,
                  compare_runs=["runs/mine_only"], task_path="tasks/mine",
                  files=["data/talk.jsonl", "/elsewhere/models/peer.gguf/peer.gguf"])  # fmt: skip
    summary = read_json(spare / "data" / "summary.json")
    (dataset,) = summary["datasets"]
    read = [dataset | {"path": "me/talk", "revision": "d" * 40}, dataset | {"path": "me/talk", "revision": "e" * 40}]
    rewrite(spare, "data/summary.json", summary | {"datasets": [*read, dataset | {"path": "data/talk.jsonl"}]})
    folder = publish(spare).folder
    made = yaml.safe_load((folder / "run" / "parameters.yaml").read_text())
    assert made["base_revision"] == "c" * 40
    assert [d["revision"] for d in made["datasets"]] == ["d" * 40, "e" * 40, ""]
    assert (made["peers"], made["compare_runs"]) == (["me/peer@v1"], [])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "compared with too, and are left out of the file: `peer.gguf`" in card and "/elsewhere" not in card
    assert "Its own tasks lay in the folder `mine` there" in card


def test_sessions_with_other_libraries_are_said(spare):
    rows = read_jsonl(spare / "train" / "metrics.jsonl")
    first = {"kind": "session", "session": 1, "step": 0, "versions": {"torch": "2.12.0", "trl": "absent"}}
    rows = [first, *rows[1:31], first | {"session": 2, "step": 290, "versions": {"torch": "2.13.0"}}, *rows[31:]]
    (spare / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewrite(spare, "train/metrics.jsonl")
    card = render_card(read_facts(spare), settings_for(spare))
    assert "| … its session 1, from step 0 | torch 2.12.0 |" in card and "its session 2" not in card


def test_a_base_is_kept_with_where_it_came_from(tmp_path):
    settings = small_settings(tmp_path)
    base = ensure_base(settings, tmp_path / "train" / "base", tmp_path / "data")
    found = read_json(base / SOURCE)
    assert found == {"schema": 1, "base_model": "tiny", "local": False, "commit": None, "sha256": None}
    again = small_settings(tmp_path, base_model=str(base))
    summary = read_json(tmp_path / "data" / "summary.json")
    tokenizer = summary["tokenizer"] | {"base_model": str(base)}
    write_json(tmp_path / "data" / "summary.json", summary | {"tokenizer": tokenizer})
    assert read_json(ensure_base(again, tmp_path / "second", tmp_path / "data") / SOURCE)["local"]


def test_the_commit_of_a_hub_base_is_that_of_the_snapshot_which_was_read(tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--me--base"
    (cache / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (cache / "snapshots" / ("c" * 40) / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = source_of(small_settings(tmp_path, base_model="me/base"))
    assert found["commit"] == "c" * 40 and not found["local"]
    assert source_of(small_settings(tmp_path, base_model="me/other"))["commit"] is None
    file = tmp_path / "base.gguf"
    file.write_bytes(b"weights")
    local = source_of(small_settings(tmp_path, base_model=str(file)))
    assert local["local"] and local["sha256"] == sha256_of_file(file) and local["commit"] is None


def test_the_published_parameters_make_the_same_run(spare):
    record_stages(spare, learning_rate=3e-5, datasets=[{"path": "chitchat", "fraction": 0.5}], tasks=["sciq"])
    made = publish(spare, languages=["en", "de"], base_model_id="me/base")
    file = made.folder / "run" / "parameters.yaml"
    again = plan(file, [], run_dir=str(spare))
    for stage, planned in zip(STAGES, again.stages, strict=True):
        own = made.facts.stages[stage.name]["parameters"] if stage.name in made.facts.stages else None
        assert planned.settings.model_dump(mode="json") == (own or made.settings.model_dump(mode="json")), stage.name
    assert yaml.safe_load(file.read_text())["run_dir"] == "runs/again"


@pytest.mark.parametrize(("commit", "words"), [("a" * 40 + "+changes", "never committed"), (None, "commit is unknown")])
def test_code_that_the_commit_does_not_hold_is_said(spare, commit, words):
    record = read_json(spare / "train" / "stage.json")
    write_json(spare / "train" / "stage.json", record | {"git_commit": commit})
    card = render_card(read_facts(spare), settings_for(spare))
    assert words in card and "+changes" not in card.split("```bash")[1]


def test_the_published_records_name_no_place_on_this_machine(published):
    found = read_json(published.folder / "run" / "stages.json")
    assert list(found) == [stage.name for stage in STAGES[:-1]]
    assert found["train"]["git_commit"] == "0" * 40 and str(published.run) not in str(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"license": "Apache 2.0"}, r"'license' is 'Apache 2.0'.*Did you mean 'apache-2.0'"),
        ({"languages": ["English"]}, r"'English' is no language code"),
        ({"base_model_id": "models/x y.gguf"}, r"'base_model_id' is .*owner/name"),
        ({"dataset_ids": ["a/b/c"]}, r"'a/b/c' is no name on the Hub"),
    ],
)
def test_metadata_that_the_hub_would_refuse_is_refused_here(tmp_path, given, words):
    with pytest.raises(UserError, match=words):
        settings_for(tmp_path, **given)
