"""A whole run folder, made up around a tiny model: what the publish stage reads, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nbutils.core.chatml import add_chatml, encode
from nbutils.core.files import write_json
from nbutils.core.history import History
from nbutils.core.models import tiny_model
from nbutils.metrics.figures import save_figures
from nbutils.metrics.summary import read_training_settings, summarise
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
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([m["content"] for c in conversations(200) for m in c], trainer)
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=bpe))


def make_run(run: Path, **parameters: Any) -> Path:
    """Every file that the publish stage reads, in a run folder."""
    tokenizer = chat_tokenizer()
    model = tiny_model(tokenizer, CONTEXT, seed=3)
    write_training(run, history_rows(60), seed=3, max_length=CONTEXT, schedule="cosine", supervise="assistant")
    model.save_pretrained(run / "train" / "final")
    tokenizer.save_pretrained(run / "train" / "final")
    _data(run, tokenizer)
    _metrics(run)
    _evaluation(run)
    talk = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "*how* are <b>you</b>?"}]
    write_json(run / "chat" / "transcript.json", {"schema": 1, "messages": talk})
    given = {"run_dir": str(run), "base_model": "tiny", "max_length": CONTEXT, "seed": 3} | parameters
    machine = {"platform": "Linux", "processor": "x86_64", "cores": 2, "memory_gib": 16.0}
    versions = {"python": "3.11", "smallchat": "0.1.0", "torch": "2.13.0"}
    write_json(run / "run.json", {"schema": 1, "name": run.name, "parameters": given, "versions": versions,
                                  "git_commit": "0" * 40, "hardware": machine})  # fmt: skip
    for stage in ("data", "train", "metrics", "evaluate", "chat"):
        write_done(run / stage)
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
    history = History.read(run / "train" / "metrics.jsonl")
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
        "models": [{"name": "run", "parameters": 1}, {"name": "base", "parameters": 1}],
        "scores": [score("run", task, metric, 210.5, False), score("base", task, metric, 9e4, False)],
        "paired": [{"model": "run", "reference": "base", "task": task, "metric": metric} | change],
    }
    results["behaviour"] = {
        "models": {"run": {"greedy": BEHAVIOUR, "sampled": BEHAVIOUR | {"ended": 0.97, "leaks": 0}}}
    }
    results["scores"].append(score("run", "heldout_next_utterance", "acc", 0.31, True))
    flagged = score("run", task, metric, 190.0, False) | {"part": "flagged"}
    results["scores"].append(flagged)
    write_json(run / "evaluate" / "results.json", results)
    sample = {"model": "run", "turn": 0, "prompt": "Hi!", "reply": "# Not a heading\n<script>alert(1)</script>"}
    rows = [sample | {"mode": mode, "ended": mode == "alone", "tokens": 9} for mode in ("alone", "conversation")]
    rows.insert(1, rows[0] | {"model": "base", "reply": "of another model"})
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (run / "evaluate" / "comparison.md").write_text("made up\n", encoding="utf-8")
