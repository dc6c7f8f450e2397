"""What later notebooks will ask, known before the first one starts: nothing may fail after a training is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nbutils.chat.settings import ChatSettings
from nbutils.core.chat_engine.window import FACTOR, can_extend
from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.hardware import nvidia_gpus
from nbutils.core.jupyter import quiet
from nbutils.core.network import hub_answers, offline
from nbutils.core.run.layout import Run, holds_model, is_run_model
from nbutils.core.run.models import TINY, ModelRef, context_length
from nbutils.core.settings import Settings
from nbutils.core.tasks import check_known, dataset_of_tasks, load_tasks, own_tasks
from nbutils.data.settings import DataSettings
from nbutils.data.sources import open_source
from nbutils.evaluate.heldout import YAMLS
from nbutils.evaluate.models import Model, check_model
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import read_history
from nbutils.pipeline.fetch import need_hub, not_here, wanted_by
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.publish.page.make import check_page, check_size
from nbutils.publish.push import check_push
from nbutils.publish.settings import HUB_ID, KINDS, PublishSettings
from nbutils.train.settings import TrainSettings, checked_precision, checked_trackers

SHORTEST_PROMPT = 16
"""Tokens that a held-out turn takes at least."""


def problems(plan: Plan, picked: Sequence[Planned]) -> list[str]:
    """A sentence for each thing over which one of the picked stages would stop.

    UserError at once where something that they take from the hub is not here and cannot be had.
    """
    trained = next((entry.settings for entry in plan.stages if isinstance(entry.settings, TrainSettings)), None)
    kept = holds_model(Run(plan.run).base)  # training goes on from that one
    wanting = [entry.settings for entry in picked if not (kept and entry.settings is trained)]
    for tasks in (False, True):  # what takes seconds comes last
        need_hub(not_here(wanted_by(wanting, tasks=tasks)), plan.profile)
    quiet()  # imports `datasets`, as some of the checks do
    found = []
    for entry in picked:
        for check, *values in asks(entry.settings, trained):
            try:
                check(*values)
            except UserError as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def asks(settings: Settings, trained: TrainSettings | None) -> Iterator[Any]:
    """Functions with their arguments: each raises UserError over what would stop a stage with these settings."""
    match settings:
        case DataSettings():
            yield check_known, settings.contamination_tasks, own_tasks(settings.task_path)
            on_hub = {item.name for item in wanted_by([settings])}
            for spec in settings.datasets:
                if spec.path not in on_hub or not HUB_ID.fullmatch(spec.path):
                    yield open_source, spec, settings.streaming
        case TrainSettings():
            if settings.report_to:
                yield checked_trackers, settings.report_to
            if not nvidia_gpus():
                yield checked_precision, settings, ()
            if settings.base_model != TINY:
                from nbutils.train.base import weightless_base  # imports torch

                yield weightless_base, settings
        case EvaluateSettings():
            yield _tasks, settings
            for name in settings.peers:
                yield _peer, name, settings
            yield _reply_tokens, settings
        case MetricsSettings():
            for run in settings.compare_runs:
                yield read_history, resolve(run)
        case ChatSettings():
            yield _talk, settings, trained
        case PublishSettings():
            yield _room, "parity_tokens", settings.parity_tokens, "final", True, trained
            if settings.page or settings.push_page:
                yield check_page, settings
            if settings.push or settings.push_page:
                yield _push, settings
            if settings.gguf and trained and trained.base_model != TINY:
                yield _gguf, settings, trained


def _tasks(settings: EvaluateSettings) -> None:
    own = own_tasks(settings.task_path)
    check_known(settings.tasks, YAMLS | own)
    load_tasks([name for name in settings.tasks if name in own and not dataset_of_tasks(name, own)], own)


def _peer(name: str, settings: EvaluateSettings) -> None:
    if name == TINY or is_run_model(name):
        raise UserError(f"peers holds '{name}': a run's own models are compared anyway; give others.")
    model = Model(name, "peer", ModelRef.parse(name))
    check_model(model, max_length=settings.max_length, chat_template=settings.apply_chat_template)


def _reply_tokens(settings: EvaluateSettings) -> None:
    room = settings.max_length - SHORTEST_PROMPT
    if settings.reply_tokens > room:
        raise UserError(
            f"reply_tokens is {settings.reply_tokens}, which leaves no room for a prompt in max_length, "
            f"{settings.max_length} tokens; choose at most {room}."
        )


def _talk(settings: ChatSettings, trained: TrainSettings | None) -> None:
    extended, made = settings.extension()[0] != "none", Run(settings.run_path).rows / "tokenizer"
    for name in filter(None, (settings.model, settings.compare_with)):
        room = _room("max_new_tokens", settings.max_new_tokens, name, extended, trained)
        if room and is_run_model(name) and made.is_dir():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(made)
            for text in settings.scripted_messages:
                tokens = len(encode(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True))
                if tokens > room:
                    raise UserError(
                        f"A message of scripted_messages takes {tokens} tokens, and {name} can read {room} beside a "
                        f"reply: shorten '{text[:40]}…', or lower max_new_tokens."
                    )


def _push(settings: PublishSettings) -> None:
    check_push(settings)
    if not hub_answers():
        raise UserError(
            f"There is no way to push to {settings.repo_id}{offline()}: connect to a network, or leave that out and "
            "run notebook 06 again later."
        )


def _gguf(settings: PublishSettings, trained: TrainSettings) -> None:
    from nbutils.publish.gguf_export import check_convertible
    from nbutils.publish.gguf_writer import bytes_of
    from nbutils.train.base import weightless_base

    check_convertible(_base(trained))
    if settings.page:
        kind = max(settings.gguf, key=KINDS.index)  # the page takes the smaller one
        check_size(f"The model as {kind.upper()}", bytes_of(weightless_base(trained).num_parameters(), kind))


def _base(trained: TrainSettings) -> ModelRef:
    """The base of a training: the run's copy where there is one."""
    kept = Run(trained.run_path).base
    return ModelRef.parse(str(kept)) if holds_model(kept) else trained.base_ref


def _room(name: str, tokens: int, model: str, extended: bool, trained: TrainSettings | None) -> int:
    """The tokens that a model can read beside a reply of so many, as the chat extends it or not; 0 if not known.

    UserError where the reply is more than half of what it reads at once, and for a checkpoint that training won't save.
    """
    if not is_run_model(model):
        context = _context(ModelRef.parse(model), extended)
    elif trained is None:
        return 0
    else:
        run, every, step = Run(trained.run_path), trained.checkpoint_steps, model.partition("-")[2]
        if step and model not in run.models() and (not every or int(step) % every):
            raise UserError(f"There will be no {model} for the chat to load: checkpoint_steps is {every}.")
        context = trained.max_length * FACTOR**extended
        if trained.base_model != TINY:
            context = _context(_base(trained), extended)
    if tokens > context // 2:
        raise UserError(
            f"{name} is {tokens}, more than half of the {context} tokens that the model {model} can read; choose at "
            f"most {context // 2}."
        )
    return context - tokens


def _context(ref: ModelRef, extended: bool) -> int:
    """Tokens that a model reads at once, as the chat extends it or as it was trained.

    UserError where it can't be built, or a folder's weights are not those of its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = ref.config()
    try:
        with torch.device("meta"):
            folder = ref.path and not ref.gguf
            extended &= can_extend(ref.load("meta") if folder else AutoModelForCausalLM.from_config(config))
    except UserError:
        raise
    except Exception as error:  # an architecture's own check of its sizes, or none that writes text
        raise ref.unreadable(error) from error
    return context_length(config) * FACTOR**extended
