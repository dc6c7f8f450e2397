"""The shortest proof that a set-up can learn: four short conversations, learned by heart by the real worker.

A model that cannot be brought to a loss of 0.1 on four conversations, or that does not say them again word for word and
stop, has a broken mask, template, precision or optimizer; no data set will mend that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset

from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from nbutils.core.files import Json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY, train_bpe
from nbutils.train.preflight import FINE, STOP, Finding
from nbutils.train.run import events_of
from nbutils.train.settings import TrainSettings

LONGEST = 64
"""Tokens of the longest conversation, about."""

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


def overfit(settings: TrainSettings) -> Iterator[Finding]:
    """Trains on four conversations with the worker, in a temporary run, and says what came out, its replies too."""
    try:
        with tempfile.TemporaryDirectory(prefix="smallchat-overfit-") as temporary:
            loss, samples = _learned(settings, Run(Path(temporary)))
    except UserError as error:
        yield Finding(STOP, f"Learning four conversations by heart failed: {error}")
        return
    wrong = [s for s in samples if s["reply"] != PAIRS[s["prompt"]] or not s["ended"]]
    text = (
        f"{settings.base_model} learned by heart: the loss came down to {loss:.3f} (below {LOSS} is needed), and "
        f"{len(PAIRS) - len(wrong)} of {len(PAIRS)} replies came out word for word, each stopping by itself"
    )
    if wrong:
        text += f"; others, for example {wrong[0]['reply']!r} for {PAIRS[wrong[0]['prompt']]!r}"
    yield Finding(FINE if loss < LOSS and not wrong else STOP, f"{text}.")


def _learned(settings: TrainSettings, run: Run) -> tuple[float, list[Json]]:
    """The mean loss of the last steps, and the replies of the trained model."""
    tiny = settings.base_model == TINY
    tokenizer = train_bpe(chain.from_iterable(PAIRS.items()), 400) if tiny else settings.base_ref.tokenizer()
    rows = []
    for question, answer in PAIRS.items():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        encoded = encode(tokenizer, turns)
        rows.append({"input_ids": encoded.input_ids, "supervised": encoded.supervised})
    for side in ("train", "eval"):
        Dataset.from_list(rows).save_to_disk(str(run.rows / side))
    tokenizer.save_pretrained(run.rows / "tokenizer")
    made_for = {"tokenizer": {"base_model": settings.base_model}, "max_length": settings.max_length}
    write_json(run.rows / "summary.json", made_for)
    own = {
        "run_dir": str(run.path),
        "learning_rate": RATE[tiny],
        "schedule": "cosine",
        "warmup_fraction": 0.05,
        "weight_decay": 0.0,
        "max_steps": STEPS[tiny],
        "finish_in_minutes": 0.0,
        "tokens_per_step": len(PAIRS) * LONGEST,
        "supervise": "assistant",
        "supervise_end": True,
        "eval_steps": 0,
        "patience": 0,
        "sample_prompts": list(PAIRS),
        "log_steps": 5,
        "checkpoint_steps": 0,
        "budget_minutes": 0.0,
        "pause_after_steps": 0,
        "report_to": [],
    }
    events = list(events_of(TrainSettings.checked(settings.model_dump() | own), run.training))
    losses = [event["loss"] for event in events if event.get("kind") == "train"]
    return losses[-1], [event for event in events if event["event"] == "sample"][-len(PAIRS) :]
