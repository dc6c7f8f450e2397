"""A small run folder as notebooks 01 and 02 leave it, tasks of one's own, and small evaluations of them."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

from nbutils.core.chatml import encode_batch
from nbutils.core.files import Json
from nbutils.core.notebooks import parameters
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.run import prepare, score_all
from nbutils.evaluate.score import Plan, Scored
from nbutils.evaluate.settings import EvaluateSettings
from tests.builders import data_folder
from tests.conftest import ROOT
from tests.metrics.histories import write_done

NOTEBOOK = ROOT / "notebooks" / "04_evaluate.ipynb"
SMALL: Json = {
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
    from transformers import AutoTokenizer

    data_folder(run, train=8, evaluation=24, turns=6)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    for seed, name in enumerate(("base", "final")):
        tiny_model(tokenizer, 256, seed).save_pretrained(run / "train" / name)
        tokenizer.save_pretrained(run / "train" / name)
    for stage in ("data", "train"):
        write_done(run / stage)
    return run


def talk(*texts: str) -> list[Json]:
    """A conversation that the user begins."""
    roles = cycle(("user", "assistant"))
    return [{"role": role, "content": text} for text, role in zip(texts, roles, strict=False)]


def hold_out(run: Path, conversations: list[list[Json]]) -> None:
    """Puts conversations of one's own into the place of those that a run holds out, as notebook 01 writes them."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    encoded = encode_batch(tokenizer, conversations)
    columns = {
        "messages": [talk(*(message["content"] for message in messages)) for messages in conversations],
        "input_ids": [one.input_ids for one in encoded],
        "supervised": [one.supervised for one in encoded],
    }
    Dataset.from_dict(columns).save_to_disk(str(run / "data" / "eval"))


def write_task(folder: Path, name: str, rows: list[Json], **config: Any) -> Json:
    """Writes a task of one's own with its data; a question with two answers each, unless `config` says otherwise.

    Returns the settings that ask for it, with a new cache.
    """
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    (folder / f"{name}.yaml").write_text(json.dumps(task | config, indent=0))
    return {"tasks": [name], "task_path": str(folder), "cache_dir": str(folder / "cache")}


def planned(run: Path, **changes: Any) -> Plan:
    """An evaluation that takes seconds; its cache lies beside the run."""
    values = {name: parameter.default for name, parameter in parameters(NOTEBOOK).items()}
    values |= {**SMALL, "run_dir": str(run), "cache_dir": str(run.parent / "cache"), **changes}
    return prepare(EvaluateSettings.checked(values))


def scored(plan: Plan) -> tuple[list[Scored], list[str]]:
    """The plan's answers, and what was said on the way."""
    lines: list[str] = []
    return score_all(plan, say=lines.append), lines
