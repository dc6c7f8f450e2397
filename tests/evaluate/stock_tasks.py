"""The stock tasks of lm-evaluation-harness on the local copies in `../shared/evaldata`."""

from importlib import resources
from pathlib import Path

DATA = {
    "hellaswag": ("validation", "hellaswag_validation.jsonl.gz"),
    "sciq": ("test", "sciq_test.jsonl"),
    "wikitext": ("test", "wikitext2_raw_test_pages.jsonl"),
}


def stock_tasks(evaldata: Path) -> dict:
    """Loaded tasks of lm-eval, 0-shot: their whole YAMLs, which read local data instead of the hub."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    configs = []
    for name, (split, data) in DATA.items():
        file = resources.files("lm_eval") / "tasks" / name / f"{name}.yaml"
        local = {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(evaldata / data)}},
            f"{split}_split": split,
            "num_fewshot": 0,
        }
        others = dict.fromkeys(("training_split", "validation_split", "test_split"))
        configs.append(load_yaml(file, resolve_func=True) | others | local)
    return TaskManager(include_defaults=False).load(configs)["tasks"]


def requests_of(task, limit: int) -> list:
    """The requests of a task's first `limit` items."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)
