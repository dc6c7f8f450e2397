"""What a session on Kaggle can reach: names on the hub, and what is attached; not what lies on this machine."""

from __future__ import annotations

from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import kaggle_root, resolve
from nbutils.core.models import TINY
from nbutils.data.chitchat import NAME as CHITCHAT
from nbutils.data.sources import FILE_ENDINGS
from nbutils.kaggle.attached import Need
from nbutils.pipeline.fetch import wanted_by
from nbutils.pipeline.parameters import Plan

BUILT_IN = ("", TINY, CHITCHAT)
FILES = (*FILE_ENDINGS, ".gguf")


def hub_needs(plan: Plan) -> list[Need]:
    """What the notebooks of a plan take from the hub."""
    settings = {planned.stage.name: planned.settings for planned in plan.stages}
    return [(item.kind, item.name, item.revision, item.purpose) for item in wanted_by(settings)]


def check_reach(plan: Plan) -> None:
    """UserError that lists what lies on this machine alone: models, conversations, tasks, runs to compare with."""
    local: dict[str, None] = {}
    for planned in plan.stages:
        values = planned.settings.model_dump(mode="json")
        paths = [values.get("base_model", ""), values.get("task_path", "")]
        paths += [*values.get("peers", []), *values.get("compare_runs", [])]
        paths += [dataset["path"] for dataset in values.get("datasets", [])]
        for path in paths:
            there = path in BUILT_IN or Path(path).is_relative_to(kaggle_root())
            if not there and (resolve(path).exists() or path.endswith(FILES)):
                local[path] = None
    if local:
        raise UserError(
            f"A session on Kaggle cannot reach what lies on this machine: {', '.join(local)}. Upload it as a Kaggle "
            "dataset, bundle with --attach OWNER/DATASET, and give the path that it has there, such as "
            f"/kaggle/input/DATASET/{Path(next(iter(local))).name}."
        )
