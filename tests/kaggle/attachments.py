"""What a session without internet has attached: a fetched folder with a base model and conversations, and wheels."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset

from nbutils.core.errors import UserError
from nbutils.core.run.models import tiny_model
from nbutils.kaggle.packages import collect_wheels
from nbutils.pipeline.fetch import Wanted, _add
from tests.builders import chitchat, small_tokenizer
from tests.conftest import missing

BASE, TALK = "someone/base", "someone/talk"
"""On the hub, if there were one."""
FETCHED, WHEELS = "someone/fetched-things", "someone/wheels"
"""The Kaggle datasets."""


def fetched_folder(folder: Path) -> Path:
    """A folder as `python -m nbutils fetch` makes it."""
    talk = chitchat(400, turns=4)
    tokenizer = small_tokenizer([turn["content"] for turns in talk for turn in turns], 600)
    model = folder / "models" / "base"
    tokenizer.save_pretrained(model)
    tiny_model(tokenizer, 128, 0).save_pretrained(model)
    data = folder / "datasets" / "talk" / "data"
    data.mkdir(parents=True)
    Dataset.from_list([{"messages": turns} for turns in talk]).to_parquet(data / "train-0.parquet")
    _add(Wanted("model", BASE, "", "base model"), "1" * 40, folder, "models/base")
    _add(Wanted("dataset", TALK, "", "conversations"), "2" * 40, folder, "datasets/talk")
    return folder


def wheel_folder(folder: Path, *names: str) -> Path:
    """Wheels of the packages in today's versions, and of what they need. Skips where there is no index."""
    try:
        collect_wheels(folder, f"{sys.version_info.major}.{sys.version_info.minor}", names)
    except UserError as error:
        missing(str(error))
    return folder
