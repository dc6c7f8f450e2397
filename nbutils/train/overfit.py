"""The shortest proof that a set-up can learn: four short conversations, learned by heart by the real worker.

A model that cannot be brought to a loss of 0.1 on four conversations, or that does not say them again word for word and
stop, has a broken mask, template, precision or optimizer; no data set will mend that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from nbutils.core.chatml import Message, add_chatml, encode
from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl, write_json
from nbutils.core.generation import generate_replies
from nbutils.core.models import TINY, load_chat_model, load_tokenizer
from nbutils.train.base import data_tokenizer, make_base
from nbutils.train.launch import events_of
from nbutils.train.settings import TrainSettings

CONVERSATIONS, LONGEST = 4, 64
"""How many conversations are learned by heart, and their limit in tokens."""

LOSS = 0.1
"""Nats per supervised token to get below."""

STEPS, RATE = {True: 150, False: 50}, {True: 5e-3, False: 3e-4}
"""Optimizer steps and learning rate for an untrained `tiny` (True) and for a pretrained base (False)."""

BUILT_IN: tuple[tuple[str, str], ...] = (
    ("Hi!", "Hello, who is there?"),
    ("What is two and two?", "Four."),
    ("Name a colour.", "Blue, like the sea."),
    ("Bye!", "See you soon."),
)
"""Learned where the run has no data yet."""

Conversation = list[Message]


@dataclass(frozen=True)
class Overfitted:
    """What came of it: the mean loss of the last steps, the replies that were wanted and those that the model wrote."""

    subject: str
    loss: float
    wanted: list[str]
    replies: list[str]
    ended: list[bool]

    @property
    def problems(self) -> list[str]:
        """Sentences about what failed; none for a set-up that learns."""
        found = []
        if not self.loss < LOSS:
            found.append(f"The loss on four conversations only came down to {self.loss:.3f}; below {LOSS} is needed.")
        wrong = [pair for pair in zip(self.wanted, self.replies, strict=True) if pair[0] != pair[1]]
        if wrong:
            count = f"{len(wrong)} of {len(self.wanted)} replies learned by heart came out different"
            found.append(f"{count}, for example {wrong[0][1]!r} for {wrong[0][0]!r}.")
        if not all(self.ended):
            found.append(f"{self.ended.count(False)} of {len(self.ended)} replies did not stop by themselves.")
        return found


def overfit(settings: TrainSettings, **changes: Any) -> Overfitted:
    """Trains on four conversations with the worker, in a temporary run, and asks for their replies greedily.

    The base, the data and its tokenizer are the run's own where notebook 01 has run, else the base that the settings
    name, or where that cannot be loaded `tiny`, on conversations of our own. `changes` are further parameters.
    UserError where the worker fails.
    """
    with tempfile.TemporaryDirectory(prefix="smallchat-overfit-") as temporary:
        run = Path(temporary)
        subject, tiny, conversations = _prepare(settings, run)
        own: dict[str, Any] = {
            "run_dir": temporary,
            "learning_rate": RATE[tiny],
            "schedule": "cosine",
            "warmup_fraction": 0.05,
            "weight_decay": 0.0,
            "max_steps": STEPS[tiny],
            "tokens_per_step": CONVERSATIONS * LONGEST,
            "supervise": "assistant",
            "supervise_end": True,
            "eval_steps": 0,
            "sample_prompts": [],
            "log_steps": 5,
            "checkpoint_steps": 0,
            "budget_minutes": 0.0,
            "pause_after_steps": 0,
            "report_to": [],
        }
        short = TrainSettings.checked(settings.model_dump() | own | changes)
        for _ in events_of(short, run / "train"):
            pass
        loss = [row["loss"] for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == "train"][-1]
        model, tokenizer = load_chat_model(run / "train" / "final")
        turns = [(c[:i], m["content"].strip()) for c in conversations for i, m in enumerate(c) if m["role"] != "user"]
        turns = [(before, text) for before, text in turns if before and before[-1]["role"] == "user"]
        replies = generate_replies(model, tokenizer, [before for before, _ in turns], max_new_tokens=LONGEST)
        return Overfitted(
            subject, loss, [text for _, text in turns], [r.text for r in replies], [r.ended for r in replies]
        )


def _prepare(settings: TrainSettings, run: Path) -> tuple[str, bool, list[Conversation]]:
    """Makes data and base of the temporary run; what is learned in words, whether by `tiny`, and the conversations."""
    data = settings.run_path / "data"
    model: Any = None
    if (data / "tokenizer").is_dir():
        tokenizer = data_tokenizer(settings, data)
        conversations = pick(load_from_disk(str(data / "train")), tokenizer)
        subject, tiny = f"{settings.base_model} on conversations of this run", settings.base_model == TINY
    else:
        tokenizer, tiny, subject = _base_without_data(settings)
        conversations = []
    if len(conversations) < CONVERSATIONS:
        conversations = [_conversation(*pair) for pair in BUILT_IN]
        subject = subject.replace("conversations of this run", "built-in conversations: the run's are too long")
    base = settings.run_path / "train" / "base"
    if (base / "config.json").is_file() and (data / "tokenizer").is_dir():
        (run / "train").mkdir()
        (run / "train" / "base").symlink_to(base, target_is_directory=True)
    else:
        model = make_base(settings.model_copy(update={"base_model": TINY}) if tiny else settings, tokenizer)
        model.save_pretrained(run / "train" / "base")
        tokenizer.save_pretrained(run / "train" / "base")
    rows = [
        {"messages": c, "input_ids": encoded.input_ids, "supervised": encoded.supervised}
        for c, encoded in ((c, encode(tokenizer, c)) for c in conversations)
    ]
    for side in ("train", "eval"):
        Dataset.from_list(rows).save_to_disk(str(run / "data" / side))
    write_json(run / "data" / "summary.json", {"schema": 1})
    return subject, tiny, conversations


def pick(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[Conversation]:
    """Up to four conversations of at most 64 tokens: a row's first two messages, no two with the same question."""
    picked: dict[str, Conversation] = {}
    for conversation in _exchanges(rows):
        if len(picked) == CONVERSATIONS:
            break
        question = conversation[0]["content"].strip()
        if question not in picked and len(encode(tokenizer, conversation)) <= LONGEST:
            picked[question] = conversation
    return list(picked.values())


def _exchanges(rows: Dataset) -> Iterator[Conversation]:
    for messages in rows["messages"]:
        exchange: Sequence[Message] = messages[:2]
        if [message["role"] for message in exchange] == ["user", "assistant"]:
            yield list(exchange)


def _conversation(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _base_without_data(settings: TrainSettings) -> tuple[PreTrainedTokenizerBase, bool, str]:
    """Tokenizer of the base that the settings name, or of `tiny` where it cannot be had."""
    if settings.base_model == TINY:
        return _tiny_tokenizer(), True, "tiny on built-in conversations, since notebook 01 has not run yet"
    try:
        tokenizer = load_tokenizer(settings.base_model, settings.base_revision)
    except UserError as error:
        return _tiny_tokenizer(), True, f"tiny on built-in conversations ({error})"
    return tokenizer, False, f"{settings.base_model} on built-in conversations, since notebook 01 has not run yet"


def _tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of the built-in conversations, for a run whose own is not trained yet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator([text for pair in BUILT_IN for text in pair], trainer)
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False))
