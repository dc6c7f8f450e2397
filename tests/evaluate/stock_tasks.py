"""The stock tasks of lm-evaluation-harness on the local copies in `../shared/evaldata`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

DATA = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", "hellaswag_validation.jsonl.gz"),
    "sciq": ("sciq/sciq.yaml", "test", "sciq_test.jsonl"),
    "wikitext": ("wikitext/wikitext.yaml", "test", "wikitext2_raw_test_pages.jsonl"),
}


def stock_config(name: str, evaldata: Path) -> dict[str, Any]:
    """The whole YAML of a stock task, reading local data instead of the hub."""
    from lm_eval.tasks._yaml_loader import load_yaml

    file, split, data = DATA[name]
    config = load_yaml(Path(str(resources.files("lm_eval"))) / "tasks" / file, resolve_func=True)
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(evaldata / data)}},
    }
    for other in {"training_split", "validation_split", "test_split"} - {f"{split}_split"}:
        config.pop(other, None)
    return config


def stock_tasks(names: list[str], evaldata: Path) -> dict[str, Any]:
    """Loaded tasks of lm-eval, 0-shot."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    loaded = manager.load([stock_config(name, evaldata) for name in names])["tasks"]
    for task in loaded.values():
        task.set_config(key="num_fewshot", value=0)
    return loaded


def requests_of(task: Any, limit: int) -> list[Any]:
    """The requests of a task's first `limit` items."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)
