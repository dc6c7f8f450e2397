"""The numbers of the table: scores with intervals, paired differences with a word, and the Markdown that shows them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from nbutils.core.text import markdown_table, number, with_interval
from nbutils.evaluate.compare import (
    FEWEST_GROUPS,
    TOO_FEW,
    interval,
    paired_difference,
    sums_of,
    word_for,
)
from nbutils.evaluate.items import Metric
from nbutils.evaluate.models import items_name
from nbutils.evaluate.score import Plan, Scored
from nbutils.evaluate.settings import EvaluateSettings

SCHEMA = 1
NAMES = {"run": "this run's model", "base": "its base"}
PARTS = ("flagged", "not flagged")
"""Parts of a task's items that are scored apart where the data stage found some of them in its input."""
SCOPE = "*Better* and *worse* are said of these two checkpoints on these items, and of nothing else."


def shown_name(model: str) -> str:
    """What a model of the table is called in a sentence."""
    return NAMES.get(model, model)


def keep_items(scored: Sequence[Scored], folder: Path) -> None:
    """Copies the per-item results into the run, one file for each model and task."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in scored:
        shutil.copyfile(result.items, folder / items_name(result.model.name, result.task))


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
        answers = {r.model.name: r for r in scored if r.task == task}
        tables = {name: pd.read_parquet(result.items) for name, result in answers.items()}
        # With a limit, later items are not evaluated at all.
        numbers = flagged.get(task, set()) & set(tables["run"]["doc_id"])
        if numbers:
            asked[task] = sorted(numbers)
        for part in ("", *PARTS) if numbers else ("",):
            of_part = {
                name: table[table["doc_id"].isin(numbers) == (part == PARTS[0])] if part else table
                for name, table in tables.items()
            }
            own, against = _compared(answers, of_part, {"part": part} if part else {}, plan.settings)
            scores += own
            paired += against
    return {
        "schema": SCHEMA,
        "lm_eval": metadata.version("lm_eval"),
        "settings": plan.asking,
        "resamples": plan.settings.resamples,
        "models": list(models.values()),
        "tasks": list(tasks.values()),
        "flagged": asked,
        "scores": scores,
        "paired": paired,
    }


def _compared(
    answers: Mapping[str, Scored], tables: Mapping[str, pd.DataFrame], part: dict[str, str], settings: EvaluateSettings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of all models on the items of their tables, and differences of the run's model from each other one."""
    scores, paired = [], []
    known: dict[str, dict[str, tuple[Metric, pd.DataFrame]]] = {name: {} for name in answers}
    for name, result in answers.items():
        metrics = {metric["name"]: Metric(**metric) for metric in result.answer["metrics"]}
        keys = [key.partition(",") for key in result.answer["values"]]
        several = len({key[2] for key in keys}) > 1
        for key, _, filter_name in keys:
            metric = metrics.get(key)
            if metric is None:
                continue
            label = f"{key}, {filter_name}" if several else key
            table = tables[name][tables[name]["filter"] == filter_name]
            row = {"model": name, "task": result.task, "metric": label,
                   "higher_is_better": metric.higher_is_better, "n": len(table)}  # fmt: skip
            if metric.kind == "none":
                scores += [] if part else [row | {"value": result.answer["values"][f"{key},{filter_name}"]}]
            elif len(table):
                known[name][label] = metric, table
                estimate = interval(sums_of(table, metric), metric.kind, settings.resamples, settings.seed)
                scores.append(row | asdict(estimate) | part)
    for other in (name for name in known if name != "run"):
        for label, (metric, table) in known["run"].items():
            a, b = sums_of(table, metric), sums_of(known[other][label][1], metric)
            estimate = paired_difference(a, b, metric.kind, settings.resamples, settings.seed)
            paired.append(
                {"model": "run", "reference": other, "task": answers[other].task, "metric": label,
                 "difference": estimate.value, "low": estimate.low, "high": estimate.high, "groups": estimate.groups,
                 "word": word_for(estimate, metric.higher_is_better)} | part
            )  # fmt: skip
    return scores, paired


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """The page `comparison.md`: scores, differences, and the settings under which they hold."""
    parts = ["# Comparison", scores_table(found["scores"], found["models"])]
    if found["paired"]:
        parts += ["## Differences, paired on the same items", difference_table(found["paired"]), scope(found["paired"])]
    if found["flagged"]:
        parts.append(
            "Items that share a run of words with a conversation of the data stage's input are scored apart as "
            "*flagged*; those conversations were not trained on."
        )
    return "\n\n".join([*parts, "## How it was measured", settings_list(found)]) + "\n"


def scope(paired: Sequence[Mapping[str, Any]]) -> str:
    """What the words of the differences are about."""
    few = f" *{TOO_FEW.capitalize()}*: fewer than {FEWEST_GROUPS} say nothing certain about two models."
    return SCOPE + (few if any(row["word"] == TOO_FEW for row in paired) else "")


def scores_table(scores: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> str:
    """A row for each task, metric and part; a column for each model."""
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for score in scores:
        found.setdefault((score["task"], score["metric"], score.get("part", "")), {})[score["model"]] = score
    names = [m["name"] for m in models]
    rows = [["parameters", "", "", *(f"{m['parameters']:,}" for m in models)]]
    for (task, metric, part), of_models in found.items():
        first = next(iter(of_models.values()))
        label = f"{task} ({part})" if part else task
        arrow = "↑" if first["higher_is_better"] else "↓"
        rows.append([label, f"{metric} {arrow}", f"{first['n']:,}", *(score_cell(of_models.get(n)) for n in names)])
    return markdown_table(["task", "metric", "items", *(shown_name(name) for name in names)], rows)


def difference_table(paired: Sequence[Mapping[str, Any]]) -> str:
    """A row for each difference of the run's model from another one."""
    rows = [
        [
            shown_name(row["reference"]),
            f"{row['task']} ({row['part']})" if row.get("part") else row["task"],
            row["metric"],
            with_interval(row["difference"], row["low"], row["high"], "+"),
            f"**{row['word']}**",
        ]
        for row in paired
    ]
    return markdown_table(["this run's model against", "task", "metric", "difference", "in a word"], rows)


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
    without = sorted({f"`{s['metric']}` of `{s['task']}`" for s in found["scores"] if "low" not in s})
    if without:
        lines.append(f"{', '.join(without)}: no interval and no paired difference, as it is no mean over items")
    for task in found["tasks"]:
        template = "the model's chat template" if task["chat_template"] else "no chat template"
        unit = f"; resampled by {task['groups']}" if task["groups"] else ""
        version = f" version {task['version']}" if task["version"] else ""
        lines.append(f"`{task['task']}`{version}: {task['num_fewshot']}-shot, {template}{unit}")
    for model in found["models"]:
        bos = "puts BOS in front (rolling windows score it once more)" if model["adds_bos"] else "adds no BOS"
        lines.append(
            f"{shown_name(model['name'])}: `{model['source']}`{_which(model)}, {bos}, read as {model['scored_as']}"
        )
    if asking["apply_chat_template"]:
        lines.append("with the chat template, lm-eval moves the newline of `assistant\\n` into the continuation")
    return "\n".join(f"- {line}" for line in lines)


def _which(model: Mapping[str, Any]) -> str:
    """The commit or the content that was measured, as far as it takes to recognise it."""
    found = model.get("identity", {})
    if commit := found.get("commit"):
        return f" at commit {commit[:12]}"
    return f" (content {found['sha256'][:12]})" if "sha256" in found else ""


def score_cell(score: Mapping[str, Any] | None) -> str:
    """A value with its interval."""
    if score is None:
        return "—"
    if "low" not in score:
        return f"{number(score['value'])} (no interval)"
    return with_interval(score["value"], score["low"], score["high"])
