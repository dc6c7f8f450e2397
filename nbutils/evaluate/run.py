"""The stage's steps, as its notebook calls them: prepare, score, compare, measure behaviour, take samples, curve."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, read_jsonl, sha256_of_json, write_json, write_jsonl, write_text
from nbutils.core.hardware import choose_device, device_report, usable_gpus, visible_gpus
from nbutils.core.jupyter import quiet
from nbutils.core.origin.index import Index
from nbutils.core.run.layout import Run
from nbutils.core.run.models import context_length
from nbutils.core.tasks import load_tasks, own_tasks
from nbutils.core.torchrun import LOG, PROGRESS, Torchrun
from nbutils.evaluate.behaviour import PROMPTS, measure, sample_rows, user_turns
from nbutils.evaluate.compare import flagged_items
from nbutils.evaluate.context_curve import measure_curve, too_long_ids
from nbutils.evaluate.heldout import EMBEDDED, read_conversations, write_items, yamls
from nbutils.evaluate.memorised import PEOPLE, memorised
from nbutils.evaluate.models import Model, check_model, models_of_run
from nbutils.evaluate.report import comparison_markdown, results, shown_name
from nbutils.evaluate.score import Plan, Scored, noting, resumable, score, takes_template
from nbutils.evaluate.settings import EvaluateSettings

REPLIES = "replies.jsonl"
LONGEST_PROMPT = 256
"""Tokens of the longest beginning of a conversation whose reply is counted in the behaviour; longer ones take long."""
SMALL_PARAMETERS = 20_000_000
"""Parameters below which one CPU thread generates as fast as several."""


def prepare(settings: EvaluateSettings) -> Plan:
    """Makes the embedded tasks' items, loads all tasks, and lists the models: base, run, peers."""
    from transformers import AutoTokenizer

    _set_threads()
    quiet()
    run = Run(settings.run_path)
    folder = run.folder("evaluate")
    tokenizer = AutoTokenizer.from_pretrained(run.rows / "tokenizer")
    conversations = read_conversations(run.rows, tokenizer)
    tasks: Json = {}
    left_out: dict[str, str] = {}
    own = yamls(conversations) | own_tasks(settings.task_path)
    for name in settings.tasks:
        with noting(left_out, name):
            if name in EMBEDDED:
                write_items(folder, name, conversations, settings.selection_items, settings.split_seed)
            tasks |= load_tasks([name], own, data=folder)
    if not tasks:
        raise UserError(f"None of the tasks can be made: {' '.join(left_out.values())}")
    for task in tasks.values():  # as lm-eval's `simple_evaluate` does: a task that says 0 in its YAML stays at 0
        if task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
    template = settings.apply_chat_template and any(map(takes_template, tasks.values()))
    models = []
    for model in models_of_run(run, settings.peers):
        with noting(left_out if model.role == "peer" else None, model.name):
            check_model(model, max_length=settings.max_length, chat_template=template)
            models.append(model)
    return Plan(settings, run, models, tasks, conversations, tokenizer, visible_gpus(), left_out)


def score_all(plan: Plan, say: Callable[[str], None] = print) -> list[Scored]:
    """Every task of every model, through as many processes as the settings ask for; cached answers come at once.

    An interruption raises UserError; what was finished stays in the cache, and the next call goes on from there.
    """
    gpus = len(usable_gpus(plan.gpus))
    processes = plan.settings.processes or max(1, gpus)
    count, missing = len(plan.questions), len(plan.missing())
    if missing and 0 < gpus < processes:
        raise UserError(f"processes is {processes}, and the GPUs here are {gpus}: set it to {gpus}, or to 0.")
    with resumable(lambda: f"scoring ({count - len(plan.missing())} of {count} results are finished)"):
        if missing and processes > 1:
            say(f"scoring with {processes} processes")
            score_in_processes(plan, processes, say)
        elif missing:
            device, where = choose_device(device_report())
            say(f"scoring {where}")
            score(plan, device, say)
    scored = plan.scored()
    say(f"{len(scored)} results: {missing - len(plan.missing())} computed now, {count - missing} known from before")
    measured = {result.model.name for result in scored}
    if "run" not in measured:
        raise UserError(f"None of the tasks could be scored: {plan.left_out}")
    plan.models[:] = [model for model in plan.models if model.name in measured]
    return scored


def score_in_processes(plan: Plan, processes: int, say: Callable[[str], None]) -> None:
    """`score` by `nbutils.evaluate.worker` under torchrun: lm-eval shards each task's items by rank.

    UserError with a worker's own sentence, or with the end of its log. An interruption ends the workers first.
    """
    request = plan.folder / "worker.json"
    write_json(request, plan.settings.model_dump(mode="json"))
    program = Torchrun("nbutils.evaluate.worker", request, processes, activity="Scoring", knob="tokens_per_batch")
    try:
        with closing(program.events()) as events:
            for event in events:
                plan.left_out.update(event.get("left_out", {}))
                if "text" in event:
                    say(event["text"])
        (plan.folder / LOG).unlink()
    finally:
        request.unlink()
        (plan.folder / PROGRESS).unlink(missing_ok=True)


def compare(plan: Plan, scored: Sequence[Scored]) -> Json:
    """Scores with intervals and paired differences; keeps the items in the run, writes `results.json`."""
    (plan.folder / "items").mkdir(parents=True, exist_ok=True)
    for result in scored:
        name = f"{result.model.name.replace('/', '__')}--{result.task}.parquet"
        shutil.copyfile(result.items, plan.folder / "items" / name)
    flagged = flagged_items(plan.run.rows / "ledger.parquet", plan.tasks)
    found = results(plan, scored, flagged)
    write_json(plan.folder / "results.json", found)
    write_text(plan.folder / "comparison.md", comparison_markdown(found))
    return found


def measure_behaviour(plan: Plan) -> Json:
    """Behaviour of every chat model on the same held-out user turns, added to `results.json`.

    Their replies and those of the people are written to `replies.jsonl`, which is not published.
    """
    s = plan.settings
    room = min(s.max_length - s.reply_tokens, LONGEST_PROMPT)
    found: Json = {"models": {}, "left_out": {}, "max_new_tokens": s.reply_tokens}
    answered = user_turns(plan.conversations, plan.tokenizer, s.behaviour_prompts, room, s.split_seed)
    prompts, texts = [messages[:-1] for messages in answered], [messages[-1]["content"] for messages in answered]
    said = {(PEOPLE, ""): texts}
    for model in plan.models if prompts else []:
        question, measured = {"replies": sha256_of_json(prompts)}, partial(measure, prompts=prompts)
        answer = _measured(plan, model, question, measured, max_new_tokens=s.reply_tokens)
        found["left_out" if "left_out" in answer else "models"][model.name] = answer
        if "left_out" not in answer:
            said |= {(model.name, decoding): figures.pop("texts") for decoding, figures in answer.items()}
    rows = (
        {"model": model, "decoding": decoding, "prompt": prompt[-1]["content"], "reply": reply}
        for (model, decoding), replies in said.items()
        for prompt, reply in zip(prompts, replies, strict=True)
    )
    write_jsonl(plan.folder / REPLIES, rows)
    _add(plan.folder, "behaviour", found)
    return found


def measure_memorised(plan: Plan) -> Json:
    """How much of the replies in `replies.jsonl` stands word for word in the training rows, added to `results.json`.

    Where there are no such rows, or no index of them can be made, `left_out` says why.
    """
    found: Json = {}
    with noting(found, "left_out"):
        index = Index(plan.run)
        found = memorised(read_jsonl(plan.folder / REPLIES), index, plan.settings.resamples, plan.settings.seed)
    _add(plan.folder, "memorised", found)
    return found


def take_samples(plan: Plan) -> list[Json]:
    """Replies of the run's model and of its base to the reference card's prompts, written to `samples.jsonl`."""
    rows: list[Json] = []
    for model in reversed([m for m in plan.models if m.role != "peer"]):
        tokens = plan.settings.reply_tokens
        answer = _measured(plan, model, {"samples": PROMPTS}, sample_rows, max_new_tokens=tokens)
        rows += [{"model": model.name} | row for row in answer]
    write_jsonl(plan.folder / "samples.jsonl", rows)
    return rows


def curve(plan: Plan) -> Json | None:
    """The context curve of the run's model, added to `results.json`; None where it cannot be measured."""
    s = plan.settings
    if not s.context_curve:
        return None
    model = next(m for m in plan.models if m.role == "run")
    rows = too_long_ids(plan.run.rows, s.context_curve, context_length(model.ref.config()), s.seed)

    def measured(loaded: Any, _tokenizer: Any, **options: int) -> Json | None:
        _set_threads()  # two thousand tokens at once keep all cores busy, also of a small model
        return measure_curve(loaded, rows, **options)

    question = {"context_curve": sha256_of_json(rows)}
    found = _measured(plan, model, question, measured, resamples=s.resamples)
    if found is not None:
        _add(plan.folder, "context_curve", found)
    return found


def _measured(plan: Plan, model: Model, question: Json, measure: Callable[..., Any], **options: int) -> Any:
    """What is measured of a model in memory; known from the cache, or found now."""
    options["seed"] = plan.settings.seed
    question = question | options | {"model": model.ref.identity()}
    answer = plan.answer(question)
    if answer is None:
        with resumable(lambda: f"{shown_name(model.name)} was measured"):
            answer = measure(*load_to_generate(model), **options)
        plan.keep(question, answer)
    return answer


def load_to_generate(model: Model) -> tuple[Any, Any]:
    """Model and tokenizer for generation, on the best device, with the tokenizer as its makers left it.

    torch gets one thread for a small model: sharing out its operations takes longer than doing them.
    """
    device, _ = choose_device(device_report())
    loaded = model.ref.load().to(device).eval()
    _set_threads(1 if loaded.num_parameters() < SMALL_PARAMETERS else 0)
    return loaded, model.ref.raw_tokenizer()


def _set_threads(count: int = 0) -> None:
    """Threads of torch: so many, or as the environment says, or all cores, of which it takes but half by itself."""
    import torch

    torch.set_num_threads(count or int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


def _add(folder: Path, name: str, value: Any) -> None:
    path = folder / "results.json"
    write_json(path, read_json(path) | {name: value})


def in_short(found: Json) -> str:
    """The first difference in a line, for the pipeline's table."""
    if not found["paired"]:
        return f"{len(found['scores'])} scores"
    first = found["paired"][0]
    return f"{first['metric']} against {shown_name(first['reference'])}: {first['word']}"
