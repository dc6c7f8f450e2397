"""What the model card says of the model itself: scores, samples of what it writes, and its limitations."""

from __future__ import annotations

import html
import math
import re
from typing import Any

from nbutils.publish.facts import Facts
from nbutils.publish.metadata import held_out
from nbutils.publish.origin import TINY, dataset_name
from nbutils.publish.sections import percent

NAMES = {"run": "this model", "base": "its base"}
"""Names of the models of an evaluation in words; peers keep theirs."""

MODES = {"alone": "Each prompt alone:", "conversation": "The same prompts in one conversation:"}
"""How samples were asked for, in words."""

BEHAVIOUR = (
    ("repeats", 0.05, "say the same four tokens twice"),
    ("leaks", 0.0, "write role headers or control tokens"),
    ("echoes", 0.02, "repeat the message that they answer"),
    ("empty", 0.02, "are empty"),
)
"""Figures of behaviour that count as a limitation above a share of replies, and what they say."""

ROLES = {"user": "User", "assistant": "Assistant", "system": "System"}


def evaluation_sentence(facts: Facts) -> str:
    """What the evaluation table shows."""
    return (
        "Measured with lm-evaluation-harness, the same items for every model; in brackets the 95 % interval. "
        "↑ higher is better, ↓ lower is better. The base is what this model was before fine-tuning."
    )


def scores_head(facts: Facts) -> list[str]:
    """The head of the evaluation table: one column per model."""
    names = (str(model["name"]) for model in facts.evaluation["models"])
    return ["task", "metric", "items", *(NAMES.get(name, f"`{name}`") for name in names)]


def scores(facts: Facts) -> list[tuple[str, ...]]:
    """A row for each task and metric, a cell for each model; items flagged by the data stage have rows of their own."""
    found = {(_task(s), s["metric"], s["model"]): s for s in facts.evaluation["scores"]}
    models = [model["name"] for model in facts.evaluation["models"]]
    rows: list[tuple[str, ...]] = []
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
        for row in facts.evaluation.get("paired", [])
    ]


def samples(facts: Facts) -> list[str]:
    """The run's own sample replies in the order of the file, quoted: prompts alone, then in one conversation."""
    own = [row for row in facts.samples if row.get("model", "run") == "run"]
    parts = []
    for mode in dict.fromkeys(row.get("mode", "alone") for row in own):
        rows = [row for row in own if row.get("mode", "alone") == mode]
        quoted = (_exchange(row) for row in rows)
        parts.append(f"{MODES.get(mode, mode)}\n\n" + ("\n>\n" if mode == "conversation" else "\n\n").join(quoted))
    return parts


def dialogue(facts: Facts) -> list[str]:
    """The scripted conversation of notebook 05, quoted."""
    messages = [m for m in facts.transcript.get("messages", []) if m["role"] in ROLES]
    return ["\n>\n".join(_quoted(ROLES[m["role"]], m["content"]) for m in messages)] if messages else []


def limitations(facts: Facts, parameters: int) -> list[str]:
    """What the model cannot do: from where it began, what was measured, and the measured behaviour where there is any.

    Nothing is said here of any model that was not found out about this one.
    """
    sources = ", ".join(f"`{dataset_name(dataset)}`" for dataset in facts.data["datasets"])
    lines = [
        _knowledge(facts, parameters),
        f"It was trained on the conversations of {sources} as they are, and may repeat what is wrong or rude in them; "
        "this fine-tuning did nothing to make it safe.",
    ]
    return [*lines, *_behaviour(facts.evaluation.get("behaviour")), _length_limit(facts)]


def _knowledge(facts: Facts, parameters: int) -> str:
    size = f"{parameters / 1e6:,.1f} million parameters"
    if facts.base_model == TINY:
        tokens = min(facts.data["train"]["tokens"], facts.metrics["total_tokens"] or math.inf)
        return (
            f"Its {size} began at random and have read nothing but {tokens:,} tokens of "
            "conversation: it has learned how people take turns, not facts, and what it states is invented."
        )
    asked = dict.fromkeys(s["task"] for s in facts.evaluation["scores"] if s["model"] == "run" and not held_out(s))
    if asked:
        return f"Of what it knows, {', '.join(asked)} above are all that was measured; what it states may be invented."
    return (
        f"Whether what it states is true was not measured, only how it continues conversations; with {size}, take "
        "nothing from it that you have not checked."
    )


def _behaviour(behaviour: dict[str, Any] | None) -> list[str]:
    """Sentences about the run's replies to held-out messages, as notebook 04 counted them."""
    own = (behaviour or {}).get("models", {}).get("run")
    if not own:
        return []
    greedy, sampled = own["greedy"], own["sampled"]
    limit = (behaviour or {}).get("max_new_tokens")
    within = f" within {limit} tokens" if limit else ""  # runs of an earlier smallchat do not say
    lines = [
        f"Of {sampled['replies']} sampled replies to held-out messages {sampled['ended']:.0%} end by themselves"
        f"{within} ({greedy['ended']:.0%} of the greedy ones); the others run on until they are cut off. "
        f"Their median length is {sampled['median_tokens']:.0f} tokens."
    ]
    for key, least, words in BEHAVIOUR:
        if max(sampled[key], greedy[key]) > least:
            shares = f"{percent(sampled[key])} of the sampled replies and {percent(greedy[key])} of the greedy ones"
            lines.append(f"{shares} {words}.")
    lines.append(f"Of all pairs of words in the greedy replies {greedy['distinct_2']:.0%} are different ones.")
    return lines


def _length_limit(facts: Facts) -> str:
    return f"It was trained on conversations of up to {facts.data['max_length']:,} tokens."


def _task(score: dict[str, Any]) -> str:
    return f"{score['task']} ({score['part']} items)" if score.get("part") else str(score["task"])


def _exchange(row: dict[str, Any]) -> str:
    cut = "" if row.get("ended", True) else " …"
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
