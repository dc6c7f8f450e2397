"""The tables and quotations of the model card: training, data, scores, and samples of what the model writes."""

from __future__ import annotations

import html
import re
from typing import Any

from nbutils.publish.facts import Facts, Rows

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

NAMES = {"run": "this model", "base": "its base"}
"""Names of the models of an evaluation in words; peers keep theirs."""

MODES = {"alone": "Each prompt alone:", "conversation": "The same prompts in one conversation:"}
"""How samples were asked for, in words."""

ROLES = {"user": "User", "assistant": "Assistant", "system": "System"}


def training(facts: Facts) -> Rows:
    """The training configuration, and what followed from it."""
    given, derived, metrics = facts.training["settings"], facts.training["derived"], facts.metrics
    named = [name for name in TRAINING if name in given and (name != "max_steps" or given[name])]
    rows: Rows = [(TRAINING[name], _value(given[name])) for name in named]
    rows.append(("Optimizer steps taken", _value(metrics["steps"])))
    if metrics["epochs"] is not None:
        rows.append(("Epochs read", f"{metrics['epochs']:.2f}"))
    if "microbatches_per_step" in derived:
        rows.append(("Micro-batches per step", _value(derived["microbatches_per_step"])))
    if metrics["skipped_steps"]:
        rows.append(("fp16 steps skipped", metrics["skipped_steps"]))
    return rows


def fates(data: dict[str, Any]) -> Rows:
    """Rows, share and tokens by fate; reasons that met no row are left out."""
    return [
        (fate.replace("_", " "), f"{count['rows']:,}", f"{count['rows'] / data['rows']:.1%}", f"{count['tokens']:,}")
        for fate, count in data["fates"].items()
        if count["rows"]
    ]


def metrics(found: dict[str, Any]) -> Rows:
    """Final numbers of the training run; what it did not log is left out."""
    final, lowest, measured = found["final"], found["best"]["eval_loss"], found["evaluated_step"]
    over = " (all tokens)" if found["counts_all_tokens"] else ""
    # A paused run was measured before its last step.
    at = f", at step {measured:,}" if measured is not None and measured < found["steps"] else ""
    rows = [
        (f"Training loss, smoothed, nats per token{over}", final["loss"], "{:.3f}"),
        ("Evaluation loss, all tokens", final["eval_loss_all_tokens"] if over else None, "{:.3f}"),
        (f"Evaluation loss, the assistant's tokens{at}", final["eval_loss"], "{:.3f}"),
        ("… before training", found["untrained"]["eval_loss"], "{:.3f}"),
        ("… lowest", lowest if lowest and lowest["step"] != measured else None, "{0[value]:.3f} at step {0[step]:,}"),
        (f"Perplexity, the assistant's tokens{at}", final["perplexity"], "{:.1f}"),
        (f"Training token accuracy, smoothed{over}", final["token_accuracy"], "{:.1%}"),
        (f"Evaluation token accuracy{at}", final["eval_token_accuracy"], "{:.1%}"),
        ("Tokens seen", found["total_tokens"], "{:,}"),
        ("Tokens per second, median", found["tokens_per_second"], "{:,.0f}"),
    ]
    return [(name, form.format(value)) for name, value, form in rows if value is not None]


def percent(share: float) -> str:
    """A share in per cent that says more than "0%" of what is there."""
    return f"{share:.0%}" if share == 0 or share >= 0.01 else f"{100 * share:.1g}%"


def _value(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def scores_head(facts: Facts) -> list[str]:
    """The head of the evaluation table: one column per model."""
    names = (str(model["name"]) for model in facts.evaluation["models"])
    return ["task", "metric", "items", *(NAMES.get(name, f"`{name}`") for name in names)]


def scores(facts: Facts) -> Rows:
    """A row for each task and metric, a cell for each model; items flagged by the data stage have rows of their own."""
    found = {(_task(s), s["metric"], s["model"]): s for s in facts.evaluation["scores"]}
    models = [model["name"] for model in facts.evaluation["models"]]
    rows: Rows = []
    for task, metric in dict.fromkeys((task, metric) for task, metric, _ in found):
        cells = [found.get((task, metric, model)) for model in models]
        first = next(cell for cell in cells if cell)
        arrow = "↑" if first["higher_is_better"] else "↓"
        rows.append((task, f"{metric} {arrow}", f"{first['n']:,}", *(_interval(cell) for cell in cells)))
    return rows


def paired(facts: Facts) -> list[str]:
    """The paired differences in words."""
    return [
        f"{_task(row)}, {row['metric']}: {NAMES.get(row['model'], row['model'])} against "
        f"{NAMES.get(row['reference'], row['reference'])} {_number(row['difference'], '+')} "
        f"[{_number(row['low'], '+')}, {_number(row['high'], '+')}], {row['word']}."
        for row in facts.evaluation["paired"]
    ]


def public_tasks(facts: Facts) -> list[str]:
    """The tasks, other than our own, that this model was measured on."""
    own = (s["task"] for s in facts.evaluation["scores"] if s["model"] == "run")
    return list(dict.fromkeys(task for task in own if not held_out(task)))


def held_out(task: str) -> bool:
    """Whether a task is one of our own, made from the conversations that were held out."""
    return any(word in task for word in ("heldout", "held_out", "chitchat"))


def samples(facts: Facts) -> list[str]:
    """The run's own sample replies in the order of the file, quoted: prompts alone, then in one conversation."""
    own = [row for row in facts.samples if row["model"] == "run"]
    parts = []
    for mode in dict.fromkeys(row["mode"] for row in own):
        quoted = (_exchange(row) for row in own if row["mode"] == mode)
        parts.append(f"{MODES[mode]}\n\n" + ("\n>\n" if mode == "conversation" else "\n\n").join(quoted))
    return parts


def dialogue(facts: Facts) -> str:
    """The scripted conversation of notebook 05, quoted."""
    return "\n>\n".join(_quoted(ROLES[m["role"]], m["content"]) for m in facts.transcript["messages"])


def _task(score: dict[str, Any]) -> str:
    return f"{score['task']} ({score['part']} items)" if score.get("part") else str(score["task"])


def _exchange(row: dict[str, Any]) -> str:
    cut = "" if row["ended"] else " …"
    return "\n>\n".join([_quoted("User", row["prompt"]), _quoted("Assistant", (row["reply"] or "(nothing)") + cut)])


def _quoted(who: str, text: str) -> str:
    """Text as a Markdown quotation in which nothing is markup: model output is untrusted."""
    lines = [_plain(line) for line in text.strip().splitlines()] or [""]
    return "\n".join([f"> **{who}:** {lines[0]}", *(f"> {line}" for line in lines[1:])])


def _plain(line: str) -> str:
    """A line of text that Markdown shows as it stands: no HTML, emphasis, list, heading, rule, table, code or link."""
    escaped = re.sub(r"([\\`*_\[\]#|~$@])", r"\\\1", html.escape(line.strip(), quote=False))
    escaped = re.sub(r"(?i)://|\bwww\.", lambda found: found[0].replace(":", "\\:").replace(".", "\\."), escaped)
    return re.sub(r"^(\d{1,9})?([-+=.)])", r"\1\\\2", escaped)  # `---`, `===`, `+`, `1.`, `1)`


def _interval(score: dict[str, Any] | None) -> str:
    if score is None:
        return "—"
    low, high = score.get("low"), score.get("high")
    value = _number(score["value"])
    return value if low is None or high is None else f"{value} [{_number(low)}, {_number(high)}]"


def _number(value: float, sign: str = "") -> str:
    decimals = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign},.{decimals}f}"
