"""What later notebooks will ask, known before the first one starts: nothing may fail after a training is paid for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from nbutils.chat.settings import ChatSettings
from nbutils.core.chat_engine.window import FACTOR
from nbutils.core.errors import UserError
from nbutils.core.run.layout import is_run_model
from nbutils.core.run.models import TINY, context_length
from nbutils.core.tasks import check_known, own_tasks
from nbutils.evaluate.heldout import YAMLS
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.publish.settings import PublishSettings
from nbutils.train.settings import TrainSettings


def problems(plan: Plan, picked: Iterable[Planned]) -> Iterator[str]:
    """A sentence for each of the picked stages that would stop."""
    trained = next((entry.settings for entry in plan.stages if isinstance(entry.settings, TrainSettings)), None)
    for entry in picked:
        try:
            if check := CHECKS.get(type(entry.settings)):
                check(entry.settings, trained)
        except UserError as error:
            yield str(error)


def _evaluate(settings: EvaluateSettings, _: TrainSettings | None) -> None:
    check_known(settings.tasks, YAMLS | own_tasks(settings.task_path))


def _chat(settings: ChatSettings, trained: TrainSettings | None) -> None:
    if is_run_model(settings.model):
        longer = 1 if settings.extension()[0] == "none" else FACTOR
        _check_reply("max_new_tokens", settings.max_new_tokens, longer, trained)


def _publish(settings: PublishSettings, trained: TrainSettings | None) -> None:
    _check_reply("parity_tokens", settings.parity_tokens, FACTOR, trained)
    if settings.push and not settings.repo_id:
        raise UserError("push is on and repo_id is empty: give the Hub's name for the model, such as me/my-model.")


def _check_reply(name: str, tokens: int, longer: int, trained: TrainSettings | None) -> None:
    """UserError for a reply of more than half of the context; a base that cannot be had is training's to say."""
    if trained is None:
        return
    context = trained.max_length
    if trained.base_model != TINY:
        with suppress(UserError):
            context = context_length(trained.base_ref.config())
    if tokens > longer * context // 2:
        raise UserError(
            f"{name} is {tokens}, more than half of the {longer * context} tokens that the trained model can read; "
            f"choose at most {longer * context // 2}."
        )


CHECKS: dict[type, Any] = {EvaluateSettings: _evaluate, ChatSettings: _chat, PublishSettings: _publish}
