"""Evaluation tasks by name, from a folder of the user's YAMLs or from what lm-eval brings; and their items."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import project_root, resolve, shown
from nbutils.core.network import hub_answers

LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
_NAME = re.compile(r"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([\w\-.:/]+)", re.MULTILINE)
_TAG = re.compile(r"^[\"']?tag[\"']?:", re.MULTILINE)

_temporary: list[tempfile.TemporaryDirectory[str]] = []


class Stock(NamedTuple):
    """What lm-eval brings under a name: a `task`, a `group` or a `tag`, and its YAML, or those of the tag's tasks."""

    kind: str
    yamls: list[Path]


def own_tasks(task_path: str) -> dict[str, Path]:
    """Task name → YAML, of all below `task_path`; nothing where it is ''. UserError where the folder is missing."""
    if not task_path:
        return {}
    folder = resolve(task_path)
    if not folder.is_dir():
        raise UserError(
            f"The folder {task_path} that task_path names does not exist; name a folder of task YAMLs, or ''."
        )
    return {name: found.yamls[0] for name, found in _named_below(folder).items() if found.kind == "task"}


@lru_cache(maxsize=1)
def stock_tasks() -> dict[str, Stock]:
    """Everything that lm-eval brings, by name.

    Read with a regular expression: lm-eval's own index of its 14,000 names takes 15 s.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(str(resources.files("lm_eval"))) / "tasks"
    tagged: dict[str, Stock] = {}
    for path in folder.glob("**/*.yaml"):
        if _TAG.search(path.read_text(encoding="utf-8", errors="replace")):
            tags = load_yaml(path, resolve_func=False, recursive=False).get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                tagged.setdefault(tag, Stock("tag", [])).yamls.append(path)
    return tagged | _named_below(folder)


def _named_below(folder: Path) -> dict[str, Stock]:
    found: dict[str, Stock] = {}
    for path in sorted(folder.glob("**/*.yaml")):
        match = _NAME.search(path.read_text(encoding="utf-8", errors="replace"))
        if match:
            found.setdefault(match[2], Stock(match[1], [path]))
    return found


def config_of(path: Path) -> dict[str, Any]:
    """The whole configuration in a task's YAML: an override needs all of it, or lm-eval loads a torso."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = load_yaml(path, resolve_func=True)
    return config


def load_tasks(names: Sequence[str], own: Mapping[str, Path], data: Path | None = None) -> dict[str, Any]:
    """Tasks of lm-eval by name, in the order given; a group or tag becomes its tasks.

    `own` are YAMLs by name that win over lm-eval's. Their local data files are looked for beside the YAML, then in
    `data`, then in the project's root. UserError for a name that nothing has (with the nearest ones), before anything
    is loaded, and for a task whose data cannot be reached.
    """
    for name in names:
        if name not in own and name not in stock_tasks():
            near = get_close_matches(name, [*own, *stock_tasks()], n=3, cutoff=0.6)
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"lm-eval has none{', nor is it ' + ' or '.join(own) if own else ''}."
            )
            raise UserError(f"No task is called '{name}': {hint}")
    tasks: dict[str, Any] = {}
    for name in names:
        tasks |= _load_own(name, own[name], data) if name in own else _load_stock(name, own)
    return tasks


def _load_own(name: str, path: Path, data: Path | None) -> dict[str, Any]:
    config = config_of(path)
    if config.get("dataset_path") in LOCAL_FORMATS:
        folders = [path.parent, *([data] if data else []), project_root()]
        options = dict(config.get("dataset_kwargs") or {})
        options |= {key: _absolute(files, folders) for key, files in options.items() if key == "data_files"}
        # `datasets` converts local files in a folder that goes when this process goes, not in a cache that grows.
        _temporary.append(tempfile.TemporaryDirectory(prefix="smallchat-tasks-"))
        config["dataset_kwargs"] = options | {"cache_dir": _temporary[-1].name}
    return _built(config, name)


def _load_stock(name: str, own: Mapping[str, Path]) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    kind, yamls = stock_tasks()[name]
    if kind == "task":
        config = config_of(yamls[0])
        copy = local_copy("dataset", str(config.get("dataset_path", "")))
        if copy is not None:
            return _built(config | {"dataset_path": str(copy)}, name)
        return _built(name, name, TaskManager(include_defaults=False, include_path=str(yamls[0].parent)))
    if any(local_copy("dataset", dataset) for dataset in dataset_of_tasks(name, own)):
        members = [str(member) for member in config_of(yamls[0])["task"]] if kind == "group" else _tasks_in(set(yamls))
        return load_tasks(members, own)
    return _built(name, name, TaskManager())


def _built(spec: str | dict[str, Any], name: str, manager: Any = None) -> dict[str, Any]:
    """Loads a task and its data, with errors in a sentence."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if isinstance(spec, str):  # a stock task, whose data is on the hub
        hub_answers()
    try:
        tasks: dict[str, Any] = (manager or TaskManager(include_defaults=False)).load([spec])["tasks"]
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


def item_label(task: str, number: int) -> str:
    """How the ledger of the data stage names an item: `hellaswag item 17`."""
    return f"{task} item {number}"


def labelled_item(label: str) -> tuple[str, int]:
    """The task and the number that `item_label` was given."""
    task, _, number = label.rpartition(" item ")
    return task, int(number)


def _absolute(files: Any, folders: Sequence[Path]) -> Any:
    """`data_files` with each relative path in the first of the folders that has it, else in the last."""
    if isinstance(files, dict):
        return {split: _absolute(file, folders) for split, file in files.items()}
    if isinstance(files, list):
        return [_absolute(file, folders) for file in files]
    if "://" in files:
        return files
    path = next((folder / files for folder in folders if (folder / files).exists()), folders[-1] / files)
    if not path.exists() and "*" not in files:
        raise UserError(f"The file {files} that the task in {shown(folders[0])} reads does not exist beside its YAML.")
    return str(path)


def dataset_of_tasks(name: str, own: Mapping[str, Path]) -> list[str]:
    """The hub datasets that the task of that name reads, or those of a group or tag; none for local data.

    A name that neither the user's folder nor lm-eval has is none of ours to judge (the embedded tasks are such).
    """
    yamls = [own[name]] if name in own else stock_tasks()[name].yamls if name in stock_tasks() else []
    found: set[str] = set()
    for config in map(config_of, yamls):
        members, path = config.get("task"), config.get("dataset_path")
        if isinstance(members, list):  # a group
            names = (member if isinstance(member, str) else member.get("task", "") for member in members)
            found.update(*(dataset_of_tasks(member, own) for member in names if isinstance(member, str)))
        elif path and path not in LOCAL_FORMATS:
            found.add(str(path))
    return sorted(found)


def _tasks_in(yamls: set[Path]) -> list[str]:
    return [name for name, (kind, paths) in stock_tasks().items() if kind == "task" and paths[0] in yamls]
