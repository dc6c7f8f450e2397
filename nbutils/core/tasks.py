"""Evaluation tasks by name, from a folder of the user's YAMLs or from what lm-eval brings; and their items."""

from __future__ import annotations

import glob
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import Json, project_root, resolve, shown
from nbutils.core.network import hub_answers
from nbutils.core.settings import nearest
from nbutils.core.text import first_line

LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
_NAME = re.compile(r"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([\w\-.:/]+)", re.MULTILINE)
_TAG = re.compile(r"^[\"']?tag[\"']?:", re.MULTILINE)

_temporary: list[tempfile.TemporaryDirectory[str]] = []
"""Where `datasets` converts local files: folders that go when this process goes, not a cache that grows."""


def own_tasks(task_path: str) -> dict[str, Path]:
    """Task name → YAML, of all below `task_path`; nothing where it is ''. UserError where the folder is missing."""
    if not task_path:
        return {}
    folder = resolve(task_path)
    if not folder.is_dir():
        raise UserError(
            f"The folder {task_path} that task_path names does not exist; name a folder of task YAMLs, or ''."
        )
    return {match[2]: path for path, _, match in _named_below(folder) if match[1] == "task"}


@lru_cache(maxsize=1)
def stock_tasks() -> dict[str, Path | list[str]]:
    """Everything that lm-eval brings, by name: the YAML of a task or a group, or the names of a tag's tasks.

    Read with a regular expression: lm-eval's own index of its 14,000 names takes 15 s.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    named: dict[str, Path | list[str]] = {}
    tagged: dict[str, list[str]] = {}
    for path, text, match in _named_below(Path(str(resources.files("lm_eval"))) / "tasks"):
        named.setdefault(match[2], path)
        if _TAG.search(text):
            tags = load_yaml(path, resolve_func=False, recursive=False).get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                tagged.setdefault(tag, []).append(match[2])
    return tagged | named


def _named_below(folder: Path) -> Iterator[tuple[Path, str, re.Match[str]]]:
    """Every YAML that names a task or group: its text, and where it does."""
    for path in sorted(folder.glob("**/*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if match := _NAME.search(text):
            yield path, text, match


def check_known(names: Sequence[str], own: Mapping[str, Path]) -> None:
    """UserError for a name that is neither one of `own` nor anything that lm-eval brings."""
    for name in names:
        if name not in own and name not in stock_tasks():
            raise UserError(
                f"No task is called '{name}' in task_path or lm-eval.{nearest(name, [*own, *stock_tasks()])}"
            )


def load_tasks(names: Sequence[str], own: Mapping[str, Path], data: Path | None = None) -> Json:
    """Tasks of lm-eval by name, in the order given; a group or tag becomes its tasks.

    `own` are YAMLs by name that win over lm-eval's. Their local data files are looked for beside the YAML, then in
    `data`, then in the project's root. UserError for a name that nothing has (with the nearest ones), before anything
    is loaded, and for a task whose data cannot be reached.
    """
    check_known(names, own)
    tasks: Json = {}
    for name in names:
        found = own.get(name) or stock_tasks()[name]
        members, config = _members_or_config(found)
        if not members and isinstance(found, Path):
            folders = [found.parent, data or project_root(), project_root()]
            tasks |= _built(_with_local_data(config, folders), name)
        elif any(local_copy("dataset", dataset) for dataset in dataset_of_tasks(name, own)):
            tasks |= load_tasks(members, own)
        else:
            tasks |= _built(name, name)
    return tasks


def _with_local_data(config: Json, folders: Sequence[Path]) -> Json:
    """A task's configuration with the fetched copy of its data set, or with local files that are in the folders."""
    from datasets.utils.py_utils import map_nested

    path, options = str(config.get("dataset_path", "")), dict(config.get("dataset_kwargs") or {})
    if path not in LOCAL_FORMATS:
        copy = local_copy("dataset", path)
        return config | ({"dataset_path": str(copy)} if copy else {})

    def absolute(file: str) -> str:
        """A relative path in the first folder that has it, else in the last one, as `datasets` takes it: a pattern."""
        if "://" in file:
            return file
        found = next((folder / file for folder in folders if (folder / file).exists()), None)
        if not found and "*" not in file:
            raise UserError(
                f"The file {file} that the task '{config['task']}' reads is not beside its YAML in {shown(folders[0])}."
            )
        return glob.escape(str(found)) if found else f"{glob.escape(str(folders[-1]))}/{file}"

    if "data_files" in options:
        options["data_files"] = map_nested(absolute, options["data_files"])
    _temporary.append(tempfile.TemporaryDirectory(prefix="smallchat-tasks-"))
    return config | {"dataset_kwargs": options | {"cache_dir": _temporary[-1].name}}


def _members_or_config(found: Path | list[str]) -> tuple[list[str], Json]:
    """The tasks of a group or tag, or a task's whole configuration: of less than that lm-eval loads a torso."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if isinstance(found, list):
        return found, {}
    config = load_yaml(found, resolve_func=True)
    entries = config["task"] if isinstance(config.get("task"), list) else []
    names = (entry if isinstance(entry, str) else entry.get("task") for entry in entries)
    return [name for name in names if isinstance(name, str)], config


def _built(spec: str | Json, name: str) -> Json:
    """Loads a task and its data, with errors in a sentence."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if isinstance(spec, str):  # a stock task, whose data is on the hub
        hub_answers()
    try:
        return TaskManager(include_defaults=isinstance(spec, str)).load([spec])["tasks"]
    except OSError as error:  # the hub's own errors are such
        raise UserError(
            f"The data of the task '{name}' cannot be read ({first_line(error)}): connect to the network, run `python "
            "-m nbutils fetch` where there is one, or put a YAML of that name with local data_files into the folder "
            "task_path."
        ) from error


def item_texts(task: Any) -> Iterator[tuple[int, list[str]]]:
    """Each evaluated item of a task: its number, and its question together with each of its answers."""
    answers_of = task.doc_to_target if task.get_config("doc_to_choice") is None else task.doc_to_choice
    for number, doc in enumerate(task.eval_docs):
        question, answers = task.doc_to_text(doc), answers_of(doc)
        answers = answers if isinstance(answers, list) else [answers]
        questions = answers if isinstance(question, int) else [f"{question} {answer}" for answer in answers]
        yield number, [str(text) for text in questions]


def item_label(task: str, number: int) -> str:
    """How the ledger of the data stage names an item: `hellaswag item 17`."""
    return f"{task} item {number}"


def dataset_of_tasks(name: str, own: Mapping[str, Path]) -> list[str]:
    """The hub datasets that the task of that name reads, or those of a group or tag; none for local data.

    A name that neither the user's folder nor lm-eval has is none of ours to judge (the embedded tasks are such).
    """
    members, config = _members_or_config(own.get(name) or stock_tasks().get(name, []))
    datasets = {dataset for member in members for dataset in dataset_of_tasks(member, own)}
    path = config.get("dataset_path")
    return sorted(datasets | ({str(path)} if path and path not in LOCAL_FORMATS else set()))
