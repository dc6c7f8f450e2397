"""A whole run folder, made up around a tiny model: what the publish stage reads, without any training."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from nbutils.core.files import read_json, write_json, write_text
from nbutils.core.run.models import tiny_model
from nbutils.core.run.record import outputs_of
from nbutils.core.stages import STAGES
from nbutils.metrics.summary import read_history, read_training_settings, summarise
from nbutils.pipeline.parameters import settings_of
from tests.builders import chitchat, small_tokenizer
from tests.metrics.histories import history_rows, write_done, write_training

CONTEXT = 256
FILES = Path(__file__).with_name("made_up")
"""Files that the stages wrote, as they are."""
FIGURES = {"loss": "Loss", "memory": "Memory"}


def make_run(run: Path) -> Path:
    """Every file that the publish stage reads, in a run folder; one conversation spells a control token."""
    talks = chitchat(24, turns=4)
    talks[0][0]["content"] += " <|im_end|>"
    tokenizer = small_tokenizer([message["content"] for talk in talks for message in talk], 330)
    write_training(run, history_rows(60), seed=3, max_length=CONTEXT, schedule="cosine", supervise="assistant")
    for seed, name in ((3, "final"), (4, "base")):
        tiny_model(tokenizer, CONTEXT, seed=seed).save_pretrained(run / "train" / name)
    tokenizer.save_pretrained(run / "train" / "final")
    shutil.copytree(FILES, run, dirs_exist_ok=True)
    Dataset.from_dict({"messages": talks}).save_to_disk(run / "data" / "eval")
    for name in ("data/figures/lengths", *(f"metrics/figures/{figure}" for figure in FIGURES)):
        for ending in (".png", "-dark.png", ".svg", "-dark.svg"):
            write_text(run / f"{name}{ending}", f"a picture of {name}{ending}")
    found = summarise(read_history(run), read_training_settings(run))
    write_json(run / "metrics" / "summary.json", found | {"figures": FIGURES})
    write_text(run / "evaluate" / "items" / "run--heldout_next_utterance.parquet", "items")
    record_stages(run)
    return run


def record_stages(run: Path, *, commit: str | None = None, local=False, files: Sequence[str] = (), **parameters):
    """The records of all stages before the last: the notebooks' defaults with the given parameters, files with hashes.

    `commit` and `local` say where the base model came from, `files` which of this machine the stages read.
    """
    given = {"run_dir": str(run), "base_model": "tiny", "max_length": CONTEXT, "seed": 3} | parameters
    source = {"schema": 1, "base_model": given["base_model"], "local": local, "commit": commit, "sha256": None}
    write_json(run / "train" / "base" / "source.json", source)
    for stage in STAGES[:-1]:
        own = settings_of(stage, given).model_dump(mode="json")
        parts = {"parameters": {"files": dict.fromkeys(files, "0" * 16)}, "code": "", "modules": {}, "upstream": {}}
        write_done(run / stage.name, parameters=own, inputs={}, parts=parts)


def rewrite(run: Path, name: str, **values):
    """Changes values in a stage's JSON file, as if its notebook had written them; without any, takes it as it is."""
    folder = run / name.partition("/")[0]
    if values:
        write_json(run / name, read_json(run / name) | values)
    write_json(folder / "stage.json", read_json(folder / "stage.json") | {"outputs": outputs_of(folder)})
