"""Asking lm-evaluation-harness: every task of every model, each answer kept as soon as it is there."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import metadata
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, replaced, resolve, sha256_of_json, write_json
from nbutils.core.hardware import Gpu, choose_precision
from nbutils.core.run.layout import Run
from nbutils.evaluate.compare import item_rows, metrics_of
from nbutils.evaluate.heldout import Conversation
from nbutils.evaluate.models import Model, facts_of, open_model
from nbutils.evaluate.settings import EvaluateSettings

ITEMS = "items.parquet"
CACHE_SCHEMA = 2
FEWSHOT_SEED = 1234
"""lm-eval's own default: the same examples in front of the items as everybody's."""
FOLDERS = re.compile(r"(?<![\w/:.~-])/(?:[^\s/]+/)*(?=[^\s/])")
"""The folders of an absolute path in a sentence."""


@dataclass(frozen=True)
class Scored:
    """One task of one model: lm-eval's `values` by metric, facts about the model, and the Parquet file of its items."""

    model: Model
    task: str
    answer: Json
    items: Path


@dataclass(frozen=True)
class Plan:
    """What is measured: settings, run folder, models, loaded tasks, held-out conversations and the run's tokenizer.

    `left_out`: what could not be made or measured, and why.
    """

    settings: EvaluateSettings
    run: Run
    models: list[Model]
    tasks: Json
    conversations: list[Conversation]
    tokenizer: Any
    gpus: tuple[Gpu, ...]
    left_out: dict[str, str]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.run.folder("evaluate")

    def cached(self, question: Any) -> Path:
        """The folder of a question's answer, whether it is there or not: named by all that the answer depends on.

        No answer is computed twice. A question is any JSON value, an answer a JSON value, and the items of a task.
        """
        return resolve(self.settings.cache_dir) / sha256_of_json({"schema": CACHE_SCHEMA, **question})[:24]

    def answer(self, question: Any) -> Any:
        """The answer, or None where there is none yet."""
        file = self.cached(question) / "answer.json"
        return read_json(file)["answer"] if file.is_file() else None

    def keep(self, question: Any, answer: Any, items: list[Json] | None = None) -> None:
        """Stores an answer at once or not at all."""
        with replaced(self.cached(question)) as folder:
            folder.mkdir(parents=True)
            if items is not None:
                pq.write_table(pa.Table.from_pylist(items), folder / ITEMS)
            write_json(folder / "answer.json", {"question": question, "answer": answer})

    @cached_property
    def asking(self) -> Json:
        """How all models of the table are asked."""
        asked = self.settings.model_dump(include={"limit", "num_fewshot", "apply_chat_template", "max_length"})
        return asked | {"precision": choose_precision(self.settings.eval_precision, self.gpus)}

    @cached_property
    def questions(self) -> dict[tuple[Model, str], Json]:
        """What the cache is asked for each task of each model, in the order of the table."""
        described = {name: _described(task, self.settings) for name, task in self.tasks.items()}
        return {
            (model, name): {
                "model": model.ref.identity(),
                "task": described[name],
                "asking": self.asking,
                "lm_eval": metadata.version("lm_eval"),
            }
            for model in self.models
            for name in self.tasks
        }

    def missing(self) -> list[tuple[Model, str]]:
        """The models and tasks to which the cache has no answer; of the same weights under two names only the first."""
        first: dict[Path, tuple[Model, str]] = {}
        for pair, question in self.questions.items():
            if self.answer(question) is None:
                first.setdefault(self.cached(question), pair)
        return list(first.values())

    def scored(self) -> list[Scored]:
        """The answers that are known by now."""
        return [
            Scored(*pair, answer, self.cached(question) / ITEMS)
            for pair, question in self.questions.items()
            if (answer := self.answer(question))
        ]


def score(plan: Plan, device: str, say: Callable[[str], None]) -> None:
    """Puts every answer that is missing into the cache, model by model; an interruption loses one task at most."""
    s = plan.settings
    for model, pairs in groupby(plan.missing(), key=itemgetter(0)):
        with noting(plan.left_out if model.role == "peer" else None, model.name):
            lm = open_model(model, device, s.max_length, plan.asking["precision"], s.tokens_per_batch)
            lm.say = say
            for _, name in pairs:
                with noting(plan.left_out, f"{name} of {model.name}"):
                    _ask(plan, model, lm, name)
            del lm


def takes_template(task: Any) -> bool:
    """Whether a chat template can be put around a task's items: not where they are ChatML already."""
    return not (task.get_config("metadata") or {}).get("is_chatml")


def _described(task: Any, settings: EvaluateSettings) -> Json:
    """What a task's results depend on: its whole configuration, and the text of its items."""
    config = {k: v for k, v in task.dump_config().items() if k not in ("dataset_kwargs", "dataset_path")}
    taken = list(task.task_docs)[: settings.limit or None]
    if settings.num_fewshot and task.get_config("num_fewshot"):
        taken += list(task.fewshot_docs() or [])
    # What JSON does not know has a stable name: never one with a memory address.
    stable = json.dumps(config, default=lambda value: getattr(value, "__qualname__", type(value).__qualname__))
    return {"config": json.loads(stable), "items": sha256_of_json(taken)}


def _ask(plan: Plan, model: Model, lm: Any, name: str) -> None:
    """Puts lm-eval's results of one task into the cache: the answer with its values, and the items."""
    import lm_eval.api.task
    from lm_eval import evaluator

    task = plan.tasks[name]
    about = task.get_config("metadata") or {}
    groups = about.get("groups", "")
    template = plan.settings.apply_chat_template and takes_template(task)
    started = time.perf_counter()
    # The same solved examples for every model and any number of processes: they are drawn item by item, in order.
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    few = min(len(task.eval_docs), plan.settings.limit or math.inf) < lm.state.num_processes
    lm.divide(not few and not task.get_config("num_fewshot"))
    # A bar for building the requests, which takes a second, would stay on the page; ours is for the scoring.
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    results = evaluator.evaluate(
        lm,
        {"tasks": {name: task}},
        limit=plan.settings.limit or None,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=template,
        fewshot_as_multiturn=template,
    )
    if not lm.state.is_main_process:
        return
    metrics = metrics_of(task)
    rows = item_rows(results["samples"][name], metrics, groups)
    answer = {
        "task": name,
        "version": about.get("version", ""),
        "items": len({row["doc_id"] for row in rows}),
        "groups": groups,
        "chat_template": template,
        "num_fewshot": task.get_config("num_fewshot"),
        "metrics": [asdict(metric) for metric in metrics.values()],
        "values": {k: v for k, v in results["results"][name].items() if k.partition(",")[0] in metrics},
        "model": facts_of(model, lm),
    }
    plan.keep(plan.questions[model, name], answer, rows)
    lm.say(f"{model.name} · {name}: {answer['items']:,} items in {time.perf_counter() - started:.1f} s")


@contextmanager
def noting(left_out: dict[str, str] | None, name: str) -> Iterator[None]:
    """Notes a UserError as the reason why something is left out; without `left_out` the error goes its way.

    The reason is published: of a path on this machine it keeps the last name.
    """
    try:
        yield
    except UserError as error:
        if left_out is None:
            raise
        left_out[name] = FOLDERS.sub("", str(error))


@contextmanager
def resumable(doing: Callable[[], str]) -> Iterator[None]:
    """Makes an interruption a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(
            f"Interrupted while {doing()}; what is finished is kept: run this cell again to go on."
        ) from None
