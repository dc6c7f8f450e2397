"""The numbers of the table: scores with intervals, paired differences with a word, and the Markdown that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

from nbutils.core.text import markdown_table, number, with_interval
from nbutils.evaluate.compare import (
    FEWEST_GROUPS,
    TOO_FEW,
    Metric,
    interval,
    paired_difference,
    sums_of,
    word_for,
)
from nbutils.evaluate.score import Plan, Scored
from nbutils.evaluate.settings import EvaluateSettings

SCHEMA = 1
NAMES = {"run": "this run's model", "base": "its base"}
SCOPE = (
    "*Better* and *worse* are said of these two checkpoints on these items, and of nothing else. "
    f"*{TOO_FEW.capitalize()}*: fewer than {FEWEST_GROUPS} say nothing certain about two models."
)


def shown_name(model: str) -> str:
    """What a model of the table is called in a sentence."""
    return NAMES.get(model, model)


def shown_score(score: Mapping[str, Any]) -> str:
    """The value of a score with its interval, where it has one."""
    if "low" not in score:
        return f"{number(score['value'])} (no interval)"
    return with_interval(score["value"], score["low"], score["high"])


def results(plan: Plan, scored: Sequence[Scored], flagged: Mapping[str, set[int]]) -> dict[str, Any]:
    """What `results.json` holds: models, tasks, scores, and differences of the run's model from each other one.

    `flagged` are items by task that the data stage found in its input: they are scored apart, in addition.
    """
    # An answer may have been computed for another run, where the model had another name and place.
    models = {r.model.name: r.answer["model"] | r.model.facts for r in scored}
    tasks = {r.task: {k: r.answer[k] for k in ("task", "version", "items", "groups", "chat_template", "num_fewshot")}
             for r in scored}  # fmt: skip
    asked: dict[str, list[int]] = {}
    scores: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    for task in tasks:
        tables = [(result, pd.read_parquet(result.items)) for result in scored if result.task == task]
        evaluated = set(tables[0][1]["doc_id"])  # with a limit, later items are not
        own, against = _compared(tables, plan.settings)
        scores += own
        paired += against
        if numbers := flagged.get(task, set()) & evaluated:
            asked[task] = sorted(numbers)
            for part, chosen in {"flagged": numbers, "not flagged": evaluated - numbers}.items():
                of_part = [(result, table[table["doc_id"].isin(chosen)]) for result, table in tables]
                own, against = _compared(of_part, plan.settings) if chosen else ([], [])
                scores += [row | {"part": part} for row in own if "low" in row]
                paired += [row | {"part": part} for row in against]
    return {
        "schema": SCHEMA,
        "lm_eval": metadata.version("lm_eval"),
        "settings": plan.asking,
        "resamples": plan.settings.resamples,
        "models": list(models.values()),
        "tasks": list(tasks.values()),
        "flagged": asked,
        "left_out": plan.left_out,
        "scores": scores,
        "paired": paired,
    }


def _compared(
    tables: Sequence[tuple[Scored, pd.DataFrame]], s: EvaluateSettings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of all models on the items of their tables, and differences of the run's model from each other one."""
    scores, paired = [], []
    known: dict[tuple[str, str], tuple[Metric, np.ndarray]] = {}
    for result, table in tables:
        metrics = {metric["name"]: Metric(**metric) for metric in result.answer["metrics"]}
        for key, value in result.answer["values"].items():
            name, _, chosen = key.partition(",")
            metric, items = metrics[name], table[table["filter"] == chosen]
            label = name if len(items) == len(table) else f"{name}, {chosen}"
            row = {"model": result.model.name, "task": result.task, "metric": label,
                   "higher_is_better": metric.higher_is_better, "n": len(items)}  # fmt: skip
            if metric.kind == "none":
                scores.append(row | {"value": value})
            else:
                sums = sums_of(items, metric)
                known[result.model.name, label] = metric, sums
                scores.append(row | asdict(interval(sums, metric.kind, s.resamples, s.seed)))
    for (other, label), (metric, sums) in known.items():
        if other != "run" and ("run", label) in known:
            found = paired_difference(known["run", label][1], sums, metric.kind, s.resamples, s.seed)
            paired.append(
                {"model": "run", "reference": other, "task": tables[0][0].task, "metric": label,
                 "difference": found.value, "low": found.low, "high": found.high, "groups": found.groups,
                 "word": word_for(found, metric.higher_is_better)}
            )  # fmt: skip
    return scores, paired


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """The page `comparison.md`: scores, differences, and the settings under which they hold."""
    parts = ["# Comparison", scores_table(found), "## Differences, paired on the same items", difference_table(found)]
    if found["flagged"]:
        parts.append(
            "Items that share a run of words with a conversation of the data stage's input are scored apart as "
            "*flagged*; those conversations were not trained on."
        )
    return "\n\n".join([*parts, "## How it was measured", settings_list(found)]) + "\n"


def scores_table(found: Mapping[str, Any]) -> str:
    """A row for each task, metric and part; a column for each model, a value with its interval in each cell."""
    rows: dict[tuple[str, ...], dict[str, str]] = {
        ("parameters", "", ""): {model["name"]: f"{model['parameters']:,}" for model in found["models"]}
    }
    for score in found["scores"]:
        row = (_task_of(score), f"{score['metric']} {'↑' if score['higher_is_better'] else '↓'}", f"{score['n']:,}")
        rows.setdefault(row, {})[score["model"]] = shown_score(score)
    names = [model["name"] for model in found["models"]]
    body = [[*row, *(cells.get(name, "—") for name in names)] for row, cells in rows.items()]
    table = markdown_table(["task", "metric", "items", *map(shown_name, names)], body)
    return "\n".join([table, *(f"\nLeft out: {name} ({why})" for name, why in found["left_out"].items())])


def difference_table(found: Mapping[str, Any]) -> str:
    """A row for each difference of the run's model from another one, and what the words are about."""
    if not found["paired"]:
        return "There is nothing to compare with."
    rows = [
        [shown_name(row["reference"]), _task_of(row), row["metric"],
         with_interval(row["difference"], row["low"], row["high"], "+"), f"**{row['word']}**"]
        for row in found["paired"]
    ]  # fmt: skip
    head = ["this run's model against", "task", "metric", "difference", "in a word"]
    return f"{markdown_table(head, rows)}\n\n{SCOPE}"


def _task_of(row: Mapping[str, Any]) -> str:
    return f"{row['task']} ({row['part']})" if "part" in row else row["task"]


def settings_list(found: Mapping[str, Any]) -> str:
    """Everything that decides the numbers, as a list."""
    asking = found["settings"]
    limit = f"the first {asking['limit']:,} items of each task" if asking["limit"] else "all items"
    lines = [
        f"lm-evaluation-harness {found['lm_eval']}; {limit}; the same items for every model",
        f"at most {asking['max_length']:,} tokens at once, for all models alike; weights in {asking['precision']}, "
        "log-probabilities summed in float32 or better",
        f"intervals: 95 %, bootstrap percentiles of {found['resamples']:,} resamples, wider for few items as t "
        "intervals are",
    ]
    for task in found["tasks"]:
        template = "the model's chat template" if task["chat_template"] else "no chat template"
        unit = f"; resampled by {task['groups']}" if task["groups"] else ""
        version = f" version {task['version']}" if task["version"] else ""
        lines.append(f"`{task['task']}`{version}: {task['num_fewshot']}-shot, {template}{unit}")
    for model in found["models"]:
        which = "".join(f" ({kind} {text[:12]})" for kind, text in model["identity"].items() if kind != "hub")
        bos = "puts BOS in front (rolling windows score it once more)" if model["adds_bos"] else "adds no BOS"
        lines.append(f"{shown_name(model['name'])}: `{model['source']}`{which}, {bos}, read as {model['scored_as']}")
    if asking["apply_chat_template"]:
        lines.append("with the chat template, lm-eval moves the newline of `assistant\\n` into the continuation")
    return "\n".join(f"- {line}" for line in lines)
