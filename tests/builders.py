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


def rows_of(tokenizer, conversations: list[list[dict]]) -> list[dict]:
    """Conversations as notebook 01 writes them."""
    return [
        {"source": "made up", "index": n, "messages": c, "input_ids": e.input_ids, "supervised": e.supervised}
        for n, (c, e) in enumerate(zip(conversations, encode_batch(tokenizer, conversations), strict=True))
    ]


def save_data(run: Path, tokenizer, train: list[dict], held_out: list[dict], max_length: int, base="tiny") -> Path:
    """Writes rows, tokenizer and summary as `run/data`."""
    folder = run / "data"
    for side, rows in (("train", train), ("eval", held_out)):
        Dataset.from_list(rows).save_to_disk(folder / side)
    tokenizer.save_pretrained(folder / "tokenizer")
    found = sha256_of_json([row["messages"] for row in held_out])
    summary = {"max_length": max_length, "tokenizer": {"base_model": base}, "eval_hash": found}
    write_json(folder / "summary.json", summary)
    return folder


def data_folder(run: Path, *, train=40, evaluation=10, turns=6, pieces=509, max_length=256) -> Path:
    """Writes what training and evaluation read of `run/data`, from real conversations."""
    conversations = chitchat(train + evaluation, turns)
    tokenizer = small_tokenizer([m["content"] for c in conversations for m in c], pieces)
    rows = [row for row in rows_of(tokenizer, conversations) if len(row["input_ids"]) <= max_length]
    return save_data(run, tokenizer, rows[evaluation:], rows[:evaluation], max_length)
