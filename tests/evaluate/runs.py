"""A small run folder as notebooks 01 and 02 leave it, and settings to evaluate it with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nbutils.core.chatml import encode
from nbutils.core.files import write_json
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.settings import EvaluateSettings
from tests.builders import data_folder

SMALL: dict[str, Any] = {
    "tasks": ["heldout_perplexity", "heldout_next_utterance"],
    "task_path": "",
    "limit": 0,
    "peers": [],
    "num_fewshot": 0,
    "apply_chat_template": False,
    "max_length": 256,
    "eval_precision": "fp32",
    "selection_items": 30,
    "resamples": 500,
    "behaviour_prompts": 4,
    "reply_tokens": 8,
    "context_curve": 2,
    "seed": 0,
    "split_seed": 0,
    "tokens_per_batch": 0,
    "processes": 1,
}


def made_up_run(run: Path, evaluation: int = 24) -> Path:
    """Writes `data/`, and `train/` with two untrained tiny models: the base, and one of other weights as `final`."""
    from transformers import AutoTokenizer

    data_folder(run, train=8, evaluation=evaluation, turns=6)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    for seed, name in enumerate(("base", "final")):
        tiny_model(tokenizer, 256, seed).save_pretrained(run / "train" / name)
        tokenizer.save_pretrained(run / "train" / name)
    for stage in ("data", "train"):
        record = {"schema": 1, "stage": stage, "status": "done", "key": "made up", "facts": {}, "outputs": {}}
        write_json(run / stage / "stage.json", record)
    return run


def hold_out(run: Path, conversations: list[list[dict[str, str]]]) -> None:
    """Puts conversations of one's own into the place of those that a made-up run holds out."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    shutil.rmtree(run / "data" / "eval")
    rows = [{"messages": talk, "input_ids": encode(tokenizer, talk).input_ids} for talk in conversations]
    Dataset.from_list(rows).save_to_disk(str(run / "data" / "eval"))


def settings_for(run: Path, **changes: Any) -> EvaluateSettings:
    """Settings of an evaluation that takes seconds; its cache lies beside the run."""
    values = {**SMALL, "run_dir": str(run), "cache_dir": str(run.parent / "cache"), **changes}
    return EvaluateSettings.checked(values)
