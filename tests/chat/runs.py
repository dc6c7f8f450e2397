"""A run folder with small untrained models, as the training stage leaves it."""

from __future__ import annotations

from pathlib import Path

from nbutils.core.files import write_json
from tests.chat.models import TOKENIZER, random_model


def made_up_run(run: Path, context: int = 1024) -> Path:
    """Writes `train/base`, `train/final` and the stage's record; models of 2 layers that read bytes."""
    for seed, name in enumerate(("base", "final")):
        model = random_model(TOKENIZER, context, seed)
        model.lm_head.bias = None  # a folder holds a plain Llama
        model.save_pretrained(run / "train" / name)
        TOKENIZER.save_pretrained(run / "train" / name)
    record = {"schema": 1, "stage": "train", "status": "done", "key": "made up", "outputs": {}}
    write_json(run / "train" / "stage.json", record)
    return run
