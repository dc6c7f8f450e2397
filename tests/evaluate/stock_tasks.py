"""The stock tasks of lm-evaluation-harness on the local copies in `../shared/evaldata`."""

import json
from importlib import resources
from pathlib import Path

from nbutils.core.files import Json, write_text

DATA = {
    "hellaswag": ("validation", "hellaswag_validation.jsonl.gz"),
    "sciq": ("test", "sciq_test.jsonl"),
    "wikitext": ("test", "wikitext2_raw_test_pages.jsonl"),
}


def local(name: str, evaldata: Path) -> tuple[Path, Json]:
    """The YAML of a stock task, and what it says otherwise where it reads local data."""
    split, data = DATA[name]
    file = resources.files("lm_eval") / "tasks" / name / f"{name}.yaml"
    splits = dict.fromkeys(("training_split", "validation_split", "test_split")) | {f"{split}_split": split}
    files = {"data_files": {split: str(evaldata / data)}}
    return file, {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files, "num_fewshot": 0} | splits


def stock_tasks(evaldata: Path) -> dict:
    """Loaded tasks of lm-eval, 0-shot: their whole YAMLs, which read local data instead of the hub."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    changed = (local(name, evaldata) for name in DATA)
    configs = [load_yaml(file, resolve_func=True) | changes for file, changes in changed]
    return TaskManager(include_defaults=False).load(configs)["tasks"]


def write_stock_tasks(folder: Path, evaldata: Path) -> str:
    """The same as a folder for `task_path`."""
    for name in DATA:
        file, changes = local(name, evaldata)
        config = {"include": str(file), "task": name} | changes
        write_text(folder / f"{name}.yaml", json.dumps(config, indent=0))
    return str(folder)


def requests_of(task, limit: int) -> list:
    """The requests of a task's first `limit` items."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)
