"""Small data folders for the stages behind notebook 01, made without running it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nbutils.core.chatml import encode_batch
from nbutils.core.files import sha256_of_json, write_json
from nbutils.core.run.models import train_bpe


def chitchat(count: int, turns: int = 8) -> list[list[dict[str, str]]]:
    """The first turns of real conversations of two speakers, ending on the assistant."""
    from chitchat_dataset import Dataset as Chitchat

    def conversations():
        for raw in Chitchat().values():
            texts = ["\n".join(part["text"] for part in message) for message in raw["messages"][:turns]]
            texts = texts[: len(texts) // 2 * 2]
            if len(texts) >= 2 and all(text.strip() for text in texts):
                yield [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]

    return list(islice(conversations(), count))


def small_tokenizer(texts: list[str], pieces: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on the texts, with ChatML."""
    return train_bpe(texts, pieces)


def data_folder(
    run: Path, *, train: int = 40, evaluation: int = 10, turns: int = 6, pieces: int = 509, max_length: int = 256
) -> Path:
    """Writes `run/data` as notebook 01 does (rows, tokenizer, summary, stage record), from real conversations."""
    conversations = chitchat(train + evaluation, turns)
    tokenizer = small_tokenizer([m["content"] for c in conversations for m in c], pieces)
    folder = run / "data"
    encodings = encode_batch(tokenizer, conversations)
    rows: list[dict[str, Any]] = [
        {"source": "chitchat", "index": i, "messages": c, "input_ids": e.input_ids, "supervised": e.supervised}
        for i, (c, e) in enumerate(zip(conversations, encodings, strict=True))
        if len(e) <= max_length
    ]
    sides = {"train": rows[evaluation:], "eval": rows[:evaluation]}
    for side, picked in sides.items():
        Dataset.from_list(picked).save_to_disk(str(folder / side))
    tokenizer.save_pretrained(folder / "tokenizer")
    counts = {side: {"rows": len(p), "tokens": sum(len(r["input_ids"]) for r in p)} for side, p in sides.items()}
    write_json(
        folder / "summary.json",
        {
            "schema": 1,
            "rows": len(conversations),
            "max_length": max_length,
            "tokenizer": {"base_model": "tiny", "pieces": pieces},
            "eval_hash": sha256_of_json([r["messages"] for r in sides["eval"]]),
            **counts,
        },
    )
    return folder
