"""The shortest proof that a set-up can learn: four short conversations, learned by heart by the real worker.

A model that cannot be brought to a loss of 0.1 on four conversations, or that does not say them again word for word and
stop, has a broken mask, template, precision or optimizer; no data set will mend that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from nbutils.core.chat_engine.generation import Reply, generate_replies
from nbutils.core.chatml import Message, encode
from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl, write_json
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import TINY, ModelRef, train_bpe
from nbutils.core.training_log import LOG
from nbutils.train.base import data_tokenizer
from nbutils.train.preflight import FINE, STOP, Finding
from nbutils.train.run import events_of
from nbutils.train.settings import TrainSettings

LONGEST = 64
"""Tokens of the longest conversation, about, and of a reply at most."""

LOSS = 0.1
"""Nats per supervised token to get below."""

STEPS, RATE = {True: 150, False: 50}, {True: 5e-3, False: 3e-4}
"""Optimizer steps and learning rate for an untrained `tiny` (True) and for a pretrained base (False)."""

PAIRS = {
    "Hi!": "Hello, who is there?",
    "What is two and two?": "Four.",
    "Name a colour.": "Blue, like the sea.",
    "Bye!": "See you soon.",
}
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in PAIRS.items()
]


def overfit(settings: TrainSettings, **changes: Any) -> Iterator[Finding]:
    """Trains on four conversations with the worker, in a temporary run, asks for their replies, and says what came out.

    Base and tokenizer are the run's own where notebook 01 has run, else those that the settings name. `changes` are
    further parameters.
    """
    try:
        loss, replies = _learn(settings, changes)
    except UserError as error:
        yield Finding(STOP, f"Learning four conversations by heart failed: {error}")
        return
    yield Finding(FINE, f"Learned by heart: {settings.base_model}.")
    pairs = [(want, reply) for want, reply in zip(PAIRS.values(), replies, strict=True)]
    wrong = [f"{reply.text!r} for {want!r}" for want, reply in pairs if reply.text != want or not reply.ended]
    text = (
        f"The loss came down to {loss:.3f} (below {LOSS} is needed), and {len(pairs) - len(wrong)} of {len(pairs)} "
        "replies came out word for word, each stopping by itself"
    )
    if loss < LOSS and not wrong:
        yield Finding(FINE, f"{text}.")
    else:
        yield Finding(STOP, f"{text}; others, for example {wrong[0]}." if wrong else f"{text}.")


def _learn(settings: TrainSettings, changes: dict[str, Any]) -> tuple[float, list[Reply]]:
    """The mean loss of the last steps, and the replies of the trained model."""
    tiny = settings.base_model == TINY
    with tempfile.TemporaryDirectory(prefix="smallchat-overfit-") as temporary:
        run = Run(Path(temporary))
        _prepare(settings, Run(settings.run_path), run)
        own = {
            "run_dir": temporary,
            "learning_rate": RATE[tiny],
            "schedule": "cosine",
            "warmup_fraction": 0.05,
            "weight_decay": 0.0,
            "max_steps": STEPS[tiny],
            "tokens_per_step": len(PAIRS) * LONGEST,
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
        for _ in events_of(TrainSettings.checked(settings.model_dump() | own | changes), run.training):
            pass
        loss = [row["loss"] for row in read_jsonl(run.training / LOG) if row["kind"] == "train"][-1]
        trained = ModelRef.parse("final", run.path)
        questions = [conversation[:1] for conversation in CONVERSATIONS]
        model = trained.load().eval()
        return loss, generate_replies(model, trained.raw_tokenizer(), questions, max_new_tokens=LONGEST)


def _prepare(settings: TrainSettings, own: Run, run: Run) -> None:
    """Makes the temporary run's data; its base is the own run's, or made by the worker."""
    if (own.rows / "tokenizer").is_dir():
        tokenizer = data_tokenizer(settings, own.rows)
        if holds_model(own.base):
            run.training.mkdir()
            run.base.symlink_to(own.base, target_is_directory=True)
    elif settings.base_model == TINY:
        tokenizer = train_bpe((text for pair in PAIRS.items() for text in pair), 400)
    else:
        tokenizer = settings.base_ref.tokenizer()
    encoded = [encode(tokenizer, conversation) for conversation in CONVERSATIONS]
    rows = Dataset.from_list([{"input_ids": e.input_ids, "supervised": e.supervised} for e in encoded])
    for side in ("train", "eval"):
        rows.save_to_disk(str(run.rows / side))
    tokenizer.save_pretrained(run.rows / "tokenizer")
    made_for = {"tokenizer": {"base_model": settings.base_model}, "max_length": settings.max_length}
    write_json(run.rows / "summary.json", made_for)
