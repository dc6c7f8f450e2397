"""Where a model comes from, as the card says it: base, datasets, commit, versions, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from nbutils.core.files import resolve
from nbutils.core.run.models import TINY
from nbutils.core.run.state import in_short
from nbutils.core.stages import spec
from nbutils.publish.facts import Facts, Rows
from nbutils.publish.settings import HUB_ID, PublishSettings

CHITCHAT = "chitchat"
EMBEDDED = {CHITCHAT: "chitchat (PyPI package chitchat-dataset, MIT)"}
"""Datasets that come with smallchat, in words."""
FILES = {".gguf", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip"}
"""Endings of names that are files, wherever they may be now."""


def is_hub_id(name: str) -> bool:
    """Whether a base model or dataset can only be one of the Hub's: no file or folder, and none that smallchat has."""
    if name in (TINY, CHITCHAT) or not HUB_ID.fullmatch(name):
        return False
    return PurePath(name).suffix.lower() not in FILES and not resolve(name).exists()


def base_kind(facts: Facts) -> str:
    """What the base is: `tiny`, of the `hub`, a local `file` or a local `folder`."""
    if facts.base_model == TINY:
        return TINY
    if is_hub_id(facts.base_model) and not facts.base["local"]:
        return "hub"
    return "file" if PurePath(facts.base_model).suffix.lower() in FILES else "folder"


def hub_base(facts: Facts, settings: PublishSettings) -> str | None:
    """The base's name on the Hub: as `base_model_id` gives it, or `base_model` where that was loaded from there."""
    return settings.base_model_id or (facts.base_model if base_kind(facts) == "hub" else None)


def base_commit(facts: Facts) -> str:
    """The base's commit on the Hub, or the revision that was asked for; nothing where neither is known."""
    return str(facts.base["commit"] or facts.parameters["base_revision"])


def hub_datasets(facts: Facts, settings: PublishSettings) -> list[str]:
    """Names on the Hub of what was trained on: `dataset_ids`, or those of `datasets` that were loaded from there."""
    return settings.dataset_ids or list(dict.fromkeys(d["path"] for d in facts.data["datasets"] if _from_hub(d)))


def dataset_name(dataset: dict[str, Any]) -> str:
    """What a dataset is called on the card: of one on a disk its own name, without its path."""
    return str(dataset["path"]) if dataset["path"] in EMBEDDED or _from_hub(dataset) else Path(dataset["path"]).name


def base_words(facts: Facts, settings: PublishSettings) -> str:
    """The base in words."""
    kind, named = base_kind(facts), hub_base(facts, settings)
    if kind == TINY:
        return "a Llama built from its configuration"
    return f"`{named}`" if named else f"`{Path(facts.base_model).name}`, a local {kind}"


def provenance(facts: Facts, settings: PublishSettings) -> Rows:
    """Commit and versions of the training, what other notebooks had otherwise, and hashes."""
    train = facts.trained
    rows: Rows = [
        ("smallchat", train["versions"]["smallchat"]),
        ("git commit", train["git_commit"] or "unknown (not run from a clone)"),
        ("versions, training", ", ".join(f"{n} {v}" for n, v in train["versions"].items() if v != "absent")),
    ]
    for row in facts.sessions:
        if words := _other_versions(row.get("versions", {}), train["versions"]):
            rows.append((f"… its session {row['session']}, from step {row['step']:,}", words))
    rows += [(f"… notebook of {stage}", words) for stage in facts.stages if (words := _otherwise(facts, stage))]
    origin = {
        "hub": f", revision {base_commit(facts) or 'unknown'}",
        "file": ", read from a local file" if settings.base_model_id else "",
        "folder": ", read from a local folder" if settings.base_model_id else "",
    }
    rows.append(("base model", base_words(facts, settings) + origin.get(base_kind(facts), "")))
    if facts.base["sha256"]:
        rows.append(("base model's file, SHA-256", f"`{facts.base['sha256']}`"))
    weights = [e["sha256"] for n, e in train["outputs"].items() if n.startswith("base/") and n.endswith(".safetensors")]
    if len(weights) == 1:
        rows.append(("weights before training, SHA-256", f"`{weights[0]}`"))
    return [*rows, ("evaluation set, SHA-256", f"`{facts.data['eval_hash']}`")]


def datasets(data: dict[str, Any]) -> Rows:
    """Name, revision, rows and fingerprint of each dataset."""
    rows: Rows = []
    for dataset in data["datasets"]:
        part = f" ({dataset['name']})" if dataset["name"] else ""
        name = EMBEDDED.get(dataset["path"], dataset_name(dataset)) + part
        fingerprint = f"`{dataset['fingerprint'][:16]}`" if dataset["fingerprint"] else "—"
        rows.append((name, dataset["revision"] or "—", f"{dataset['rows']:,}", fingerprint))
    return rows


def local_datasets(data: dict[str, Any]) -> list[str]:
    """Names of the datasets that came from a disk."""
    local = (d for d in data["datasets"] if d["path"] not in EMBEDDED and not _from_hub(d))
    return [f"`{dataset_name(dataset)}`" for dataset in local]


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
    if base_kind(facts) == "hub":
        pinned["base_revision"] = base_commit(facts)
    return parameters | pinned


def local_peers(facts: Facts) -> list[str]:
    """Models that were compared with and are no names of the Hub."""
    return [peer for peer in facts.parameters["peers"] if not is_hub_id(peer.partition("@")[0])]


def disagreements(facts: Facts) -> Iterator[tuple[str, str]]:
    """Parameters that the notebooks were not run with one value of, and the values in words."""
    for name, value in facts.parameters.items():
        given = {s: r["parameters"][name] for s, r in facts.stages.items() if name in r["parameters"]}
        if name != "run_dir" and any(other != value for other in given.values()):
            yield name, ", ".join(f"{own!r} in {stage}" for stage, own in given.items())


def accepted(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Work that a person kept although something had changed: notebook, day, and what had."""
    for stage, record in facts.stages.items():
        for kept in record.get("accepted", []):
            yield spec(stage).file, kept["at"][:10], in_short(kept["changed"])


def stage_records(facts: Facts) -> dict[str, Any]:
    """When and with which code each stage was run: what the card's provenance is made from."""
    kept = ("started", "seconds", "git_commit", "versions", "key")
    return {stage: {name: record[name] for name in kept} for stage, record in facts.stages.items()}


def _from_hub(dataset: dict[str, Any]) -> bool:
    return is_hub_id(dataset["path"])


def _otherwise(facts: Facts, stage: str) -> str:
    """Commit and versions of a stage as far as they are not those of the training."""
    record, train = facts.stages[stage], facts.trained
    words = []
    if record["git_commit"] != train["git_commit"]:
        words.append(f"git commit {record['git_commit'] or 'unknown'}")
    words += filter(None, [_other_versions(record["versions"], train["versions"])])
    return ", ".join(words)


def _other_versions(these: dict[str, str], usual: dict[str, str]) -> str:
    return ", ".join(f"{n} {v}" for n, v in these.items() if v != usual.get(n) and v != "absent")
