"""A whole run folder, made up around a tiny model: what the publish stage reads, without any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from transformers import PreTrainedTokenizerFast

from nbutils.core.chatml import encode
from nbutils.core.files import read_json, write_json
from nbutils.core.notebooks import notebook_path
from nbutils.core.notebooks import parameters as parameters_of
from nbutils.core.run.models import tiny_model
from nbutils.core.run.record import outputs_of
from nbutils.core.stages import STAGES
from nbutils.evaluate.compare import Metric, interval, sums_of, to_parquet
from nbutils.metrics.figures import save_figures
from nbutils.metrics.summary import read_history, read_training_settings, summarise
from tests.builders import small_tokenizer
from tests.metrics.histories import history_rows, write_done, write_training

CONTEXT = 256
BEHAVIOUR = {
    "replies": 50, "ended": 0.98, "median_tokens": 11.0, "repeats": 0.4, "distinct_1": 0.1, "distinct_2": 0.2,
    "leaks": 0.02, "echoes": 0.0, "empty": 0.0,
}  # fmt: skip
TALK = "hello there how are you today i am fine thanks and what did see on the weekend a cat of course it was nice"
WORDS = TALK.split()


def conversations(count: int, turns: int = 2) -> list[list[dict[str, str]]]:
    """Made-up talk; the first conversation spells a control token."""
    words = np.random.default_rng(0)

    def say() -> str:
        return " ".join(words.choice(WORDS, size=int(words.integers(2, 9))))

    made = [
        [{"role": role, "content": say()} for _ in range(turns) for role in ("user", "assistant")] for _ in range(count)
    ]
    made[0][0]["content"] += " <|im_end|>"
    return made


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred pieces, with ChatML."""
    return small_tokenizer([m["content"] for c in conversations(200) for m in c], 330)


def make_run(run: Path, **parameters: Any) -> Path:
    """Every file that the publish stage reads, in a run folder."""
    tokenizer = chat_tokenizer()
    write_training(run, history_rows(60), seed=3, max_length=CONTEXT, schedule="cosine", supervise="assistant")
    for seed, name in ((3, "final"), (4, "base")):
        tiny_model(tokenizer, CONTEXT, seed=seed).save_pretrained(run / "train" / name)
    tokenizer.save_pretrained(run / "train" / "final")
    _data(run, tokenizer)
    _metrics(run)
    _evaluation(run)
    talk = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "*how* are <b>you</b>?"}]
    settings = {"context_extension": "dynamic"}
    write_json(run / "chat" / "transcript.json", {"schema": 1, "settings": settings, "messages": talk})
    record_stages(run, **parameters)
    return run


def record_stages(
    run: Path, *, commit: str | None = None, local: bool = False, files: Sequence[str] = (), **parameters: Any
) -> None:
    """The records of all stages before the last: the notebooks' defaults with the given parameters, files with hashes.

    `commit` and `local` say where the base model came from, `files` which of this machine the stages read.
    """
    given = {"run_dir": str(run), "base_model": "tiny", "max_length": CONTEXT, "seed": 3} | parameters
    source = {"schema": 1, "base_model": given["base_model"], "local": local, "commit": commit, "sha256": None}
    write_json(run / "train" / "base" / "source.json", source)
    everything: dict[str, Any] = {}
    for stage in STAGES[:-1]:
        values = {name: parameter.default for name, parameter in parameters_of(notebook_path(stage)).items()}
        own = stage.settings_class().checked(values | {name: given[name] for name in given if name in values})
        everything |= own.model_dump(mode="json")
        parts = {"parameters": {"files": dict.fromkeys(files, "0" * 16)}}
        write_done(run / stage.name, parameters=own.model_dump(mode="json"), inputs={}, parts=parts)
    machine = {"platform": "Linux", "processor": "x86_64", "cores": 2, "memory_gib": 16.0}
    write_json(run / "run.json", {"schema": 1, "name": run.name, "parameters": everything, "versions": {},
                                  "git_commit": "f" * 40, "hardware": machine})  # fmt: skip


def rewrite(run: Path, name: str, value: Any = None) -> None:
    """Gives a stage's file another value, as if its notebook had written that; None takes the file as it is now."""
    stage = name.partition("/")[0]
    if value is not None:
        write_json(run / name, value)
    record = read_json(run / stage / "stage.json")
    write_json(run / stage / "stage.json", record | {"outputs": outputs_of(run / stage)})


def as_gpt2(run: Path) -> Path:
    """Makes the trained model of a made-up run a GPT-2, whose config has names of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    tokenizer = chat_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2,
                        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
                        pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(run / "train" / "final")
    record_stages(run, base_model="gpt2", commit="c" * 40)
    return run


def score(model: str, task: str, metric: str, value: float, higher: bool) -> dict[str, Any]:
    return {"model": model, "task": task, "metric": metric, "value": value, "stderr": value * 0.01, "n": 206,
            "low": value * 0.98, "high": value * 1.02, "higher_is_better": higher}  # fmt: skip


def _data(run: Path, tokenizer: Any) -> None:
    from datasets import Dataset

    talks = conversations(24)
    encoded = [encode(tokenizer, talk) for talk in talks]
    columns = {"source": ["chitchat"] * len(talks), "index": list(range(len(talks))), "messages": talks,
               "input_ids": [e.input_ids for e in encoded], "supervised": [e.supervised for e in encoded]}  # fmt: skip
    Dataset.from_dict(columns).save_to_disk(str(run / "data" / "eval"))
    (run / "data" / "figures").mkdir()
    for ending, colour in ((".png", "white"), ("-dark.png", "black")):
        Image.new("RGB", (16, 9), colour).save(run / "data" / "figures" / f"lengths{ending}")
    side = {"rows": 100, "tokens": 10000, "supervised_tokens": 4000}
    write_json(run / "data" / "summary.json", {
        "schema": 1, "rows": 200, "trimmed_rows": 7, "max_length": CONTEXT, "eval_hash": "a" * 64,
        "fates": {"kept": {"rows": 120, "tokens": 12000}, "too_long": {"rows": 80, "tokens": 90000},
                  "duplicate": {"rows": 0, "tokens": 0}},
        "train": side, "eval": side | {"rows": 20},
        "datasets": [{"path": "chitchat", "name": "", "split": "train", "fraction": 1.0, "shape": "messages",
                      "rows": 200, "revision": "", "fingerprint": "d" * 64}],
        "tokenizer": {"base_model": "tiny", "pieces": len(tokenizer)},
    })  # fmt: skip


def _metrics(run: Path) -> None:
    history = read_history(run)
    captions = save_figures(history, run / "metrics" / "figures")
    summary = summarise(history, read_training_settings(run))
    write_json(run / "metrics" / "summary.json", summary | {"figures": captions})


def _evaluation(run: Path) -> None:
    task, metric = "heldout_perplexity", "word_perplexity"
    change = {"difference": -8.9e4, "low": -9.1e4, "high": -8.7e4, "word": "better"}
    results = {
        "schema": 1,
        "tasks": [task],
        "settings": {},
        "models": [{"name": "run", "parameters": 1_234_567}, {"name": "base", "parameters": 1}],
        "scores": [score("run", task, metric, 210.5, False), score("base", task, metric, 9e4, False)],
        "paired": [{"model": "run", "reference": "base", "task": task, "metric": metric} | change],
    }
    results["behaviour"] = {
        "max_new_tokens": 60,
        "models": {"run": {"greedy": BEHAVIOUR, "sampled": BEHAVIOUR | {"ended": 0.97, "leaks": 0}}},
    }
    results["scores"].append(_scored_items(run / "evaluate" / "items"))
    flagged = score("run", task, metric, 190.0, False) | {"part": "flagged"}
    results["scores"].append(flagged)
    write_json(run / "evaluate" / "results.json", results)
    sample = {"model": "run", "turn": 0, "prompt": "Hi!", "reply": "# Not a heading\n<script>alert(1)</script>"}
    rows = [sample | {"mode": mode, "ended": mode == "alone", "tokens": 9} for mode in ("alone", "conversation")]
    rows.insert(1, rows[0] | {"model": "base", "reply": "of another model"})
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (run / "evaluate" / "comparison.md").write_text("made up\n", encoding="utf-8")


def _scored_items(folder: Path) -> dict[str, Any]:
    """Writes 200 scored items of 50 conversations, 62 of them right, and returns the score as notebook 04 makes it."""
    folder.mkdir(parents=True)
    right = np.random.default_rng(1).permutation([True] * 62 + [False] * 138)
    rows = [{"doc_id": i, "filter": "none", "group": i // 4, "acc": float(r), "acc_weight": 1.0}
            for i, r in enumerate(right)]  # fmt: skip
    file = folder / "run--heldout_next_utterance.parquet"
    file.write_bytes(to_parquet(rows))
    metric = Metric("acc", "mean", higher_is_better=True)
    found = asdict(interval(sums_of(pd.read_parquet(file), metric), "mean", 2000, seed=0))
    return {
        "model": "run",
        "task": "heldout_next_utterance",
        "metric": "acc",
        "n": 200,
        "higher_is_better": True,
    } | found
