"""What the model card says of data and training, each section from its own file of the run folder."""

from __future__ import annotations

from typing import Any

from nbutils.publish.facts import Facts
from nbutils.publish.origin import base_words, dataset_name
from nbutils.publish.settings import PublishSettings

Rows = list[tuple[Any, ...]]

TRAINING = {
    "learning_rate": "Peak learning rate",
    "schedule": "Schedule",
    "warmup_fraction": "Warm-up, share of steps",
    "optimizer": "Optimizer",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Gradient clipping, norm",
    "epochs": "Epochs, at most",
    "max_steps": "Optimizer steps, at most",
    "tokens_per_step": "Tokens per optimizer step",
    "tokens_per_microbatch": "Tokens per micro-batch",
    "max_length": "Longest conversation, tokens",
    "supervise": "Loss counts tokens of",
    "seed": "Seed",
}
"""Parameters of the training stage on the card, in this order, with their names in words."""


def summary(facts: Facts, settings: PublishSettings, parameters: int) -> str:
    """The card's first sentence."""
    sources = ", ".join(f"`{dataset_name(dataset)}`" for dataset in facts.data["datasets"])
    base, steps = base_words(facts, settings), facts.metrics["steps"]
    part = read_in_part(facts)
    share = f"{percent(part)} of the " if part else ""
    return (
        f"A chat model of {parameters:,} parameters: {base}, fine-tuned for {steps:,} optimizer steps on {share}"
        f"{facts.data['train']['rows']:,} conversations of {sources} with smallchat."
    )


def read_in_part(facts: Facts) -> float | None:
    """The share of an epoch after which training ended; None where it read every conversation, or did not log that."""
    epochs = facts.metrics["epochs"]
    return epochs if epochs is not None and epochs < 0.995 else None


def training_sentence(facts: Facts) -> str:
    """Hardware, time and precision in a sentence."""
    derived, machine, metrics = facts.training["derived"], facts.training.get("machine"), facts.metrics
    processes = derived["world_size"]
    where = (
        f"{processes} process{'es' if processes > 1 else ''} in {derived['precision']} on {_device(derived['device'])}"
    )
    if machine:  # of the training; runs of an earlier smallchat did not record it
        where += f" ({machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['platform']})"
    ddp = " and DDP" if processes > 1 else ""
    hours = metrics["hours"]
    took = "" if hours is None else f" for {_duration(hours * 3600)}"
    sessions = f", in {metrics['sessions']} sessions" if metrics["sessions"] > 1 else ""
    return f"Supervised fine-tuning with TRL's `SFTTrainer`{ddp}: {where}{took}{sessions}."


def training(facts: Facts) -> Rows:
    """The training configuration, and what followed from it."""
    given, derived = facts.training["settings"], facts.training["derived"]
    named = [name for name in TRAINING if name in given and (name != "max_steps" or given[name])]
    rows: Rows = [(TRAINING[name], _value(given[name])) for name in named]
    epochs = facts.metrics["epochs"]
    rows.append(("Optimizer steps taken", f"{facts.metrics['steps']:,}"))
    rows += [] if epochs is None else [("Epochs read", f"{epochs:.2f}")]
    rows += [("Micro-batches per step", _value(derived[n])) for n in ("microbatches_per_step",) if n in derived]
    if facts.metrics["skipped_steps"]:
        rows.append(("fp16 steps skipped", facts.metrics["skipped_steps"]))
    return rows


def data_sentence(facts: Facts) -> str:
    """How many rows were read and what became of them, in a sentence."""
    data, part = facts.data, read_in_part(facts)
    fate = f"kept for training, {percent(part)} of which the optimizer steps read" if part else "trained on"
    return (
        f"{data['rows']:,} rows were read. A conversation is kept whole or dropped whole, for exactly one reason; "
        f"none is cut to a length. {data['train']['rows']:,} conversations ({data['train']['tokens']:,} tokens, "
        f"{data['train']['supervised_tokens']:,} of them the assistant's) were {fate}, {data['eval']['rows']:,} "
        f"({data['eval']['tokens']:,} tokens) held out for evaluation."
    )


def fates(facts: Facts) -> Rows:
    """Rows, share and tokens by fate; reasons that met no row are left out."""
    total = max(facts.data["rows"], 1)
    return [
        (fate.replace("_", " "), f"{count['rows']:,}", f"{count['rows'] / total:.1%}", f"{count['tokens']:,}")
        for fate, count in facts.data["fates"].items()
        if count["rows"]
    ]


def data_note(facts: Facts) -> str:
    """What the table of fates leaves open."""
    trimmed = facts.data.get("trimmed_rows", 0)
    lost = f" {trimmed:,} conversations lost a last user message that nobody answered." if trimmed else ""
    return f"Too long means more than {facts.data['max_length']:,} tokens.{lost}"


def metrics(facts: Facts) -> Rows:
    """Final numbers of the training run; what it did not log is left out."""
    final, best, untrained = (facts.metrics[name] for name in ("final", "best", "untrained"))
    lowest = best["eval_loss"]
    over = " (all tokens)" if facts.metrics["counts_all_tokens"] else ""
    measured = facts.metrics.get("evaluated_step")  # a paused run was measured before its last step
    at = f", at step {measured:,}" if measured is not None and measured < facts.metrics["steps"] else ""
    rows = [
        (f"Training loss, smoothed, nats per token{over}", _form(final["loss"], "{:.3f}")),
        ("Evaluation loss, all tokens", _form(final["eval_loss_all_tokens"], "{:.3f}") if over else None),
        (f"Evaluation loss, the assistant's tokens{at}", _form(final["eval_loss"], "{:.3f}")),
        ("… before training", _form(untrained["eval_loss"], "{:.3f}")),
        ("… lowest", _lowest(lowest) if lowest and lowest["step"] != measured else None),
        (f"Perplexity, the assistant's tokens{at}", _form(final["perplexity"], "{:.1f}")),
        (f"Training token accuracy, smoothed{over}", _form(final["token_accuracy"], "{:.1%}")),
        (f"Evaluation token accuracy{at}", _form(final["eval_token_accuracy"], "{:.1%}")),
        ("Tokens seen", _form(facts.metrics["total_tokens"], "{:,}")),
        ("Tokens per second, median", _form(facts.metrics["tokens_per_second"], "{:,.0f}")),
    ]
    return [row for row in rows if row[1] is not None]


def percent(share: float) -> str:
    """A share in per cent that says more than "0%" of what is there."""
    return f"{share:.0%}" if share == 0 or share >= 0.01 else f"{100 * share:.1g}%"


def _lowest(best: dict[str, Any]) -> str:
    return f"{best['value']:.3f} at step {best['step']:,}"


def _form(value: Any, form: str) -> str | None:
    return None if value is None else form.format(value)


def _value(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def _device(name: str) -> str:
    return "the CPU" if name == "cpu" else "Apple's GPU" if name == "mps" else name


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
