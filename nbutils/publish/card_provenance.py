"""Where a model comes from, as the card says it: base, datasets, parameters, commit and versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from nbutils.core.files import resolve
from nbutils.core.run.models import TINY
from nbutils.publish.facts import Facts
from nbutils.publish.settings import HUB_ID, PublishSettings

CHITCHAT = "chitchat"
"""The dataset that comes with smallchat."""
FILES = {".gguf", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip"}
"""Endings of names that are files, wherever they may be now."""


def is_hub_id(name: str) -> bool:
    """Whether a model or dataset can only be one of the Hub's: no file or folder, and none that smallchat has."""
    if name in (TINY, CHITCHAT) or not HUB_ID.fullmatch(name):
        return False
    return PurePath(name).suffix.lower() not in FILES and not resolve(name).exists()


def base_kind(facts: Facts) -> str:
    """What the base is: `tiny`, of the `hub`, a local `file` or a local `folder`."""
    if facts.base_model == TINY:
        return TINY
    if not facts.base["local"]:
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
    read = dict.fromkeys(dataset["path"] for dataset in facts.data["datasets"])
    return settings.dataset_ids or list(filter(is_hub_id, read))


def dataset_name(dataset: dict[str, Any]) -> str:
    """What a dataset is called on the card: of one on a disk its own name, without its path."""
    path = str(dataset["path"])
    return path if is_hub_id(path) else Path(path).name


def versions(these: dict[str, str], usual: dict[str, str] | None = None) -> str:
    """Libraries with their versions, where those are not the usual ones."""
    return ", ".join(f"{n} {v}" for n, v in these.items() if v not in ("absent", (usual or {}).get(n)))


def pinned_parameters(facts: Facts) -> dict[str, Any]:
    """The parameters of all stages, with the revisions of base model and datasets that were really read.

    Without what only that machine has and the model does not come from: runs to compare with, and local peers.
    """
    parameters = facts.parameters
    given, read = parameters["datasets"], facts.data["datasets"]
    if [d["path"] for d in given] == [d["path"] for d in read]:
        given = [
            g | {"revision": r["revision"]} if is_hub_id(g["path"]) else g for g, r in zip(given, read, strict=True)
        ]
    local = local_peers(facts)
    peers = [peer for peer in parameters["peers"] if peer not in local]
    revision = {"base_revision": base_commit(facts)} if base_kind(facts) == "hub" else {}
    return parameters | revision | {"datasets": given, "compare_runs": [], "peers": peers}


def local_peers(facts: Facts) -> list[str]:
    """Models that were compared with and are no names of the Hub."""
    return [peer for peer in facts.parameters["peers"] if not is_hub_id(peer.partition("@")[0])]


def disagreements(facts: Facts) -> Iterator[tuple[str, str]]:
    """Parameters that the notebooks were not run with one value of, and the values in words."""
    for name, value in facts.parameters.items():
        given = {s: r["parameters"][name] for s, r in facts.stages.items() if name in r["parameters"]}
        if name != "run_dir" and any(other != value for other in given.values()):
            yield name, ", ".join(f"{own!r} in {stage}" for stage, own in given.items())


def stage_records(facts: Facts) -> dict[str, Any]:
    """When and with which code each stage was run: what the card's provenance is made from."""
    kept = ("started", "seconds", "git_commit", "versions", "key")
    return {stage: {name: record[name] for name in kept} for stage, record in facts.stages.items()}
