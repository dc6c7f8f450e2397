"""Evaluation tasks by name, from a folder of the user's YAMLs or from what lm-eval brings; and their items."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import project_root, resolve, shown

LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
_NAME = re.compile(r"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([\w\-.:/]+)", re.MULTILINE)
_TAG = re.compile(r"^[\"']?tag[\"']?:", re.MULTILINE)

_temporary: list[tempfile.TemporaryDirectory[str]] = []


def own_tasks(task_path: str) -> dict[str, Path]:
    """Task name → YAML, of all below `task_path`; nothing where it is ''. UserError where the folder is missing."""
    if not task_path:
        return {}
    folder = resolve(task_path)
    if not folder.is_dir():
        raise UserError(
            f"The folder {task_path} that task_path names does not exist; name a folder of task YAMLs, or ''."
        )
    return {name: path for name, (kind, path) in names_below(folder).items() if kind == "task"}


@lru_cache(maxsize=1)
def stock_names() -> dict[str, tuple[str, Path | None]]:
    """Name → (task, group or tag; its YAML) of everything that lm-eval brings.

    Read with a regular expression: lm-eval's own index of its 14,000 names takes 15 s.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(str(resources.files("lm_eval"))) / "tasks"
    found: dict[str, tuple[str, Path | None]] = dict(names_below(folder))
    for path in folder.glob("**/*.yaml"):
        head = path.read_text(encoding="utf-8", errors="replace")
        if _TAG.search(head):
            config = load_yaml(path, resolve_func=False, recursive=False)
            tags = config.get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                found.setdefault(tag, ("tag", None))
    return found


def names_below(folder: Path) -> dict[str, tuple[str, Path]]:
    """Name → (task or group, YAML) of every file below `folder`."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("**/*.yaml")):
        match = _NAME.search(path.read_text(encoding="utf-8", errors="replace"))
        if match:
            found.setdefault(match[2], (match[1], path))
    return found


def config_of(path: Path) -> dict[str, Any]:
    """The whole configuration in a task's YAML: an override needs all of it, or lm-eval loads a torso."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = load_yaml(path, resolve_func=True)
    return config


def load_named(name: str, own: Mapping[str, Path]) -> dict[str, Any]:
    """The task of that name, or the tasks of a group or tag. UserError where nothing has it or its data is missing."""
    from lm_eval.tasks import TaskManager

    if name in own:
        config = config_of(own[name])
        if config.get("dataset_path") in LOCAL_FORMATS:
            config["dataset_kwargs"] = private(
                _with_absolute_files(config.get("dataset_kwargs") or {}, own[name].parent)
            )
        return built(TaskManager(include_defaults=False), config, name)
    if name not in stock_names():
        near = get_close_matches(name, [*own, *stock_names()], n=3, cutoff=0.6)
        raise UserError(f"No task is called '{name}'{': did you mean ' + ', '.join(near) + '?' if near else '.'}")
    kind, path = stock_names()[name]
    if kind != "task" or path is None:
        if any(local_copy("dataset", found) for found in dataset_of_tasks(name, own)):
            members = _tagged_names(name) if path is None else config_of(path)["task"]
            return {key: task for member in members for key, task in load_named(str(member), own).items()}
        return built(TaskManager(), name, name)
    copy = local_copy("dataset", str(config_of(path).get("dataset_path", "")))
    if copy is not None:
        return built(TaskManager(include_defaults=False), config_of(path) | {"dataset_path": str(copy)}, name)
    return built(TaskManager(include_defaults=False, include_path=str(path.parent)), name, name)


def built(manager: Any, spec: str | dict[str, Any], name: str) -> dict[str, Any]:
    """Loads a task and its data, with errors in a sentence."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        tasks: dict[str, Any] = manager.load([spec])["tasks"]
        return tasks
    except (OSError, DatasetNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        first = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"The data of the task '{name}' cannot be read ({first}): connect to the network, run `python -m nbutils "
            "fetch` where there is one, or put a YAML of that name with local data_files into the folder task_path."
        ) from error


def item_texts(task: Any) -> Iterator[tuple[int, list[str]]]:
    """Each evaluated item of a task: its number, and its question together with each of its answers."""
    multiple_choice = task.get_config("doc_to_choice") is not None
    for number, doc in enumerate(task.eval_docs):
        question = task.doc_to_text(doc)
        answers = task.doc_to_choice(doc) if multiple_choice else task.doc_to_target(doc)
        answers = answers if isinstance(answers, list) else [answers]
        questions = answers if isinstance(question, int) else [f"{question} {answer}" for answer in answers]
        yield number, [str(text) for text in questions]


def private(dataset_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Has `datasets` convert local files in a folder that goes when this process goes, not in a cache that grows."""
    _temporary.append(tempfile.TemporaryDirectory(prefix="smallchat-tasks-"))
    return {**dataset_kwargs, "cache_dir": _temporary[-1].name}


def _with_absolute_files(dataset_kwargs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative `data_files` start at the YAML's folder, or at the project root where they are not there."""

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        beside = folder / value
        path = beside if "://" not in value and beside.exists() else project_root() / value
        if "://" in value:
            return value
        if not path.exists() and "*" not in value:
            raise UserError(f"The file {value} that the task in {shown(folder)} reads does not exist beside its YAML.")
        return str(path)

    return {key: absolute(value) if key == "data_files" else value for key, value in dataset_kwargs.items()}


def dataset_of_tasks(name: str, own: Mapping[str, Path]) -> list[str]:
    """The hub datasets that the task of that name reads, or those of a group or tag; none for local data.

    A name that neither the user's folder nor lm-eval has is none of ours to judge (the embedded tasks are such).
    """
    if name in own:
        return _dataset_of(config_of(own[name]), own)
    if name not in stock_names():
        return []
    kind, path = stock_names()[name]
    if kind == "tag" or path is None:
        return sorted({found for yaml in _tagged(name) for found in _dataset_of(config_of(yaml), own)})
    return _dataset_of(config_of(path), own)


def _dataset_of(config: Mapping[str, Any], own: Mapping[str, Path]) -> list[str]:
    members = config.get("task")
    if isinstance(members, list):  # a group
        names = (member if isinstance(member, str) else member.get("task", "") for member in members)
        return sorted({found for name in names if isinstance(name, str) for found in dataset_of_tasks(name, own)})
    path = config.get("dataset_path")
    return [str(path)] if path and path not in LOCAL_FORMATS else []


def _tagged_names(tag: str) -> list[str]:
    yamls = set(_tagged(tag))
    return [name for name, (kind, path) in stock_names().items() if kind == "task" and path in yamls]


def _tagged(tag: str) -> Iterator[Path]:
    """YAMLs of lm-eval's tasks that carry a tag."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in (Path(str(resources.files("lm_eval"))) / "tasks").glob("**/*.yaml"):
        if tag in path.read_text(encoding="utf-8", errors="replace"):
            tags = load_yaml(path, resolve_func=False, recursive=False).get("tag") or []
            if tag in ([tags] if isinstance(tags, str) else tags):
                yield path
