"""The tasks of an evaluation by name: the embedded ones, a person's own in `task_path`, and all of lm-eval's."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.tasks import built, config_of, load_named, own_tasks, private, stock_names
from nbutils.evaluate.tasks import EMBEDDED, yaml_of

FEWSHOT_SEED = 1234
"""lm-eval's own default: the same examples in front of the items as everybody's."""


def load_tasks(names: Sequence[str], *, task_path: str, num_fewshot: int, heldout: Path) -> dict[str, Any]:
    """Tasks of lm-eval by name, in the order given; a group or tag becomes its tasks.

    `heldout` is the folder with the embedded tasks' items; `task_path` a folder of YAMLs ('' for none). UserError
    for a name that nothing has (with the nearest ones) and for a task whose data cannot be reached.
    """
    own = own_tasks(task_path)
    for name in names:
        if name not in EMBEDDED and name not in own and name not in stock_names():
            raise UserError(_unknown(name, [*EMBEDDED, *own, *stock_names()]))
    tasks: dict[str, Any] = {}
    for name in names:
        tasks |= _embedded(name, heldout) if name in EMBEDDED and name not in own else load_named(name, own)
    for task in tasks.values():
        _set_fewshot(task, num_fewshot)
    return tasks


def _embedded(name: str, heldout: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    file = heldout / EMBEDDED[name][1]
    config = config_of(yaml_of(name)) | {"dataset_kwargs": private({"data_files": {"test": str(file)}})}
    return built(TaskManager(include_defaults=False), config, name)


def _set_fewshot(task: Any, num_fewshot: int) -> None:
    """As lm-eval's `simple_evaluate` does: a task that says 0 in its YAML stays at 0."""
    if task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"the embedded ones are {' and '.join(EMBEDDED)}."
    return f"No task is called '{name}': {hint}"
