"""Where a model comes from, as the card says it: base, datasets, commit, versions, and how to make it again."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from nbutils.core.files import resolve
from nbutils.core.notebooks import spec
from nbutils.core.verdict import in_short
from nbutils.publish.facts import Facts
from nbutils.publish.settings import HUB_ID, PublishSettings

TINY = "tiny"
CHITCHAT = "chitchat"
EMBEDDED = {CHITCHAT: "chitchat (PyPI package chitchat-dataset, MIT)"}
"""Datasets that come with smallchat, in words."""
FILES = {".gguf", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip"}
"""Endings of names that are files, wherever they may be now."""
CHANGES = "+changes"

Rows = list[tuple[Any, ...]]


def is_hub_id(name: str) -> bool:
    """Whether a base model or dataset can only be one of the Hub's: no file or folder, and none that smallchat has."""
    if name in (TINY, CHITCHAT) or not HUB_ID.fullmatch(name):
        return False
    return PurePath(name).suffix.lower() not in FILES and not resolve(name).exists()


def hub_base(facts: Facts, settings: PublishSettings) -> str | None:
    """The base's name on the Hub: as `base_model_id` gives it, or `base_model` where that was loaded from there."""
    if settings.base_model_id:
        return settings.base_model_id
    return facts.base_model if _base_from_hub(facts) else None


def hub_datasets(facts: Facts, settings: PublishSettings) -> list[str]:
    """Names on the Hub of what was trained on: `dataset_ids`, or those of `datasets` that were loaded from there."""
    return settings.dataset_ids or list(dict.fromkeys(d["path"] for d in facts.data["datasets"] if _from_hub(d)))


def dataset_name(dataset: dict[str, Any]) -> str:
    """What a dataset is called on the card: of one that lies on a disk its own name, without the way to it."""
    return str(dataset["path"]) if dataset["path"] in EMBEDDED or _from_hub(dataset) else Path(dataset["path"]).name


def base_words(facts: Facts, settings: PublishSettings) -> str:
    """The base in words."""
    if facts.base_model == TINY:
        return "a Llama built from its configuration"
    named = hub_base(facts, settings)
    return f"`{named}`" if named else f"`{Path(facts.base_model).name}`, a local {_kind(facts)}"


def provenance(facts: Facts, settings: PublishSettings) -> Rows:
    """Commit and versions of the training, what other notebooks had otherwise, and hashes."""
    train = facts.stages["train"]
    rows: Rows = [
        ("smallchat", train["versions"].get("smallchat", "")),
        ("git commit", train.get("git_commit") or "unknown (not run from a clone)"),
        ("versions, training", ", ".join(f"{n} {v}" for n, v in train["versions"].items() if v != "absent")),
    ]
    for row in facts.sessions:
        if words := _other_versions(row.get("versions", {}), train["versions"]):
            rows.append((f"… its session {row.get('session', '?')}, from step {row.get('step', 0):,}", words))
    rows += [(f"… notebook of {stage}", words) for stage in facts.stages if (words := _otherwise(facts, stage))]
    rows.append(("base model", _base_with_revision(facts, settings)))
    if facts.base.get("sha256"):
        rows.append(("base model's file, SHA-256", f"`{facts.base['sha256']}`"))
    weights = [e["sha256"] for n, e in train["outputs"].items() if n.startswith("base/") and n.endswith(".safetensors")]
    if len(weights) == 1:
        rows.append(("weights before training, SHA-256", f"`{weights[0]}`"))
    return [*rows, ("evaluation set, SHA-256", f"`{facts.data['eval_hash']}`")]


def datasets(facts: Facts) -> Rows:
    """Name, revision, rows and fingerprint of each dataset."""
    rows: Rows = []
    for dataset in facts.data["datasets"]:
        part = f" ({dataset['name']})" if dataset["name"] else ""
        name = EMBEDDED.get(dataset["path"], dataset_name(dataset)) + part
        fingerprint = f"`{dataset['fingerprint'][:16]}`" if dataset["fingerprint"] else "—"
        rows.append((name, dataset["revision"] or "—", f"{dataset['rows']:,}", fingerprint))
    return rows


def pinned_parameters(facts: Facts) -> dict[str, Any]:
    """The parameters of all stages, with the revisions of base model and datasets that were really read.

    Without what only that machine has and the model does not come from: runs to compare with, and local peers.
    """
    parameters = facts.parameters
    given, read = parameters["datasets"], facts.data["datasets"]
    if [d["path"] for d in given] == [d["path"] for d in read]:
        given = [
            d | {"revision": r["revision"] if _from_hub(r) else d["revision"]} for d, r in zip(given, read, strict=True)
        ]
    peers = [peer for peer in parameters["peers"] if peer not in local_peers(facts)]
    pinned: dict[str, Any] = {"datasets": given, "compare_runs": [], "peers": peers}
    if facts.base_model != TINY and _base_from_hub(facts):
        pinned["base_revision"] = _commit_of_base(facts)
    return parameters | pinned


def local_peers(facts: Facts) -> list[str]:
    """Models that were compared with and are no names of the Hub."""
    return [peer for peer in facts.parameters["peers"] if not is_hub_id(peer.partition("@")[0])]


def reproduce_command(facts: Facts) -> str:
    """The shell commands that run the same notebooks with the same parameters again, in a clone of smallchat."""
    commit = str(facts.stages["train"].get("git_commit") or "").removesuffix(CHANGES)
    checkout = f"git checkout {commit}\n" if commit else ""
    return f"{checkout}python -m nbutils run parameters.yaml"


def reservations(facts: Facts, settings: PublishSettings) -> list[str]:
    """What keeps that command from making quite the same, a sentence each."""
    commit = str(facts.stages["train"].get("git_commit") or "")
    lines = []
    if commit.endswith(CHANGES):
        lines.append(
            "The clone that trained this model held changes that were never committed: the commit alone is not quite "
            "the code that made it."
        )
    elif not commit:
        lines.append("The commit is unknown: this run was not made in a clone.")
    if facts.base_model != TINY and not _base_from_hub(facts):
        lines.append(f"`base_model` is a {_kind(facts)} on the machine that trained (`{Path(facts.base_model).name}`): "
                     "write there where yours lies.")  # fmt: skip
    elif facts.base_model != TINY and not _commit_of_base(facts):
        lines.append("The base's revision was not recorded: its owner may have changed it since.")
    local = [d for d in facts.data["datasets"] if d["path"] not in EMBEDDED and not _from_hub(d)]
    if local:
        names = ", ".join(f"`{dataset_name(dataset)}`" for dataset in local)
        lines.append(f"Datasets that lay on that machine alone have to be put in their place: {names}.")
    if peers := local_peers(facts):
        named = ", ".join(f"`{Path(peer).name}`" for peer in peers)
        lines.append(f"Models on that machine alone were compared with too, and are left out of the file: {named}.")
    if tasks := facts.parameters["task_path"]:
        lines.append(f"Its own tasks lay in the folder `{Path(tasks).name}` there: write where yours lie.")
    for name, given in facts.disagreements.items():
        values = ", ".join(f"{value!r} in {stage}" for stage, value in given.items())
        lines.append(f"The notebooks were not run with one value of `{name}` ({values}); the file holds one.")
    for stage, record in facts.stages.items():
        lines += [f"The work of `{spec(stage).file}` was kept on {kept['at'][:10]} although this had changed since: "
                  f"{in_short(kept['changed'])}." for kept in record.get("accepted", [])]  # fmt: skip
    return lines


def stage_records(facts: Facts) -> dict[str, Any]:
    """When and with which code each stage was run: what the card's provenance is made from."""
    kept = ("started", "seconds", "git_commit", "versions", "key")
    return {stage: {name: record.get(name) for name in kept} for stage, record in facts.stages.items()}


def _from_hub(dataset: dict[str, Any]) -> bool:
    return is_hub_id(dataset["path"])


def _base_from_hub(facts: Facts) -> bool:
    return is_hub_id(facts.base_model) and not facts.base.get("local")


def _kind(facts: Facts) -> str:
    return "file" if PurePath(facts.base_model).suffix.lower() in FILES else "folder"


def _commit_of_base(facts: Facts) -> str:
    return str(facts.base.get("commit") or facts.stages["train"]["parameters"].get("base_revision") or "")


def _base_with_revision(facts: Facts, settings: PublishSettings) -> str:
    words = base_words(facts, settings)
    if facts.base_model == TINY:
        return words
    if _base_from_hub(facts):
        return f"{words}, revision {_commit_of_base(facts) or 'unknown'}"
    return f"{words}, read from a local {_kind(facts)}" if settings.base_model_id else words


def _otherwise(facts: Facts, stage: str) -> str:
    """Commit and versions of a stage as far as they are not those of the training."""
    record, train = facts.stages[stage], facts.stages["train"]
    words = []
    if record.get("git_commit") != train.get("git_commit"):
        words.append(f"git commit {record.get('git_commit') or 'unknown'}")
    words += filter(None, [_other_versions(record["versions"], train["versions"])])
    return ", ".join(words)


def _other_versions(these: dict[str, str], usual: dict[str, str]) -> str:
    return ", ".join(f"{n} {v}" for n, v in these.items() if v != usual.get(n) and v != "absent")
