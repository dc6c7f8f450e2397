"""Where a model comes from: base and datasets on the Hub or on a disk, revisions, the command that makes it again."""

from __future__ import annotations

from pathlib import Path

import yaml

from nbutils.core.files import read_json, sha256_of_file, write_json
from nbutils.core.stages import STAGES
from nbutils.pipeline.parameters import plan
from nbutils.publish.facts import read_facts
from nbutils.train.base import SOURCE, ensure_base, source_of
from tests.conftest import ROOT
from tests.publish.conftest import publish
from tests.publish.made_up_run import record_stages, rewrite
from tests.train.runs import small_settings


def test_hub_ids_are_told_from_files_and_folders_that_may_be_gone(spare):
    """By what the stages recorded as read, wherever that is today."""
    gone = ["mine/saved", "./mine/saved", "models/base.Q4_1.gguf", "/elsewhere/talk", "data/talk.jsonl"]
    read = ["mine/saved/state.json", "models/base.Q4_1.gguf", "/elsewhere/talk/a.parquet", "data/talk.jsonl"]
    record_stages(spare, files=read, peers=gone)
    facts = read_facts(spare)
    for name in ("HuggingFaceTB/smol-smoltalk", "gpt2", "mine/other", "me/peer@v1"):
        assert facts.on_hub(name), name
    assert len(facts.local_peers) == len(gone)
    assert not any(map(facts.on_hub, ["chitchat", *gone]))


def test_the_published_parameters_pin_what_was_read(spare):
    """`main` of today is not what the card lists: the file names the commits."""
    twice = [{"path": "me/talk", "revision": tag} for tag in ("v1", "v2")]
    peers = ["me/peer@v1", "/elsewhere/models/peer.gguf"]
    record_stages(spare, base_model="me/base", commit="c" * 40, datasets=[*twice, "data/talk.jsonl"], peers=peers,
                  compare_runs=["runs/mine_only"], task_path="tasks/mine",
                  files=["data/talk.jsonl", "/elsewhere/models/peer.gguf/peer.gguf"])  # fmt: skip
    (dataset,) = read_json(spare / "data" / "summary.json")["datasets"]
    read = [{"path": "me/talk", "revision": letter * 40} for letter in "de"]
    rewrite(spare, "data/summary.json", datasets=[dataset | own for own in (*read, {"path": "data/talk.jsonl"})])
    published = publish(spare)
    made = yaml.safe_load((published.folder / "run" / "parameters.yaml").read_text())
    assert made["base_revision"] == "c" * 40
    assert [d["revision"] for d in made["datasets"]] == ["d" * 40, "e" * 40, ""]
    assert (made["peers"], made["compare_runs"]) == (["me/peer@v1"], [])
    assert "compared with too, and are left out of the file: `peer.gguf`" in published.card
    assert "Its own tasks lay in the folder `mine` there" in published.card


def test_nothing_that_is_published_names_a_place_on_this_machine(spare):
    gone = '/gone/since/ada "l"'
    names = {"base_model": "tiny", "task_path": "tasks", "cache_dir": "cache"}
    lists = {"datasets": "talk.jsonl", "peers": "peer", "compare_runs": "mine"}
    given = {name: f"{gone}/{value}" for name, value in names.items()}
    given |= {name: [f"{gone}/{value}"] for name, value in lists.items()}
    record_stages(spare, local=True, sample_prompts=["/imagine a cat"], **given)
    said = f"{gone}/talk.jsonl:\n{gone}/tasks/a.yaml; {Path.home()}/a, {ROOT}/runs/b, {spare}/train and\n{gone}/peer"
    for name in ("data/summary.json", "train/settings.json", "metrics/summary.json", "chat/transcript.json"):
        rewrite(spare, name, said=said)
    models = read_json(spare / "evaluate" / "results.json")["models"]
    peer = {"name": f"{gone}/peer", "source": f"{gone}/peer", "parameters": 1}
    rewrite(spare, "evaluate/results.json", models=[*models, peer], left_out={f"{gone}/peer": said})
    (spare / "evaluate" / "comparison.md").write_text(said)
    (spare / "evaluate" / "items" / f"{gone}/peer--a.parquet".replace("/", "__")).write_bytes(b"")
    rewrite(spare, "evaluate/comparison.md")
    made = publish(spare)
    for file in made.folder.rglob("*"):
        text = f"{file.relative_to(made.folder)}: " + (file.read_text("utf-8", "replace") if file.is_file() else "")
        for place in ("/gone", "__gone", "ada ", f"{Path.home()}/", str(ROOT), str(spare)):
            assert place not in text, (file, place)
    hidden = "…/talk.jsonl:\n…/tasks/a.yaml; ~/a, ./runs/b, …/run/train and\n…/peer"
    assert (made.folder / "run" / "evaluate-comparison.md").read_text(encoding="utf-8") == hidden
    assert read_json(made.folder / "run" / "chat-transcript.json")["said"] == hidden
    assert (made.folder / "run" / "evaluate-items" / "…__peer--a.parquet").is_file()
    parameters = yaml.safe_load((made.folder / "run" / "parameters.yaml").read_text(encoding="utf-8"))
    assert (parameters["base_model"], parameters["sample_prompts"]) == ("…/tiny", ["/imagine a cat"])
    assert "`tiny`, a local folder, fine-tuned" in made.card and "- Left out: `…/peer` (…/talk.jsonl: " in made.card


def test_the_published_parameters_make_the_same_run(spare):
    record_stages(spare, learning_rate=3e-5, datasets=[{"path": "chitchat", "fraction": 0.5}], tasks=["sciq"])
    made = publish(spare, languages=["en", "de"], base_model_id="me/base")
    file = made.folder / "run" / "parameters.yaml"
    again = plan(file, [], run_dir=str(spare))
    for stage, planned in zip(STAGES, again.stages, strict=True):
        record = read_json(spare / stage.name / "stage.json") if stage.name in made.facts.stages else {}
        own = record.get("parameters") or made.settings.model_dump(mode="json")
        assert planned.settings.model_dump(mode="json") == own, stage.name
    assert yaml.safe_load(file.read_text())["run_dir"] == "runs/again"


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
    for name, text in ((f"snapshots/{'c' * 40}/config.json", "{}"), ("refs/main", "c" * 40)):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()  # none is made
    found = source_of(small_settings(tmp_path, base_model="me/base"))
    assert found["commit"] == "c" * 40 and not found["local"]
    assert source_of(small_settings(tmp_path, base_model="me/other"))["commit"] is None
    file = tmp_path / "base.gguf"
    file.write_bytes(b"weights")
    local = source_of(small_settings(tmp_path, base_model=str(file)))
    assert local["local"] and local["sha256"] == sha256_of_file(file) and local["commit"] is None
