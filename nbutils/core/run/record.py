"""`stage.json` and `run.json`: what a run folder says about itself, and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, shown, write_text
from nbutils.core.secrets import redact

SCHEMA = 1
RECORD = "stage.json"
RUN_RECORD = "run.json"


class NewerRecordError(UserError):
    """A record that a newer smallchat wrote."""


def read_record(path: Path) -> dict[str, Any] | None:
    """A `stage.json` or `run.json`; None where there is none. UserError for a damaged or unreadable one.

    NewerRecordError for one of a newer schema.
    """
    try:
        record = read_json(path)
        newer = record.get("schema", 0) > SCHEMA
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError):
        raise UserError(f"{shown(path)} is damaged (no JSON object): delete it to make its stage run again.") from None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}): choose another run_dir.") from None
    if newer:
        raise NewerRecordError(
            f"{shown(path)} was written by a newer smallchat (schema {record['schema']}, this one reads {SCHEMA}); "
            "update smallchat."
        )
    return dict(record)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a `stage.json` or `run.json` atomically; a secret that found its way into it is blotted out."""
    write_text(path, redact(json.dumps(record, indent=2, ensure_ascii=False, default=str)) + "\n")


def outputs_of(folder: Path, earlier: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Every file that a stage has made, with sha256, bytes and time of change.

    A file that `earlier` lists as it is now is not hashed again.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and file.name != RECORD and ".partial" not in name:
            found[name] = _entry(file, (earlier or {}).get(name))
    return found


def current_hash(folder: Path, name: str, entry: dict[str, Any]) -> str:
    """The hash of a recorded file as it is on disk now; `missing` where it is gone."""
    file = folder / name
    return str(_entry(file, entry)["sha256"]) if file.is_file() else "missing"


def _entry(file: Path, earlier: dict[str, Any] | None) -> dict[str, Any]:
    stat = file.stat()
    facts = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if earlier and all(earlier.get(name) == value for name, value in facts.items()):
        return earlier
    return {"sha256": sha256_of_file(file), **facts}
