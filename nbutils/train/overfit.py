"""The shortest proof that a set-up can learn: four short conversations, learned by heart by the real worker.

A model that cannot be brought to a loss of 0.1 on four conversations, or that does not say them again word for word and
stop, has a broken mask, template, precision or optimizer; no data set will mend that.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nbutils.core.chat_engine.generation import generate_replies
from nbutils.core.chatml import Message, encode
from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl, write_json
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import TINY, ModelRef, train_bpe
from nbutils.train.base import data_tokenizer, make_base
from nbutils.train.run import events_of
from nbutils.train.settings import TrainSettings

LONGEST = 64
"""Tokens of the longest conversation, about, and of a reply at most."""

LOSS = 0.1
"""Nats per supervised token to get below."""

STEPS, RATE = {True: 150, False: 50}, {True: 5e-3, False: 3e-4}
"""Optimizer steps and learning rate for an untrained `tiny` (True) and for a pretrained base (False)."""

PAIRS = (
    ("Hi!", "Hello, who is there?"),
    ("What is two and two?", "Four."),
    ("Name a colour.", "Blue, like the sea."),
    ("Bye!", "See you soon."),
)


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

    Base and tokenizer are the run's own where notebook 01 has run, else those that the settings name, or where these
    cannot be loaded `tiny`'s. `changes` are further parameters. UserError where the worker fails.
    """
    with tempfile.TemporaryDirectory(prefix="smallchat-overfit-") as temporary:
        run = Path(temporary)
        subject, tiny = _prepare(settings, run)
        own: dict[str, Any] = {
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
        short = TrainSettings.checked(settings.model_dump() | own | changes)
        for _ in events_of(short, Run(run).training):
            pass
        loss = [row["loss"] for row in read_jsonl(Run(run).training / "metrics.jsonl") if row["kind"] == "train"][-1]
        trained = ModelRef.parse("final", run)
        model, tokenizer = trained.load().eval(), trained.raw_tokenizer()
        replies = generate_replies(
            model, tokenizer, [_turns(question) for question, _ in PAIRS], max_new_tokens=LONGEST
        )
        wanted = [answer for _, answer in PAIRS]
        return Overfitted(subject, loss, wanted, [r.text for r in replies], [r.ended for r in replies])


def _prepare(settings: TrainSettings, run: Path) -> tuple[str, bool]:
    """Makes data and base of the temporary run; what learns, in words, and whether that is `tiny`."""
    data, base, ours = Run(settings.run_path).rows, Run(settings.run_path).base, Run(run).base
    subject, tiny = settings.base_model, settings.base_model == TINY
    if (data / "tokenizer").is_dir():
        tokenizer = data_tokenizer(settings, data)
    else:
        try:
            named = ModelRef.parse(settings.base_model, revision=settings.base_revision)
            tokenizer = _tiny_tokenizer() if tiny else named.tokenizer()
        except UserError as error:
            tokenizer, tiny, subject = _tiny_tokenizer(), True, f"{TINY}, since {error}"
    if holds_model(base) and (data / "tokenizer").is_dir():
        ours.parent.mkdir()
        ours.symlink_to(base, target_is_directory=True)
    else:
        make_base(settings.model_copy(update={"base_model": TINY}) if tiny else settings, tokenizer).save_pretrained(
            ours
        )
        tokenizer.save_pretrained(ours)
    encoded = [encode(tokenizer, _turns(*pair)) for pair in PAIRS]
    rows = Dataset.from_list([{"input_ids": e.input_ids, "supervised": e.supervised} for e in encoded])
    for side in ("train", "eval"):
        rows.save_to_disk(str(Run(run).rows / side))
    write_json(Run(run).rows / "summary.json", {"schema": 1})
    return subject, tiny


def _turns(question: str, *answer: str) -> list[Message]:
    turns: list[Message] = [{"role": "user", "content": question}]
    return [*turns, *({"role": "assistant", "content": text} for text in answer)]


def _tiny_tokenizer() -> PreTrainedTokenizerBase:
    return train_bpe((text for pair in PAIRS for text in pair), 400)
