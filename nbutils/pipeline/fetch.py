"""`python -m nbutils fetch`: collects what a profile takes from the hub into one folder, for machines without internet.

Base model, datasets, the data of evaluation tasks and peers go into `DIR`, each at a pinned commit with the hashes of
its files in `DIR/fetched.json`. Every loader looks there first (see `nbutils.core.fetched`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download

from nbutils.core.errors import UserError
from nbutils.core.fetched import MANIFEST, SCHEMA, VARIABLE, local_copy, manifest
from nbutils.core.files import Json, files_below, project_root, resolve, sha256_of_file, shown, write_json
from nbutils.core.network import hub_answers, offline
from nbutils.core.run.layout import is_run_model
from nbutils.core.run.models import TINY
from nbutils.core.settings import Settings
from nbutils.core.tasks import dataset_of_tasks, own_tasks
from nbutils.core.text import first_line
from nbutils.data.sources import CHITCHAT
from nbutils.data.splits import FILE_SUFFIXES
from nbutils.evaluate.heldout import YAMLS
from nbutils.pipeline.parameters import add_profile, plan, profile_path

NOT_WEIGHTS = ("*.onnx", "*.msgpack", "*.h5", "*.ot", "*.pth", "onnx/*", "openvino/*", "coreml/*", "original/*")
"""Files of a model repository that no loader of ours reads."""
OLD_WEIGHTS = ("*.bin", "*.gguf")
"""Weights that are left out where the repository has them as safetensors too."""
WEIGHTS = (".safetensors", ".bin", ".gguf")
"""Endings of files that hold a model's weights."""


@dataclass(frozen=True)
class Wanted:
    """A `model` or `dataset` on the hub: its id, the revision asked for ('' the newest), and what it is for."""

    kind: str
    name: str
    revision: str
    purpose: str = field(compare=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fetch`."""
    add_profile(parser, run_dir=False)
    parser.add_argument(
        "--out", metavar="DIR", help=f"the folder (default: {VARIABLE}, or fetched/ at the project root)"
    )
    parser.add_argument("--check", action="store_true", help="download nothing; compare all files with their hashes")


def main(arguments: argparse.Namespace) -> int:
    """Fetches or checks; the exit status."""
    folder = Path(arguments.out or os.environ.get(VARIABLE) or project_root() / "fetched").expanduser().absolute()
    if arguments.check:
        return check(folder)
    planned = plan(profile_path(arguments.profile), arguments.overrides)
    wanted = wanted_by(entry.settings for entry in planned.stages)
    if not wanted:
        print(f"{shown(planned.profile)} takes nothing from the hub; it runs without internet as it is.")
        return 0
    need_hub(wanted, planned.profile)
    for item in wanted:
        fetch(item, folder)
    print(f"All of it is in {shown(folder)}. Copy that folder, and set {VARIABLE} to where it is then.")
    return 0


def wanted_by(settings: Iterable[Settings], *, tasks: bool = True) -> list[Wanted]:
    """What stages take from the hub, each once: base model, peers, the chat's models, conversations, data of `tasks`.

    Where there are other tasks than the embedded ones, lm-eval is imported for them, which takes seconds.
    """
    values: Json = {name: value for stage in settings for name, value in stage}
    models = [("base model", values.get("base_model", TINY), values.get("base_revision", ""))]
    if "tasks" in values:  # the chat loads a peer where somebody picks it
        models += [("peer", peer, "") for peer in values["peers"]]
    models += [("model of the chat", values.get(name, TINY), "") for name in ("model", "compare_with")]
    own = own_tasks(values.get("task_path", ""))
    wanted = [
        *(
            Wanted("model", name.partition("@")[0], revision or name.partition("@")[2], purpose)
            for purpose, name, revision in models
            if not (name == TINY or is_run_model(name) or name.endswith(".gguf") or resolve(name).exists())
        ),
        *(
            Wanted("dataset", spec.path, spec.revision, "conversations")
            for spec in values.get("datasets", [])
            if spec.path != CHITCHAT and not spec.path.endswith(FILE_SUFFIXES)
        ),
        *(
            Wanted("dataset", name, "", f"task {task}")
            for task in [*values.get("tasks", []), *values.get("contamination_tasks", [])]
            if tasks and (task in own or task not in YAMLS)
            for name in dataset_of_tasks(task, own)
        ),
    ]
    return [item for item in dict.fromkeys(wanted) if not resolve(item.name).exists()]


def need_hub(wanted: list[Wanted], profile: Path) -> None:
    """UserError where something is wanted and the hub does not answer."""
    if wanted and not hub_answers():
        raise UserError(
            f"There is no way to {', '.join(f'{item.purpose} {item.name}' for item in wanted)}{offline()}: connect to "
            "a network (HF_ENDPOINT=https://… and HTTPS_PROXY are honoured), name a file or folder that is there, or "
            f"run `python -m nbutils fetch {shown(profile)}` where there is one and copy the folder."
        )


def not_here(wanted: list[Wanted]) -> list[Wanted]:
    """What was neither fetched nor ever loaded on this machine; of a model, its weights."""
    missing = []
    for item in wanted:
        cached = Path(constants.HF_HUB_CACHE) / f"{item.kind}s--{item.name.replace('/', '--')}"
        loaded = any(item.kind == "dataset" or file.suffix in WEIGHTS for file in cached.glob("snapshots/*/*"))
        if not loaded and local_copy(item.kind, item.name, item.revision) is None:
            missing.append(item)
    return missing


def fetch(wanted: Wanted, folder: Path) -> None:
    """Downloads one repository at a pinned commit and adds it to the manifest; what is there already stays."""
    try:
        info: Any = HfApi().repo_info(wanted.name, repo_type=wanted.kind, revision=wanted.revision or None)
        commit = str(info.sha)
        target = f"{wanted.kind}s/{wanted.name.replace('/', '--')}@{commit[:12]}"
        left_out = [*NOT_WEIGHTS] if wanted.kind == "model" else []
        if left_out and any(file.rfilename.endswith(".safetensors") for file in info.siblings):
            left_out += OLD_WEIGHTS
        snapshot_download(
            wanted.name, repo_type=wanted.kind, revision=commit, local_dir=folder / target, ignore_patterns=left_out
        )
    except Exception as error:  # the hub's client raises a dozen types, its HTTP library's among them
        raise UserError(
            f"The {wanted.purpose} {wanted.name} cannot be fetched ({first_line(error)}); check its name and revision, "
            "the network, and HF_TOKEN for what needs a login."
        ) from error
    known = _add(wanted, commit, folder, target)
    print(f"{wanted.purpose} {wanted.name}: {'is there' if known else 'fetched'} at commit {commit[:12]}")


def check(folder: Path) -> int:
    """Compares every file with its hash in the manifest; prints what differs, and the exit status."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{shown(folder)} holds no {MANIFEST}; run fetch without --check first, or give its --out.")
    wrong = 0
    for item in manifest(folder)["items"]:
        for name, facts in item["files"].items():
            path = folder / item["folder"] / name
            if not path.is_file() or sha256_of_file(path) != facts["sha256"]:
                wrong += 1
                print(f"differs or is missing: {shown(path)}")
    print(f"{shown(folder)}: {'damaged, fetch it again' if wrong else 'every file is as it was fetched'}")
    return min(wrong, 1)


def _add(wanted: Wanted, commit: str, folder: Path, target: str) -> bool:
    """Puts a downloaded folder into the manifest; whether it was there already."""
    items = manifest(folder)["items"] if (folder / MANIFEST).is_file() else []
    files = {
        str(path.relative_to(folder / target)): {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
        for path in files_below(folder / target)
        if ".cache" not in path.relative_to(folder / target).parts  # the hub client's own notes
    }
    item = {"kind": wanted.kind, "name": wanted.name, "revision": wanted.revision, "commit": commit, "folder": target}
    others = [other for other in items if other["folder"] != target]
    write_json(folder / MANIFEST, {"schema": SCHEMA, "items": [*others, item | {"files": files}]})
    return len(others) < len(items)
