"""The stage's steps, as its notebook calls them: prepare, score, compare, watch the model talk, write down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_json, write_json, write_text
from nbutils.core.hardware import Gpu, choose_device, choose_precision, device_report, usable_gpus, visible_gpus
from nbutils.core.jupyter import quiet
from nbutils.core.run.models import context_length
from nbutils.evaluate.behaviour import measure, speaks_chatml, user_turns
from nbutils.evaluate.cache import Cache
from nbutils.evaluate.compare import TOO_FEW
from nbutils.evaluate.contamination import flagged_items
from nbutils.evaluate.context_curve import measure_curve, too_long_ids
from nbutils.evaluate.heldout import Conversation, read_conversations, write_items
from nbutils.evaluate.loading import load_tasks
from nbutils.evaluate.models import Model, check_models, models_of_run
from nbutils.evaluate.processes import fill_cache
from nbutils.evaluate.report import NAMES, comparison_markdown, keep_items, results
from nbutils.evaluate.samples import sample_rows
from nbutils.evaluate.score import (
    Asking,
    Counter,
    Scored,
    collected,
    kept_when_interrupted,
    questions_of,
    score,
    takes_template,
    unanswered,
)
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.evaluate.tasks import EMBEDDED

if TYPE_CHECKING:
    from nbutils.core.run.stage import Stage


LONGEST_PROMPT = 256
"""Tokens of the longest beginning of a conversation whose reply is counted in the behaviour; longer ones take long."""
SMALL_PARAMETERS = 20_000_000
"""Parameters below which one CPU thread generates as fast as several."""


@dataclass(frozen=True)
class Plan:
    """What is measured: settings, folders, models, loaded tasks, held-out conversations and the run's tokenizer."""

    settings: EvaluateSettings
    folder: Path
    data: Path
    trained: Path
    models: list[Model]
    tasks: dict[str, Any]
    conversations: list[Conversation]
    tokenizer: Any
    cache: Cache
    gpus: tuple[Gpu, ...] = ()

    @property
    def asking(self) -> Asking:
        """How all models are asked."""
        s = self.settings
        precision = choose_precision(s.eval_precision, self.gpus)
        return Asking(s.limit, s.num_fewshot, s.apply_chat_template, s.max_length, precision)


def prepare(stage: Stage) -> Plan:
    """Makes the embedded tasks' items, loads all tasks, and lists the models: base, run, peers."""
    return plan(stage.settings, stage.folder, stage.layout.rows, stage.trained_model())


def plan(settings: Any, folder: Path, data: Path, trained: Path) -> Plan:
    """`prepare` for given folders: the stage's own, the data stage's, and that of the trained model."""
    from transformers import AutoTokenizer

    _set_threads()
    quiet()
    heldout = folder / "heldout"
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    conversations = read_conversations(data, tokenizer)
    if not set(EMBEDDED).isdisjoint(settings.tasks):
        write_items(heldout, conversations, settings.selection_items, settings.split_seed)
    tasks = load_tasks(settings.tasks, task_path=settings.task_path, num_fewshot=settings.num_fewshot, heldout=heldout)
    models = models_of_run(folder.parent, trained, settings.peers)
    template = settings.apply_chat_template and any(map(takes_template, tasks.values()))
    check_models(models, max_length=settings.max_length, chat_template=template)
    cache, gpus = Cache(settings.cache_dir), visible_gpus()
    return Plan(settings, folder, data, trained, models, tasks, conversations, tokenizer, cache, gpus)


def score_all(plan: Plan, counter: Counter | None = None, say: Callable[[str], None] = print) -> list[Scored]:
    """Every task of every model, through as many processes as the settings ask for; cached answers come at once."""
    gpus = len(usable_gpus(plan.gpus))
    processes = plan.settings.processes or max(1, gpus)
    questions = questions_of(plan.models, plan.tasks, plan.asking)
    fresh = unanswered(questions, plan.cache)
    if fresh and 0 < gpus < processes:
        raise UserError(f"processes is {processes}, and the GPUs here are {gpus}: set it to {gpus}, or to 0.")
    if fresh and processes > 1:
        say(f"scoring with {processes} processes")
        with kept_when_interrupted(questions, plan.cache):
            fill_cache(plan.settings, plan.folder, plan.data, plan.trained, processes, say)
    elif fresh:
        device, where = choose_device(device_report())
        say(f"scoring {where}")
        budget = plan.settings.tokens_per_batch
        asked = (plan.models, plan.tasks, plan.asking, plan.cache)
        score(*asked, device=device, tokens_per_batch=budget, counter=counter, say=say)
    say(f"{len(questions)} results: {len(fresh)} computed now, {len(questions) - len(fresh)} known from before")
    return collected(questions, plan.cache, fresh)


def compare(plan: Plan, scored: Sequence[Scored]) -> dict[str, Any]:
    """Scores with intervals and paired differences; keeps the items in the run, writes `results.json`."""
    keep_items(scored, plan.folder / "items")
    flagged = flagged_items(plan.data / "ledger.parquet", plan.tasks)
    found = results(scored, plan.asking, plan.settings.resamples, plan.settings.seed, flagged)
    write_json(plan.folder / "results.json", found)
    write_text(plan.folder / "comparison.md", comparison_markdown(found))
    return found


def measure_behaviour(plan: Plan) -> dict[str, Any]:
    """Behaviour of every chat model on the same held-out user turns, added to `results.json`."""
    s = plan.settings
    room = min(s.max_length - s.reply_tokens, LONGEST_PROMPT)
    found: dict[str, Any] = {"models": {}, "left_out": {}, "max_new_tokens": s.reply_tokens}
    prompts = user_turns(plan.conversations, plan.tokenizer, s.behaviour_prompts, room, s.split_seed)
    for model in plan.models if prompts else []:
        question = {"behaviour": sha256_of_json(prompts), "max_new_tokens": s.reply_tokens, "seed": s.seed,
                    "model": model.ref.identity()}  # fmt: skip
        answer = plan.cache.get(question)
        if answer is None:
            with _resumable(f"{NAMES.get(model.name, model.name)} replied"):
                loaded, tokenizer = opened(model)
                if speaks_chatml(tokenizer):
                    answer = measure(loaded, tokenizer, prompts, max_new_tokens=s.reply_tokens, seed=s.seed)
                else:
                    answer = {"left_out": "its tokenizer has no ChatML tokens"}
            plan.cache.put(question, answer)
        found["left_out" if "left_out" in answer else "models"][model.name] = answer
    _add(plan.folder, "behaviour", found)
    return found


def take_samples(plan: Plan) -> list[dict[str, Any]]:
    """Replies of the run's model and of its base to the reference card's prompts, written to `samples.jsonl`."""
    import json

    s = plan.settings
    rows: list[dict[str, Any]] = []
    for model in sorted((m for m in plan.models if m.role != "peer"), key=lambda m: m.role != "run"):
        question = {"samples": model.ref.identity(), "max_new_tokens": s.reply_tokens, "seed": s.seed}
        answer = plan.cache.get(question)
        if answer is None:
            with _resumable(f"{NAMES.get(model.name, model.name)} replied"):
                loaded, tokenizer = opened(model)
                answer = sample_rows(model.name, loaded, tokenizer, max_new_tokens=s.reply_tokens, seed=s.seed)
            plan.cache.put(question, answer)
        rows += [row | {"model": model.name} for row in answer]
    write_text(plan.folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def curve(plan: Plan) -> dict[str, Any] | None:
    """The context curve of the run's model, added to `results.json`; None where it cannot be measured."""
    s = plan.settings
    if not s.context_curve:
        return None
    model = next(m for m in plan.models if m.role == "run")
    with _resumable("the context curve was measured"):
        loaded, _ = opened(model)
        _set_threads()  # two thousand tokens at once keep all cores busy, also of a small model
        rows = too_long_ids(plan.data, s.context_curve, context_length(loaded), s.seed)
        question = {"context_curve": sha256_of_json(rows), "resamples": s.resamples, "seed": s.seed,
                    "model": model.ref.identity()}  # fmt: skip
        found: dict[str, Any] | None = plan.cache.get(question)
        if found is None:
            found = measure_curve(loaded, rows, resamples=s.resamples, seed=s.seed)
    if found is not None:
        plan.cache.put(question, found)
        _add(plan.folder, "context_curve", found)
    return found


def opened(model: Model) -> tuple[Any, Any]:
    """Model and tokenizer for generation, on the best device, with the tokenizer as its makers left it.

    torch gets one thread for a small model: sharing out its operations takes longer than doing them.
    """
    import torch

    device, _ = choose_device(device_report())
    loaded = model.ref.load().to(device).eval()
    torch.set_num_threads(1 if loaded.num_parameters() < SMALL_PARAMETERS else os.cpu_count() or 1)
    return loaded, model.ref.raw_tokenizer()


@contextmanager
def _resumable(what: str) -> Iterator[None]:
    """Makes an interruption a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(
            f"Interrupted while {what}; what was finished before is kept: run this cell again to go on."
        ) from None


def _set_threads() -> None:
    """All cores for torch: a notebook's kernel may have been started with fewer."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)


def _add(folder: Path, name: str, value: Any) -> None:
    path = folder / "results.json"
    write_json(path, {**(read_json(path) if path.is_file() else {}), name: value})


def in_short(found: Mapping[str, Any]) -> str:
    """The first difference in a line, for the pipeline's table."""
    if not found["paired"]:
        return f"{len(found['scores'])} scores"
    first = found["paired"][0]
    other = "the base" if first["reference"] == "base" else first["reference"]
    link = {TOO_FEW: "to compare with", "not distinguishable": "from"}.get(first["word"], "than")
    return f"{first['metric']} {first['word']} {link} {other}"
