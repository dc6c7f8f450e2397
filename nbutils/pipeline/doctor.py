"""`python -m nbutils doctor`: checks machine, parameters, data and model before an hour is spent."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.record import stage_status
from nbutils.pipeline.arguments import add_overrides, add_run_dir, profile_path

DEFAULT = "params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `doctor`."""
    parser.add_argument(
        "profile", metavar="PROFILE", nargs="?", default=DEFAULT, help=f"a YAML file of parameters (default: {DEFAULT})"
    )
    add_overrides(parser)
    add_run_dir(parser)
    parser.add_argument(
        "--overfit",
        action="store_true",
        help="also learn four short conversations by heart with the real training processes (a minute or so)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Prints every finding, problems last; the exit status is 1 where one of them would stop a run."""
    from nbutils.core.jupyter import quiet
    from nbutils.train.preflight import LATER, STOP

    quiet()
    problems, later = [], False
    for finding in findings(arguments):
        mark = finding.level.upper() if finding.level == STOP else finding.level
        print(f"{mark:>6}  {finding.text}", flush=True)
        if finding.level == STOP:
            problems.append(finding.text)
        later = later or finding.level == LATER
    if not problems:
        print("Nothing stands against this run" + (", as far as it can be checked yet." if later else "."))
        return 0
    print(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''} would stop this run or spoil it:")
    for number, text in enumerate(problems, start=1):
        print(f"  {number}. {text}")
    return 1


def findings(arguments: argparse.Namespace) -> Iterator[Any]:
    """Every finding, as it is made; a check that fails says so and the others go on."""
    from nbutils.pipeline.parameters import plan
    from nbutils.train.preflight import FINE, LATER, STOP, Finding
    from nbutils.train.settings import TrainSettings

    profile = profile_path(arguments.profile)
    try:
        planned = plan(profile, arguments.overrides, arguments.run_dir)
        settings = next(entry.settings for entry in planned.stages if entry.stage.name == "train")
    except UserError as error:
        yield Finding(STOP, str(error))
        yield Finding(LATER, "Nothing else can be checked until the parameters are right.")
        return
    assert isinstance(settings, TrainSettings)
    yield Finding(FINE, f"Every parameter of {shown(profile)} is known and in its range.")
    yield from _of_the_run(settings)
    if arguments.overfit:
        yield from _overfit(settings)


def _of_the_run(settings: Any) -> Iterator[Any]:
    from nbutils.train import preflight
    from nbutils.train.options import checked_options, checked_trackers
    from nbutils.train.preflight import FINE, LATER, Finding

    data = settings.run_path / "data"
    ready = stage_status(settings.run_path, "data") == "done" or (data / "summary.json").is_file()
    yield from _tried(lambda: checked_options(settings.trainer_options))[1]
    yield from _tried(lambda: checked_trackers(settings.report_to))[1]
    machine, problem = _tried(lambda: preflight.this_machine(settings.run_path))
    yield from problem
    if machine:
        yield from preflight.device_findings(settings, machine)
    tokenizer, problem = _tried(lambda: _tokenizer(settings, data if ready else None))
    yield from problem
    shape = None
    if not problem:  # or it would be the same sentence twice
        shape, problem = _tried(lambda: _shape(settings, len(tokenizer) if tokenizer else 0))
        yield from problem
    if shape:
        yield Finding(FINE, f"The base model {settings.base_model} has {shape.parameters:,} parameters.")
    if machine and shape:
        yield from preflight.disk_findings(settings, shape, machine.disk)
        longest = preflight.longest_row(data) if ready else settings.max_length
        yield from preflight.memory_findings(settings, shape, longest, machine)
    if tokenizer:
        yield from preflight.tokenizer_findings(tokenizer)
    if ready and tokenizer:
        yield from _attempt(lambda: preflight.data_findings(settings, data, tokenizer))
        yield from _attempt(lambda: [_steps(settings, data)])
    elif not ready:
        yield Finding(
            LATER,
            f"{shown(data)} is not there yet, so its rows, their supervision and the number of steps cannot be "
            "checked; run notebook 01, then this again.",
        )


def _overfit(settings: Any) -> Iterator[Any]:
    from nbutils.train.overfit import LOSS, overfit
    from nbutils.train.preflight import FINE, STOP, Finding

    print("        Learning four short conversations by heart …", flush=True)
    try:
        found = overfit(settings)
    except UserError as error:
        yield Finding(STOP, f"Learning four conversations by heart failed: {error}")
        return
    yield Finding(FINE, f"Learned by heart: {found.subject}.")
    for problem in found.problems:
        yield Finding(STOP, problem)
    if not found.problems:
        yield Finding(
            FINE,
            f"The loss came down to {found.loss:.3f} (below {LOSS}), and all {len(found.replies)} replies came out "
            "word for word, each stopping by itself.",
        )


def _tokenizer(settings: Any, data: Path | None) -> Any:
    """The data's tokenizer, or before notebook 01 the base's own; None for `tiny`, whose own is not trained yet."""
    from nbutils.core.models import TINY, load_tokenizer
    from nbutils.train.base import data_tokenizer

    if data is not None:
        return data_tokenizer(settings, data)
    return None if settings.base_model == TINY else load_tokenizer(settings.base_model, settings.base_revision)


def _shape(settings: Any, vocabulary: int) -> Any:
    """The base model's shape from its configuration. UserError where training could not use it."""
    from nbutils.core.models import context_length
    from nbutils.train.loss import check_head
    from nbutils.train.memory import ModelShape, empty_model

    model = empty_model(settings.base_model, settings.base_revision, settings.max_length, vocabulary)
    check_head(model)
    if settings.max_length > context_length(model):
        raise UserError(
            f"max_length is {settings.max_length} tokens, but '{settings.base_model}' reads {context_length(model)}; "
            "lower max_length."
        )
    return ModelShape.of(model)


def _steps(settings: Any, data: Path) -> Any:
    from nbutils.train.batches import BatchPlan
    from nbutils.train.dataset import TokenRows
    from nbutils.train.preflight import FINE, Finding

    lengths = TokenRows.load(data / "train", "all").lengths()
    plan = BatchPlan(lengths, settings.tokens_per_step, settings.tokens_per_microbatch, settings.seed)
    steps = plan.total_steps(settings.epochs, settings.max_steps)
    return Finding(FINE, f"The run takes {steps:,} optimizer steps, {plan.steps_per_epoch:,} an epoch.")


def _attempt(check: Callable[[], list[Any]]) -> list[Any]:
    found, problem = _tried(check)
    return (found or []) + problem


def _tried(work: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What `work` returns and no finding, or None and the finding that says why it failed."""
    from nbutils.train.preflight import STOP, Finding

    try:
        return work(), []
    except UserError as error:
        return None, [Finding(STOP, str(error))]
