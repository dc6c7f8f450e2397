"""The numbers of the table: scores with intervals, paired differences with a word, and the Markdown that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata

import numpy as np
import pandas as pd

from nbutils.core.bootstrap import FEWEST_GROUPS, TOO_FEW, interval, paired_difference, word_for
from nbutils.core.files import Json
from nbutils.core.text import code, markdown_table, score_rows, task_of, with_interval
from nbutils.evaluate.compare import Metric, sums_of
from nbutils.evaluate.memorised import PEOPLE
from nbutils.evaluate.score import Plan, Scored
from nbutils.evaluate.settings import EvaluateSettings

SCHEMA = 1
NAMES = {"run": "this run's model", "base": "its base", PEOPLE: "people"}
SCOPE = (
    "*Better* and *worse* are said of these two checkpoints on these items, and of nothing else. "
    f"*{TOO_FEW.capitalize()}*: fewer than {FEWEST_GROUPS} say nothing certain about two models."
)


def shown_name(model: str) -> str:
    """What a model of the table is called in a sentence."""
    return NAMES.get(model, model)


def results(plan: Plan, scored: Sequence[Scored], flagged: Mapping[str, set[int]]) -> Json:
    """What `results.json` holds: models, tasks, scores, and differences of the run's model from each other one.

    `flagged` are items by task that the data stage found in its input: they are scored apart, in addition.
    """
    # An answer may have been computed for another run, where the model had another name and place.
    models = {r.model.name: r.answer["model"] | r.model.facts for r in scored}
    tasks = {r.task: {k: v for k, v in r.answer.items() if k not in ("metrics", "values", "model")}
             for r in scored}  # fmt: skip
    asked: dict[str, list[int]] = {}
    scores: list[Json] = []
    paired: list[Json] = []
    for task in tasks:
        tables = [(result, pd.read_parquet(result.items)) for result in scored if result.task == task]
        evaluated = set(tables[0][1]["doc_id"])  # with a limit, later items are not
        parts = {"": evaluated}
        if numbers := flagged.get(task, set()) & evaluated:
            asked[task] = sorted(numbers)
            parts |= {"flagged": numbers, "not flagged": evaluated - numbers}
        for part, chosen in parts.items():
            of_part = [(result, table[table["doc_id"].isin(chosen)]) for result, table in tables]
            own, against = _compared(of_part, plan.settings) if chosen else ([], [])
            named = {"part": part} if part else {}
            scores += [row | named for row in own if not part or "low" in row]
            paired += [row | named for row in against]
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


def _compared(tables: Sequence[tuple[Scored, pd.DataFrame]], s: EvaluateSettings) -> tuple[list[Json], list[Json]]:
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


def comparison_markdown(found: Json) -> str:
    """The page `comparison.md`: scores, differences, and the settings under which they hold."""
    return "\n\n".join([
        "# Comparison", scores_table(found),
        "Items that share a run of words with a conversation of the data stage's input, if there are any, are scored "
        "apart as *flagged*; those conversations were not trained on.",
        "## Differences, paired on the same items", difference_table(found),
        "## How it was measured", settings_list(found) + "\n",
    ])  # fmt: skip


def scores_table(found: Json) -> str:
    """A row for each task, metric and part; a column for each model, a value with its interval in each cell."""
    parameters = ["parameters", "", "", *(f"{model['parameters']:,}" for model in found["models"])]
    head = ["task", "metric", "items", *(shown_name(model["name"]) for model in found["models"])]
    table = markdown_table(head, [parameters, *score_rows(found)])
    return "\n".join([table, *(f"\nLeft out: {name} ({why})" for name, why in found["left_out"].items())])


def difference_table(found: Json) -> str:
    """A row for each difference of the run's model from another one, and what the words are about."""
    if not found["paired"]:
        return "There is nothing to compare with."
    rows = [
        [shown_name(row["reference"]), task_of(row), row["metric"],
         with_interval(row["difference"], row["low"], row["high"], "+"), f"**{row['word']}**"]
        for row in found["paired"]
    ]  # fmt: skip
    head = ["this run's model against", "task", "metric", "difference", "in a word"]
    return f"{markdown_table(head, rows)}\n\n{SCOPE}"


def settings_list(found: Json) -> str:
    """Everything that decides the numbers: what holds for all, then the tasks and the models."""
    asking = found["settings"]
    lines = [
        f"- lm-evaluation-harness {found['lm_eval']}; the same items for every model: {asking['limit'] or 'all'} of "
        "each task, in its order",
        f"- at most {asking['max_length']:,} tokens at once, for all models alike; weights in {asking['precision']}, "
        "log-probabilities summed in float32 or better",
        f"- intervals: 95 %, bootstrap percentiles of {found['resamples']:,} resamples, wider for few items as t "
        "intervals are; a metric that is no function of sums over items has no interval",
        "- with a chat template, lm-eval moves the newline of `assistant\\n` into the continuation",
        "- where BOS stands in front, rolling windows score it once more",
    ]
    tasks = [
        [code(task["task"]), task["version"], task["num_fewshot"], task["chat_template"], task["groups"] or "item"]
        for task in found["tasks"]
    ]
    models = [
        [shown_name(model["name"]), code(model["source"]),
         ", ".join(f"{kind} {text[:12]}" for kind, text in model["identity"].items() if kind != "hub"),
         model["adds_bos"], model["scored_as"]]
        for model in found["models"]
    ]  # fmt: skip
    tables = [
        markdown_table(["task", "version", "solved examples", "chat template", "resampled by"], tasks),
        markdown_table(["model", "read from", "identity", "BOS in front", "read as"], models),
    ]
    return "\n\n".join(["\n".join(lines), *tables])
