"""The stock tasks of lm-evaluation-harness on the local copies in `../shared/evaldata`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

DATA = {
    "hellaswag": ("validation", "hellaswag_validation.jsonl.gz"),
    "sciq": ("test", "sciq_test.jsonl"),
    "wikitext": ("test", "wikitext2_raw_test_pages.jsonl"),
}


def stock_tasks(names: list[str], evaldata: Path) -> dict[str, Any]:
    """Loaded tasks of lm-eval, 0-shot: their whole YAMLs, which read local data instead of the hub."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    configs = []
    for name in names:
        split, data = DATA[name]
        file = Path(str(resources.files("lm_eval"))) / "tasks" / name / f"{name}.yaml"
        config = load_yaml(file, resolve_func=True) | {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(evaldata / data)}},
            "num_fewshot": 0,
        }
        configs.append(
            {key: value for key, value in config.items() if not key.endswith("_split") or key == f"{split}_split"}
        )
    return TaskManager(include_defaults=False).load(configs)["tasks"]


def requests_of(task: Any, limit: int) -> list[Any]:
    """The requests of a task's first `limit` items."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)
