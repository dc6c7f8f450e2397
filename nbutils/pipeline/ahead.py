"""What later notebooks will ask, known before the first one starts: nothing may fail after a training is paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from nbutils.chat.settings import ChatSettings
from nbutils.core.chat_engine.window import FACTOR, can_extend
from nbutils.core.errors import UserError
from nbutils.core.hardware import nvidia_gpus
from nbutils.core.jupyter import quiet
from nbutils.core.network import hub_answers, offline
from nbutils.core.run.layout import Run, holds_model, is_run_model
from nbutils.core.run.models import TINY, ModelRef, context_length
from nbutils.core.tasks import check_known, dataset_of_tasks, load_tasks, own_tasks
from nbutils.evaluate.heldout import YAMLS
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.pipeline.fetch import need_hub, not_here, wanted_by
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.publish.push import check_push
from nbutils.publish.settings import PublishSettings
from nbutils.train.settings import TrainSettings, checked_precision, checked_trackers

SHORTEST_PROMPT = 16
"""Tokens that a held-out turn takes at least."""


def problems(plan: Plan, picked: Sequence[Planned]) -> list[str]:
    """A sentence for each thing over which one of the picked stages would stop.

    UserError at once where something that they take from the hub is not here and cannot be had.
    """
    trained = next((entry.settings for entry in plan.stages if isinstance(entry.settings, TrainSettings)), None)
    kept = trained is not None and holds_model(Run(plan.run).base)  # training goes on from that one
    wanting = [entry.settings for entry in picked if not (kept and entry.settings is trained)]
    for tasks in (False, True):  # what takes seconds comes last
        need_hub(not_here(wanted_by(wanting, tasks=tasks)), plan.profile)
    found = []
    for entry in picked:
        for check in CHECKS.get(type(entry.settings), ()):
            try:
                check(entry.settings, trained)
            except UserError as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def _trackers(settings: TrainSettings, _: object) -> None:
    if settings.report_to:
        checked_trackers(settings.report_to)


def _precision(settings: TrainSettings, _: object) -> None:
    if not nvidia_gpus():
        checked_precision(settings, ())


def _base(settings: TrainSettings, _: object) -> None:
    if settings.base_model != TINY:
        from nbutils.train.base import weightless_base  # imports torch

        weightless_base(settings)


def _tasks(settings: EvaluateSettings, _: object) -> None:
    own = own_tasks(settings.task_path)
    check_known(settings.tasks, YAMLS | own)
    if local := [name for name in settings.tasks if name in own and not dataset_of_tasks(name, own)]:
        quiet()  # imports `datasets`, as they do
        load_tasks(local, own)


def _peers(settings: EvaluateSettings, _: object) -> None:
    for peer in settings.peers:
        ModelRef.parse(peer).config()


def _reply_tokens(settings: EvaluateSettings, _: object) -> None:
    room = settings.max_length - SHORTEST_PROMPT
    if settings.reply_tokens > room:
        raise UserError(
            f"reply_tokens is {settings.reply_tokens}, which leaves no room for a prompt in max_length, "
            f"{settings.max_length} tokens; choose at most {room}."
        )


def _chat(settings: ChatSettings, trained: TrainSettings | None) -> None:
    extended = settings.extension()[0] != "none"
    for name in filter(None, (settings.model, settings.compare_with)):
        _check_reply("max_new_tokens", settings.max_new_tokens, name, extended, trained)


def _parity(settings: PublishSettings, trained: TrainSettings | None) -> None:
    _check_reply("parity_tokens", settings.parity_tokens, "final", True, trained)


def _push(settings: PublishSettings, _: object) -> None:
    if settings.push:
        check_push(settings)
        if not hub_answers():
            raise UserError(
                f"There is no way to push to {settings.repo_id}{offline()}: connect to a network, or set push to false "
                "and run notebook 06 again later."
            )


def _check_reply(name: str, tokens: int, model: str, extended: bool, trained: TrainSettings | None) -> None:
    """UserError for a reply of more than half of what the model reads at once, as the chat extends it or not."""
    if not is_run_model(model):
        context = _contexts(ModelRef.parse(model))[extended]
    elif trained is None:
        return
    else:
        context = trained.max_length * (FACTOR if extended else 1)
        if trained.base_model != TINY:
            kept = Run(trained.run_path).base
            with suppress(UserError):  # a base that cannot be had is training's to say
                context = _contexts(ModelRef.parse(str(kept)) if holds_model(kept) else trained.base_ref)[extended]
    if tokens > context // 2:
        raise UserError(
            f"{name} is {tokens}, more than half of the {context} tokens that the model {model} can read; choose at "
            f"most {context // 2}."
        )


@lru_cache
def _contexts(ref: ModelRef) -> tuple[int, int]:
    """Tokens that a model reads at once: as it was trained, and as the chat extends it."""
    import torch
    from transformers import AutoModelForCausalLM

    config = ref.config()
    with torch.device("meta"):
        extends = can_extend(AutoModelForCausalLM.from_config(config))
    return context_length(config), context_length(config) * (FACTOR if extends else 1)


CHECKS: dict[type, tuple[Callable[[Any, TrainSettings | None], None], ...]] = {
    TrainSettings: (_trackers, _precision, _base),
    EvaluateSettings: (_tasks, _peers, _reply_tokens),
    ChatSettings: (_chat,),
    PublishSettings: (_parity, _push),
}
