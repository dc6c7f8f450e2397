"""The numbers of the table: scores with intervals, paired differences with a word, and the Markdown that shows them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nbutils.core.text import markdown_table, number, with_interval
from nbutils.evaluate.compare import (
    FEWEST_GROUPS,
    TOO_FEW,
    check_same_items,
    interval,
    paired_difference,
    read_items,
    sums_of,
    word_for,
)
from nbutils.evaluate.items import Metric
from nbutils.evaluate.models import items_name
from nbutils.evaluate.score import Plan, Scored

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
    # With a limit, later items are not evaluated at all.
    asked = {r.task: flagged[r.task] & set(read_items(r.items)["doc_id"]) for r in scored if r.task in flagged}
    scores: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    for task in tasks:
        numbers = asked.get(task, set())
        by_model = {r.model.name: r for r in scored if r.task == task}
        own = by_model.get("run")
        for part in ("", *PARTS) if numbers else ("",):
            draw = Draw(part, numbers, plan.settings.resamples, plan.settings.seed)
            for result in by_model.values():
                scores += _scores(result, draw)
            for name, result in by_model.items():
                if own is not None and name != "run":
                    paired += _differences(own, result, draw)
    return {
        "schema": SCHEMA,
        "lm_eval": metadata.version("lm_eval"),
        "settings": plan.asking,
        "resamples": plan.settings.resamples,
        "models": list(models.values()),
        "tasks": list(tasks.values()),
        "flagged": {task: sorted(numbers) for task, numbers in asked.items() if numbers},
        "scores": scores,
        "paired": paired,
    }


class Draw(NamedTuple):
    """Which part of a task's items counts (all where it is ''), and how they are resampled."""

    part: str
    flagged: set[int]
    resamples: int
    seed: int

    def items(self, result: Scored, filter_name: str) -> pd.DataFrame:
        """The part's items under one of lm-eval's filters."""
        table = read_items(result.items, filter_name)
        return table[table["doc_id"].isin(self.flagged) == (self.part == PARTS[0])] if self.part else table

    @property
    def label(self) -> dict[str, str]:
        """What a row of the results says of the part."""
        return {"part": self.part} if self.part else {}


def _metrics(result: Scored) -> Iterator[tuple[str, str, Metric]]:
    """(name in the table, lm-eval's filter, metric): with several filters the name says which."""
    by_name = {m["name"]: Metric(**m) for m in result.answer["metrics"]}
    keys = [key.partition(",") for key in result.answer["values"]]
    filters = {key[2] for key in keys}
    for name, _, kind in keys:
        if name in by_name:
            yield (name if len(filters) == 1 else f"{name}, {kind}"), kind, by_name[name]


def _scores(result: Scored, draw: Draw) -> Iterator[dict[str, Any]]:
    for label, filter_name, metric in _metrics(result):
        table = draw.items(result, filter_name)
        row = {"model": result.model.name, "task": result.task, "metric": label,
               "higher_is_better": metric.higher_is_better, "n": len(table)}  # fmt: skip
        if metric.kind == "none":
            if not draw.part:
                yield row | {"value": result.answer["values"][f"{metric.name},{filter_name}"]}
        elif len(table):
            estimate = interval(sums_of(table, metric), metric.kind, draw.resamples, draw.seed)
            yield row | asdict(estimate) | draw.label


def _differences(own: Scored, other: Scored, draw: Draw) -> Iterator[dict[str, Any]]:
    for label, filter_name, metric in _metrics(own):
        a, b = (draw.items(result, filter_name) for result in (own, other))
        check_same_items(a, b)
        if metric.kind == "none" or not len(a):
            continue
        estimate = paired_difference(sums_of(a, metric), sums_of(b, metric), metric.kind, draw.resamples, draw.seed)
        yield {
            "model": own.model.name,
            "reference": other.model.name,
            "task": own.task,
            "metric": label,
            "difference": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "groups": estimate.groups,
            "word": word_for(estimate, metric.higher_is_better),
        } | draw.label


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
    keys = list(dict.fromkeys((s["task"], s["metric"], s.get("part", "")) for s in scores))
    found = {(s["task"], s["metric"], s.get("part", ""), s["model"]): s for s in scores}
    names = [m["name"] for m in models]
    rows = [["parameters", "", "", *(f"{m['parameters']:,}" for m in models)]]
    for task, metric, part in keys:
        cells = [found.get((task, metric, part, name)) for name in names]
        first = next(cell for cell in cells if cell)
        arrow = "↑" if first["higher_is_better"] else "↓"
        label = f"{task} ({part})" if part else task
        rows.append([label, f"{metric} {arrow}", f"{first['n']:,}", *(score_cell(cell) for cell in cells)])
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
