"""Small data folders for the stages behind notebook 01, made without running it."""

from itertools import islice
from pathlib import Path

from datasets import Dataset

from nbutils.core.chatml import encode_batch
from nbutils.core.files import sha256_of_json, write_json
from nbutils.core.run.models import train_bpe
from nbutils.data.fates import as_messages, joined
from nbutils.data.sources import chitchat_conversations


def chitchat(count: int, turns=8) -> list[list[dict[str, str]]]:
    """The first turns of real conversations of two speakers, ending on the assistant."""
    talks = (as_messages(joined(talk)) for talk in chitchat_conversations())
    paired = (talk[: min(turns, len(talk)) // 2 * 2] for talk in talks)
    return list(islice((talk for talk in paired if talk and all(m["content"] for m in talk)), count))


small_tokenizer = train_bpe
"""`small_tokenizer(texts, pieces)`: a byte-level BPE tokenizer trained on the texts, with ChatML."""


def data_folder(run: Path, *, train=40, evaluation=10, turns=6, pieces=509, max_length=256) -> Path:
    """Writes what training and evaluation read of `run/data` (rows, tokenizer, summary), from real conversations."""
    conversations = chitchat(train + evaluation, turns)
    tokenizer = small_tokenizer([m["content"] for c in conversations for m in c], pieces)
    folder = run / "data"
    rows = [
        {"messages": c, "input_ids": e.input_ids, "supervised": e.supervised}
        for c, e in zip(conversations, encode_batch(tokenizer, conversations), strict=True)
        if len(e) <= max_length
    ]
    for side, picked in (("train", rows[evaluation:]), ("eval", rows[:evaluation])):
        Dataset.from_list(picked).save_to_disk(folder / side)
    tokenizer.save_pretrained(folder / "tokenizer")
    summary = {
        "max_length": max_length,
        "tokenizer": {"base_model": "tiny"},
        "eval_hash": sha256_of_json([row["messages"] for row in rows[:evaluation]]),
    }
    write_json(folder / "summary.json", summary)
    return folder
