"""A small run folder as notebooks 01 and 02 leave it, tasks of one's own, and small evaluations of them."""

import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

from nbutils.core.files import Json, write_jsonl, write_text
from nbutils.core.run.models import tiny_model
from nbutils.core.stages import spec
from nbutils.evaluate.run import prepare, score_all
from nbutils.evaluate.score import Plan, Scored
from nbutils.pipeline.parameters import settings_of
from tests.builders import data_folder, rows_of
from tests.conftest import ROOT
from tests.core.test_chatml import turns
from tests.metrics.histories import write_done

NOTEBOOK = ROOT / "notebooks" / "04_evaluate.ipynb"
SMALL = {
    "max_length": 256,
    "selection_items": 30,
    "resamples": 500,
    "behaviour_prompts": 4,
    "reply_tokens": 8,
    "processes": 1,
}
"""What an evaluation of seconds changes of the notebook's parameters."""
SUMS = [{"question": f"{a} plus {a}?", "right": a % 2, "answers": ["four", "six"]} for a in range(6)]


def made_up_run(run: Path) -> Path:
    """Writes `data/`, and `train/` with two untrained tiny models: the base, and one of other weights as `final`."""
    data_folder(run, train=16, evaluation=24)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    for seed, name in enumerate(("base", "final")):
        tiny_model(tokenizer, 256, seed).save_pretrained(run / "train" / name)
        tokenizer.save_pretrained(run / "train" / name)
    for stage in ("data", "train"):
        write_done(run / stage)
    return run


def hold_out(run: Path, conversations: list[list[Json]]):
    """Puts conversations of one's own into the place of those that a run holds out, as notebook 01 writes them."""
    rows = rows_of(AutoTokenizer.from_pretrained(run / "data" / "tokenizer"), conversations)
    plain = [row | {"messages": turns(*(m["content"] for m in row["messages"]))} for row in rows]
    Dataset.from_list(plain).save_to_disk(run / "data" / "eval")


def write_task(folder: Path, name: str, rows: list[Json], **config) -> Json:
    """Writes a task of one's own with its data; a question with two answers each, unless `config` says otherwise.

    Returns the settings that ask for it, with a new cache.
    """
    write_jsonl(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
    }
    write_text(folder / f"{name}.yaml", json.dumps(task | config, indent=0))
    return {"tasks": [name], "task_path": str(folder), "cache_dir": str(folder / "cache")}


def planned(run: Path, **changes) -> Plan:
    """An evaluation that takes seconds; its cache lies beside the run."""
    given = {"run_dir": str(run), "cache_dir": str(run.parent / "cache")}
    return prepare(settings_of(spec("evaluate"), SMALL | given | changes))


def scored(plan: Plan) -> tuple[list[Scored], list[str]]:
    """The plan's answers, and what was said on the way."""
    lines = []
    return score_all(plan, say=lines.append), lines
