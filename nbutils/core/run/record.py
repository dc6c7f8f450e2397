"""`stage.json` and `run.json`: what a run folder says about itself and where it comes from, and reading it back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from nbutils import __version__
from nbutils.core.errors import UserError
from nbutils.core.files import PLACE, Json, files_below, project_root, read_json, sha256_of_file, shown, write_text
from nbutils.core.text import redact

SCHEMA = 1
RECORD = "stage.json"
RUN_RECORD = "run.json"
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "lm_eval", "papermill", "numpy")


class NewerRecordError(UserError):
    """A record that a newer smallchat wrote."""


def read_record(path: Path) -> Json | None:
    """A `stage.json` or `run.json`; None where there is none. UserError for a damaged or unreadable one.

    NewerRecordError for one of a newer schema.
    """
    try:
        record = read_json(path)
        newer = record.get("schema", 0) > SCHEMA
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{shown(path)} is damaged or cannot be read ({error}): delete it to make its stage run again, or choose "
            "another run_dir."
        ) from None
    if newer:
        raise NewerRecordError(
            f"{shown(path)} was written by a newer smallchat (schema {record['schema']}, this one reads {SCHEMA}); "
            "update smallchat."
        )
    return dict(record)


def write_record(path: Path, record: Json) -> None:
    """Writes a `stage.json` or `run.json` atomically; a secret that found its way into it is blotted out."""
    write_text(path, redact(json.dumps(record, indent=2, ensure_ascii=False, default=str)) + "\n")


def outputs_of(folder: Path, earlier: Json | None = None) -> dict[str, Json]:
    """Every file that a stage has made, with sha256, bytes and time of change.

    A file that `earlier` lists as it is now is not hashed again.
    """
    found = {}
    for file in files_below(folder):
        name = str(file.relative_to(folder))
        if file.name != RECORD and ".partial" not in name:
            found[name] = _entry(file, (earlier or {}).get(name, {}))
    return found


def current_hash(folder: Path, name: str, entry: Json) -> str:
    """The hash of a recorded file as it is on disk now; `missing` where it is gone."""
    file = folder / name
    return str(_entry(file, entry)["sha256"]) if file.is_file() else "missing"


def _entry(file: Path, earlier: Json) -> Json:
    stat = file.stat()
    facts = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return earlier if facts.items() <= earlier.items() else {"sha256": sha256_of_file(file), **facts}


def versions() -> dict[str, str]:
    """Versions of Python, smallchat and the libraries that results depend on."""
    found = {"python": platform.python_version(), "smallchat": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the clone, with `+changes` behind it where the work tree differs, or that of a Kaggle bundle.

    None outside both.
    """
    bundled = PLACE / "commit.txt"
    if bundled.is_file():
        return bundled.read_text(encoding="utf-8") or None
    described = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")  # without tags
    command = ["git", "-C", str(project_root()), *described]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> Json:
    """Versions and commit, as both records hold them."""
    return {"versions": versions(), "git_commit": git_commit()}


def machine() -> Json:
    """Processor, cores, memory and platform; accelerators are reported by the processes that use them."""
    import psutil  # a bare Kaggle image reads records before it is there

    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
