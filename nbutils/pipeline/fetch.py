"""`python -m nbutils fetch`: collects what a profile takes from the hub into one folder, for machines without internet.

Base model, datasets, the data of evaluation tasks and peers go into `DIR`, each at a pinned commit with the hashes of
its files in `DIR/fetched.json`. Every loader looks there first (see `nbutils.core.fetched`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.fetched import MANIFEST, SCHEMA, VARIABLE, manifest
from nbutils.core.files import project_root, replaced, resolve, sha256_of_file, shown, write_json
from nbutils.core.models import TINY
from nbutils.core.tasks import dataset_of_tasks, own_tasks
from nbutils.data.chitchat import NAME as CHITCHAT
from nbutils.data.sources import FILE_ENDINGS
from nbutils.pipeline.arguments import add_overrides, profile_path
from nbutils.pipeline.parameters import plan

NOT_WEIGHTS = ("*.onnx", "*.msgpack", "*.h5", "*.ot", "*.pth", "onnx/*", "openvino/*", "coreml/*", "original/*")
"""Files of a model repository that no loader of ours reads."""
OLD_WEIGHTS = ("*.bin", "*.gguf")
"""Weights that are left out where the repository has them as safetensors too."""


@dataclass(frozen=True)
class Wanted:
    """A `model` or `dataset` on the hub: its id, the revision asked for ('' the newest), and what it is for."""

    kind: str
    name: str
    revision: str
    purpose: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fetch`."""
    parser.add_argument("profile", metavar="PROFILE", help="a YAML file of parameters, for example params/demo.yaml")
    add_overrides(parser)
    parser.add_argument(
        "--out", metavar="DIR", help=f"the folder (default: {VARIABLE}, or fetched/ at the project root)"
    )
    parser.add_argument("--check", action="store_true", help="download nothing; compare all files with their hashes")


def main(arguments: argparse.Namespace) -> int:
    """Fetches or checks; the exit status."""
    import os

    given = arguments.out or os.environ.get(VARIABLE)
    folder = Path(given).expanduser().absolute() if given else project_root() / "fetched"
    if arguments.check:
        return check(folder)
    profile = profile_path(arguments.profile)
    planned = plan(profile, arguments.overrides)
    wanted = list(wanted_by({entry.stage.name: entry.settings for entry in planned.stages}))
    if not wanted:
        print(f"{shown(profile)} takes nothing from the hub; it runs without internet as it is.")
        return 0
    for item in wanted:
        fetch(item, folder)
    print(f"All of it lies in {shown(folder)}. Copy that folder, and set {VARIABLE} to where it lies there.")
    return 0


def wanted_by(settings: dict[str, Any]) -> Iterator[Wanted]:
    """What the stages' settings take from the hub, each once."""
    seen: set[tuple[str, str, str]] = set()
    for item in _all_wanted(settings):
        if (item.kind, item.name, item.revision) not in seen and not resolve(item.name).exists():
            seen.add((item.kind, item.name, item.revision))
            yield item


def _all_wanted(settings: dict[str, Any]) -> Iterator[Wanted]:
    task_path, tasks = "", []
    for stage in settings.values():
        base = getattr(stage, "base_model", TINY)
        if base != TINY and not base.endswith(".gguf"):
            yield Wanted("model", base, getattr(stage, "base_revision", ""), "base model")
        for spec in getattr(stage, "datasets", []):
            if spec.path != CHITCHAT and not spec.path.endswith(FILE_ENDINGS):
                yield Wanted("dataset", spec.path, spec.revision, "conversations")
        for peer in getattr(stage, "peers", []):
            name, _, revision = peer.partition("@")
            if not name.endswith(".gguf"):
                yield Wanted("model", name, revision, "peer")
        tasks += [*getattr(stage, "tasks", []), *getattr(stage, "contamination_tasks", [])]
        task_path = getattr(stage, "task_path", "") or task_path
    own = own_tasks(task_path)
    for task in dict.fromkeys(tasks):
        for name in dataset_of_tasks(task, own):
            yield Wanted("dataset", name, "", f"task {task}")


def fetch(wanted: Wanted, folder: Path) -> None:
    """Downloads one repository at a pinned commit and adds it to the manifest; what is there already is left alone."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().repo_info(
            wanted.name, repo_type=wanted.kind, revision=wanted.revision or None, files_metadata=True
        )
        commit = str(info.sha)
        files = {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or []}
        chosen = chosen_files(wanted.kind, files)
        size = sum(files[name] for name in chosen)
        if _is_there(wanted, commit, folder):
            print(f"{wanted.purpose} {wanted.name}: is there at commit {commit[:12]}")
            return
        print(f"{wanted.purpose} {wanted.name}: {len(chosen)} files, {size / 1e6:,.1f} MB, commit {commit[:12]}")
        target = f"{wanted.kind}s/{wanted.name.replace('/', '--')}@{commit[:12]}"
        with replaced(folder / target) as partial:
            snapshot_download(
                wanted.name, repo_type=wanted.kind, revision=commit, local_dir=partial, allow_patterns=chosen
            )
            shutil.rmtree(partial / ".cache", ignore_errors=True)
    except Exception as error:  # the hub's client raises a dozen types, its HTTP library's among them
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"The {wanted.purpose} {wanted.name} cannot be fetched ({first}); check its name and revision, the "
            "network, and HF_TOKEN for what needs a login."
        ) from error
    _add(wanted, commit, folder, target)


def chosen_files(kind: str, files: dict[str, int]) -> list[str]:
    """The files of a repository that our loaders read: all of a dataset's, a model's without copies of its weights."""
    from fnmatch import fnmatch

    if kind == "dataset":
        return sorted(files)
    left_out = NOT_WEIGHTS + (OLD_WEIGHTS if any(name.endswith(".safetensors") for name in files) else ())
    return sorted(name for name in files if not any(fnmatch(name, pattern) for pattern in left_out))


def check(folder: Path) -> int:
    """Compares every file with its hash in the manifest; prints what differs, and the exit status."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{shown(folder)} holds no {MANIFEST}; run fetch without --check first, or give its --out.")
    wrong = []
    for item in manifest(folder)["items"]:
        for name, facts in item["files"].items():
            path = folder / item["folder"] / name
            if not path.is_file() or sha256_of_file(path) != facts["sha256"]:
                wrong.append(shown(path))
    for path in wrong:
        print(f"differs or is missing: {path}")
    print(f"{shown(folder)}: {'damaged, fetch it again' if wrong else 'every file is as it was fetched'}")
    return 1 if wrong else 0


def _items(folder: Path) -> list[dict[str, Any]]:
    return list(manifest(folder)["items"]) if (folder / MANIFEST).is_file() else []


def _is_there(wanted: Wanted, commit: str, folder: Path) -> bool:
    for item in _items(folder):
        if (item["kind"], item["name"], item["commit"]) == (wanted.kind, wanted.name, commit):
            paths = {folder / item["folder"] / name: facts["bytes"] for name, facts in item["files"].items()}
            return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
    return False


def _add(wanted: Wanted, commit: str, folder: Path, target: str) -> None:
    files = sorted(path for path in (folder / target).rglob("*") if path.is_file())
    item = {
        "kind": wanted.kind,
        "name": wanted.name,
        "revision": wanted.revision,
        "commit": commit,
        "folder": target,
        "files": {
            str(path.relative_to(folder / target)): {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
            for path in files
        },
    }
    others = [i for i in _items(folder) if (i["kind"], i["name"], i["commit"]) != (wanted.kind, wanted.name, commit)]
    write_json(folder / MANIFEST, {"schema": SCHEMA, "items": [*others, item]})
