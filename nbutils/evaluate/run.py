"""The stage's steps, as its notebook calls them: prepare, score, compare, watch the model talk, write down."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_json, write_json, write_text
from nbutils.core.hardware import choose_device, choose_precision, device_report, nvidia_gpus, usable_gpus
from nbutils.evaluate.behaviour import measure, speaks_chatml, user_turns
from nbutils.evaluate.cache import Cache
from nbutils.evaluate.contamination import flagged_items
from nbutils.evaluate.context_curve import measure_curve
from nbutils.evaluate.figures import context_figure, save, scores_figure
from nbutils.evaluate.heldout import Conversation, read_conversations, write_items
from nbutils.evaluate.loading import load_tasks
from nbutils.evaluate.models import Model, identity, models_of_run
from nbutils.evaluate.report import comparison_markdown, keep_items, results
from nbutils.evaluate.samples import sample_rows
from nbutils.evaluate.score import Asking, Scored, score
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.evaluate.tasks import EMBEDDED

if TYPE_CHECKING:
    from nbutils.core.stage import Stage


LONGEST_PROMPT = 256
"""Tokens of the longest beginning of a conversation whose reply is counted in the behaviour; longer ones take long."""
SMALL_PARAMETERS = 20_000_000
"""Parameters below which one CPU thread generates as fast as several."""


@dataclass(frozen=True)
class Plan:
    """What is measured: settings, folders, models, loaded tasks, held-out conversations."""

    settings: EvaluateSettings
    folder: Path
    data: Path
    trained: Path
    models: list[Model]
    tasks: dict[str, Any]
    conversations: list[Conversation]
    cache: Cache

    @property
    def asking(self) -> Asking:
        """How all models are asked."""
        s = self.settings
        precision = choose_precision(s.eval_precision, nvidia_gpus())
        return Asking(s.limit, s.num_fewshot, s.apply_chat_template, s.max_length, precision)


def prepare(stage: Stage) -> Plan:
    """Makes the embedded tasks' items, loads all tasks, and lists the models: base, run, peers."""
    return plan(stage.settings, stage.folder, stage.upstream("data"), stage.trained_model())


def plan(settings: Any, folder: Path, data: Path, trained: Path) -> Plan:
    """`prepare` for given folders: the stage's own, the data stage's, and that of the trained model."""
    from transformers import AutoTokenizer

    _set_threads()
    _without_loading_bars()
    heldout = folder / "heldout"
    conversations = read_conversations(data, AutoTokenizer.from_pretrained(data / "tokenizer"))
    if not set(EMBEDDED).isdisjoint(settings.tasks):
        write_items(heldout, conversations, settings.selection_items, settings.split_seed)
    tasks = load_tasks(settings.tasks, task_path=settings.task_path, num_fewshot=settings.num_fewshot, heldout=heldout)
    models = models_of_run(folder.parent, trained, settings.peers)
    return Plan(settings, folder, data, trained, models, tasks, conversations, Cache(settings.cache_dir))


def score_all(plan: Plan, say: Callable[[str], None] = print) -> list[Scored]:
    """Every task of every model, through as many processes as the settings ask for; cached answers come at once."""
    processes = plan.settings.processes or max(1, len(usable_gpus(nvidia_gpus())))
    if processes > 1:
        _score_in_processes(plan, processes)
    device, where = choose_device(device_report())
    say(f"scoring {where}" + (f", with {processes} processes" if processes > 1 else ""))
    scored = score(
        plan.models,
        plan.tasks,
        plan.asking,
        plan.cache,
        device=device,
        tokens_per_batch=plan.settings.tokens_per_batch,
        say=say,
    )
    fresh = sum(not s.cached for s in scored)
    say(f"{len(scored)} results: {fresh} computed now, {len(scored) - fresh} known from before")
    return scored


def compare(plan: Plan, scored: Sequence[Scored]) -> dict[str, Any]:
    """Scores with intervals and paired differences; keeps the items in the run, writes `results.json` and figures."""
    keep_items(scored, plan.folder / "items")
    flagged = flagged_items(plan.data / "ledger.parquet", plan.tasks)
    found = results(scored, plan.asking, plan.settings.resamples, plan.settings.seed, flagged)
    write_json(plan.folder / "results.json", found)
    write_text(plan.folder / "comparison.md", comparison_markdown(found))
    save(lambda theme: scores_figure(found["scores"], found["models"], theme), plan.folder / "figures", "scores")
    return found


def watch(plan: Plan) -> dict[str, Any]:
    """Behaviour of every chat model on held-out user turns, added to `results.json`."""
    s = plan.settings
    room = min(s.max_length - s.reply_tokens, LONGEST_PROMPT)
    found: dict[str, Any] = {"models": {}, "left_out": {}, "max_new_tokens": s.reply_tokens}
    prompts: list[list[dict[str, str]]] = []
    for model in plan.models if s.behaviour_prompts else []:
        question = {
            "behaviour": s.behaviour_prompts, "max_new_tokens": s.reply_tokens, "room": room, "seed": s.seed,
            "conversations": _hash_of(plan.conversations), "split_seed": s.split_seed, "model": identity(model),
        }  # fmt: skip
        answer = plan.cache.get(question)
        if answer is None:
            loaded, tokenizer = opened(model)
            if speaks_chatml(tokenizer):
                prompts = prompts or user_turns(plan.conversations, tokenizer, s.behaviour_prompts, room, s.split_seed)
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
        question = {"samples": identity(model), "max_new_tokens": s.reply_tokens, "seed": s.seed}
        answer = plan.cache.get(question)
        if answer is None:
            loaded, tokenizer = opened(model)
            answer = sample_rows(model.name, loaded, tokenizer, max_new_tokens=s.reply_tokens, seed=s.seed)
            plan.cache.put(question, answer)
        rows += answer
    write_text(plan.folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def curve(plan: Plan) -> dict[str, Any] | None:
    """The context curve of the run's model, added to `results.json` and drawn; None where it cannot be measured."""
    if not plan.settings.context_curve:
        return None
    model = next(m for m in plan.models if m.role == "run")
    found = measure_curve(opened(model)[0], plan.data, plan.settings.context_curve)
    if found is not None:
        _add(plan.folder, "context_curve", found)
        save(lambda theme: context_figure(found, theme), plan.folder / "figures", "context_curve")
    return found


def opened(model: Model) -> tuple[Any, Any]:
    """Model and tokenizer for generation, on the best device, with the tokenizer as its makers left it.

    torch gets one thread for a small model: sharing out its operations takes longer than doing them.
    """
    import torch

    from nbutils.core.models import load_model, raw_tokenizer

    path = str(model.path) if model.path.exists() else model.source
    device, _ = choose_device(device_report())
    loaded = load_model(path, model.revision).to(device).eval()
    torch.set_num_threads(1 if loaded.num_parameters() < SMALL_PARAMETERS else os.cpu_count() or 1)
    return loaded, raw_tokenizer(path, model.revision)


def _score_in_processes(plan: Plan, processes: int) -> None:
    """Fills the cache through torchrun: lm-eval shards the items by rank, and the first rank keeps the answers."""
    import subprocess

    request = plan.folder / "worker.json"
    write_json(request, {"settings": plan.settings.model_dump(mode="json"), "folder": str(plan.folder),
                         "data": str(plan.data), "trained": str(plan.trained)})  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "nbutils.evaluate.worker", str(request)]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    finally:
        request.unlink(missing_ok=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "UserError: " in line]
        if lines:
            raise UserError(lines[0].partition("UserError: ")[2])
        write_text(plan.folder / "worker.log", done.stdout)
        raise UserError(f"Scoring with {processes} processes failed; its log is {plan.folder / 'worker.log'}.")


def _set_threads() -> None:
    """All cores for torch: a notebook's kernel may have been started with fewer."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)


def _without_loading_bars() -> None:
    """No bars for reading a file: each takes under a second, and stays on the page for good."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _add(folder: Path, name: str, value: Any) -> None:
    path = folder / "results.json"
    write_json(path, {**(read_json(path) if path.is_file() else {}), name: value})


def _hash_of(conversations: Sequence[Conversation]) -> str:
    return sha256_of_json([asdict(conversation) for conversation in conversations])


def in_short(found: Mapping[str, Any]) -> str:
    """The first difference in a line, for the pipeline's table."""
    if not found["paired"]:
        return f"{len(found['scores'])} scores"
    first = found["paired"][0]
    return (
        f"{first['metric']} {first['word']} than {'the base' if first['reference'] == 'base' else first['reference']}"
    )
