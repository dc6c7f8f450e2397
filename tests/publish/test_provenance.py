"""Where a model comes from: base and datasets on the Hub or on a disk, revisions, the command that makes it again."""

from pathlib import Path

import yaml

from nbutils.core.files import read_json
from nbutils.core.stages import STAGES
from nbutils.pipeline.parameters import plan
from nbutils.publish.facts import read_facts
from tests.conftest import ROOT
from tests.publish.conftest import publish
from tests.publish.made_up_run import record_stages, rewrite


def test_hub_ids_are_told_from_files_and_folders_that_may_be_gone(spare):
    """By what the stages recorded as read, wherever that is today."""
    gone = ["mine/saved", "./mine/saved", "models/base.Q4_1.gguf", "/elsewhere/talk", "data/talk.jsonl"]
    read = ["mine/saved/state.json", "models/base.Q4_1.gguf", "/elsewhere/talk/a.parquet", "data/talk.jsonl"]
    record_stages(spare, files=read, peers=gone)
    facts, hub = read_facts(spare), ["HuggingFaceTB/smol-smoltalk", "gpt2", "mine/other", "me/peer@v1"]
    assert list(filter(facts.on_hub, [*gone, "chitchat", *hub])) == hub
    assert len(facts.local_peers) == len(gone)


def parameters(made):
    """The published ones."""
    return yaml.safe_load((made.folder / "run" / "parameters.yaml").read_text())


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
    made = parameters(published)
    assert made["base_revision"] == "c" * 40
    assert [d["revision"] for d in made["datasets"]] == ["d" * 40, "e" * 40, ""]
    assert (made["peers"], made["compare_runs"]) == (["me/peer@v1"], [])
    assert "compared with too, and are left out of the file: `peer.gguf`" in published.card
    assert "Its own tasks lay in the folder `mine` there" in published.card


def test_nothing_that_is_published_names_a_place_on_this_machine(spare):
    gone = '/gone/since/ada "l"'
    record_stages(spare, local=True, base_model=f"{gone}/base_model", task_path=f"{gone}/task_path",
                  cache_dir=f"{gone}/cache_dir", datasets=[f"{gone}/talk.jsonl"], peers=[f"{gone}/peer"],
                  compare_runs=[f"{gone}/mine"], sample_prompts=["/imagine a cat"])  # fmt: skip
    said = f"{gone}/talk.jsonl:\n{gone}/peer; {Path.home()}/a, {ROOT}/runs/b, {spare}/train and\n{gone}/task_path/a"
    for name in ("data/summary.json", "train/settings.json", "metrics/summary.json", "chat/transcript.json"):
        rewrite(spare, name, said=said)
    (spare / "evaluate" / "comparison.md").write_text(said)
    (spare / "evaluate" / "items" / f"{gone}/peer--a.parquet".replace("/", "__")).write_bytes(b"")
    models = read_json(spare / "evaluate" / "results.json")["models"]
    peer = {"name": f"{gone}/peer", "source": f"{gone}/peer", "parameters": 1}
    rewrite(spare, "evaluate/results.json", models=[*models, peer], left_out={f"{gone}/peer": said})
    made = publish(spare, wllama_dir=f"{gone}/wllama", push_page=True)
    for file in made.folder.rglob("*"):
        text = f"{file.relative_to(made.folder)}: " + (file.read_text("utf-8", "replace") if file.is_file() else "")
        for place in ("/gone", "__gone", "ada ", f"{Path.home()}/", str(ROOT), str(spare)):
            assert place not in text, (file, place)
    hidden = "…/talk.jsonl:\n…/peer; ~/a, ./runs/b, …/run/train and\n…/task_path/a"
    assert (made.folder / "run" / "evaluate-comparison.md").read_text() == hidden
    assert read_json(made.folder / "run" / "chat-transcript.json")["said"] == hidden
    assert (made.folder / "run" / "evaluate-items" / "…__peer--a.parquet").is_file()
    found = parameters(made)
    assert (found["base_model"], found["sample_prompts"]) == ("…/base_model", ["/imagine a cat"])
    assert not found["push_page"]  # nor does a rerun push
    for words in ("`base_model`, a local folder, fine-tuned", "- Left out: `…/peer` (…/talk.jsonl: "):
        assert words in made.card


def test_the_published_parameters_make_the_same_run(spare):
    record_stages(spare, learning_rate=3e-5, datasets=[{"path": "chitchat", "fraction": 0.5}], tasks=["sciq"])
    made = publish(spare, languages=["en", "de"], base_model_id="me/base")
    again = plan(made.folder / "run" / "parameters.yaml", [], run_dir=str(spare))
    recorded = [read_json(spare / stage.name / "stage.json")["parameters"] for stage in STAGES[:-1]]
    planned = [entry.settings.model_dump(mode="json") for entry in again.stages]
    assert planned == [*recorded, made.settings.model_dump(mode="json")]
    assert parameters(made)["run_dir"] == "runs/again"
