"""Asking lm-evaluation-harness: every task of every model, each answer kept as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_json
from nbutils.evaluate.cache import Cache
from nbutils.evaluate.items import item_rows, metrics_of, to_parquet
from nbutils.evaluate.models import Model, facts_of, open_model

ITEMS = "items.parquet"


@dataclass(frozen=True)
class Asking:
    """How all models of a table are asked."""

    limit: int
    num_fewshot: int
    apply_chat_template: bool
    max_length: int
    precision: str


@dataclass(frozen=True)
class Scored:
    """One task of one model: lm-eval's `values` by metric, facts about the model, and the Parquet file of its items."""

    model: Model
    task: str
    answer: dict[str, Any]
    items: Path
    cached: bool


Pair = tuple[Model, str]
"""A model and the name of a task."""

Counter = Callable[..., AbstractContextManager[Any]]
"""`(total, say, off=…)` → a context whose `update(count)` shows how far the scoring is."""


def questions_of(models: Sequence[Model], tasks: Mapping[str, Any], asking: Asking) -> dict[Pair, dict[str, Any]]:
    """What the cache is asked for each task of each model, in the order of the table."""
    described = {name: describe(task, asking) for name, task in tasks.items()}
    return {
        (model, name): {
            "model": model.ref.identity(),
            "task": described[name],
            "asking": asdict(asking),
            "lm_eval": metadata.version("lm_eval"),
        }
        for model in models
        for name in tasks
    }


def unanswered(questions: Mapping[Pair, Any], cache: Cache) -> set[Pair]:
    """The pairs to which the cache has no answer."""
    return {pair for pair, question in questions.items() if cache.get(question) is None}


def score(
    models: Sequence[Model],
    tasks: Mapping[str, Any],
    asking: Asking,
    cache: Cache,
    *,
    device: str = "cpu",
    tokens_per_batch: int = 0,
    counter: Counter | None = None,
    say: Callable[[str], None] = print,
) -> list[Scored]:
    """Scores every task of every model that the cache does not know; model by model, in the order given.

    An interruption raises UserError; what was finished stays in the cache, and the next call goes on from there.
    """
    questions = questions_of(models, tasks, asking)
    fresh = unanswered(questions, cache)
    first = {cache.path(questions[pair]): pair for pair in reversed(questions) if pair in fresh}
    with kept_when_interrupted(questions, cache):
        for model in models:  # the same weights under two names are asked once
            wanted = [name for name in tasks if (model, name) in first.values()]
            if not wanted:
                continue
            lm = open_model(
                model,
                max_length=asking.max_length,
                precision=asking.precision,
                device=device,
                tokens_per_batch=tokens_per_batch,
            )
            lm.say, lm.counter = say, counter or lm.counter
            for name in wanted:
                answer, files = ask(lm, model, name, tasks[name], asking)
                if answer:  # only the first of several processes gets one
                    cache.put(questions[model, name], answer, files)
                    say(f"{model.name} · {name}: {answer['items']:,} items in {answer['seconds']:.1f} s")
            del lm
    return collected(questions, cache, fresh)


def collected(questions: Mapping[Pair, Any], cache: Cache, fresh: set[Pair]) -> list[Scored]:
    """The answers that the cache has; those of the pairs in `fresh` were not there before."""
    answers = {pair: cache.get(question) for pair, question in questions.items()}
    return [
        Scored(model, name, answer, cache.path(questions[model, name]) / ITEMS, (model, name) not in fresh)
        for (model, name), answer in answers.items()
        if answer is not None
    ]


@contextmanager
def kept_when_interrupted(questions: Mapping[Pair, Any], cache: Cache) -> Iterator[None]:
    """Makes an interruption of the scoring a sentence that says how far it came."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(questions) - len(unanswered(questions, cache))
        raise UserError(
            f"Interrupted while scoring: {done} of {len(questions)} results are finished and kept; run this cell again "
            "to go on."
        ) from None


def describe(task: Any, asking: Asking) -> dict[str, Any]:
    """What a task's results depend on: its whole configuration, and the text of its items."""
    config = {k: v for k, v in task.dump_config().items() if k not in ("dataset_kwargs", "dataset_path")}
    docs = task.task_docs
    taken = list(docs)[: asking.limit or None]
    if asking.num_fewshot and task.get_config("num_fewshot"):
        taken += list(task.fewshot_docs() or [])
    return {"config": json.loads(json.dumps(config, default=_named)), "items": sha256_of_json(taken)}


def takes_template(task: Any) -> bool:
    """Whether a chat template can be put around a task's items: not where they are ChatML already."""
    return not (task.get_config("metadata") or {}).get("is_chatml")


def ask(lm: Any, model: Model, name: str, task: Any, asking: Asking) -> tuple[dict[str, Any], dict[str, bytes]]:
    """lm-eval's results of one task: the answer with its values, and the file of items (empty on other ranks)."""
    from lm_eval import evaluator

    about = task.get_config("metadata") or {}
    template = asking.apply_chat_template and takes_template(task)
    started = time.perf_counter()
    with _without_bars():
        results = evaluator.evaluate(
            lm,
            {"tasks": {name: task}},
            limit=asking.limit or None,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    by_rank = _requests_by_rank(lm, task)
    if results is None:
        return {}, {}
    metrics = metrics_of(task)
    samples = results["samples"][name]
    rows = item_rows(samples, metrics, str(about.get("groups", "")))
    values = {key: value for key, value in results["results"][name].items() if isinstance(value, float | int)}
    filters = {row["filter"] for row in rows}
    answer = {
        "task": name,
        "version": about.get("version", ""),
        "items": len(rows) // max(1, len(filters)),
        "groups": str(about.get("groups", "")),
        "chat_template": bool(template),
        "num_fewshot": task.get_config("num_fewshot"),
        "metrics": [asdict(metric) for metric in metrics.values()],
        "values": {key: value for key, value in values.items() if "stderr" not in key and key != "sample_len"},
        "requests_by_rank": by_rank,
        "seconds": round(time.perf_counter() - started, 2),
        "model": facts_of(model, lm),
    }
    return answer, {ITEMS: to_parquet(rows)}


def _requests_by_rank(lm: Any, task: Any) -> list[int]:
    """How many of the task's requests each process had; all of them have to ask."""
    import torch

    own = len(task.instances)
    if lm.world_size == 1:
        return [own]
    counts: list[int] = lm.all_gather(torch.tensor([own], device=lm.device)).flatten().tolist()
    return counts


@contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval draws a bar for building each task's requests, which takes a second; ours is for the scoring."""
    import lm_eval.api.task as module

    before = module.tqdm
    module.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        module.tqdm = before


def _named(value: Any) -> str:
    """A stable name for what JSON does not know: never one with a memory address."""
    return getattr(value, "__qualname__", type(value).__qualname__)
