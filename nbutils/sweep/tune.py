"""`python -m nbutils tune`: the settings that train fastest on this machine, as a profile beside the given one.

A few steps are taken with each of a handful of settings, in turn, in rounds. Only what leaves alone what is learnt is
tried. Some of it changes bits all the same: sums in another order, or other rows side by side in a step. Each trial's
evaluation loss shows it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from textwrap import shorten
from typing import Any

import pandas as pd
from datasets import load_from_disk

from nbutils.core.errors import UserError
from nbutils.core.files import Json, link_tree, shown, write_json
from nbutils.core.hardware import Gpu, choose_processes, usable_gpus, visible_gpus
from nbutils.core.run import pause
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.record import SCHEMA
from nbutils.core.run.stage import locked
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.choice import Options
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import add_profile, planned_by, read_override, read_profile
from nbutils.pipeline.run import add_stale, go, minutes
from nbutils.sweep.settings import check_target, write_profile
from nbutils.train.forecast import TUNED, of_a_step
from nbutils.train.memory import with_microbatch
from nbutils.train.run import events_of
from nbutils.train.settings import TrainSettings

MARK = "Measured by `python -m nbutils tune`"
"""How a profile of `tune` begins."""
ROUNDS = 3
"""How often each setting is tried, in turn with the others."""
LEAST = 2
"""Trials of two settings before one is called faster."""
HELD_OUT = 8
"""Conversations that a trial evaluates on, only to see whether bits have changed."""
OF_TRIALS = {"max_steps": 0, "finish_in_minutes": 1e6, "keep": "last", "sample_prompts": []}
"""What `finish_in_minutes` measures is a trial; the pause that is asked for ends it there."""

LEGEND = (
    "peak_memory_gib is a process's. compiled: whether its layers were. bits: whether the weights come out the same as "
    "with the profile's own settings, or other ones, or vary from trial to trial. On a CPU, processes share its cores "
    "as threads."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tune`."""
    add_profile(parser)
    add_stale(parser)
    parser.add_argument("--minutes", metavar="M", type=minutes, default=0.0, help="begin no trial that would end later")
    parser.add_argument("--explain", action="store_true", help="say what would be tried, and run nothing")


def main(arguments: argparse.Namespace) -> int:
    """Measures, prints the table, and writes the profile where some setting is faster; the exit status.

    The rows are made first where they are not there. UserError where the profile could not be written, or training
    would not start.
    """
    planned, display = planned_by(arguments), Display()
    asked, rows = planned.maker("model").settings, planned.maker("rows")
    assert isinstance(asked, TrainSettings)
    settings = with_microbatch(asked)
    target = planned.profile.with_name(f"{planned.profile.stem.removesuffix('.tuned')}.tuned.yaml")
    check_target(target, MARK, "tune")
    gpus, cores = visible_gpus(), os.cpu_count() or 1
    own, *_ = tried = alternatives(settings, gpus, cores)
    if arguments.explain:
        display.say("\n".join(map(str, tried)))
        return 0
    options = Options(arguments.accept, arguments.force, until=rows.name)
    if not rows.state().fits and (status := go(planned, options, display)):
        return status
    if stops := problems(planned, [planned.maker("model")]):
        raise UserError(" ".join(stops))
    with locked(planned.run), suppress(KeyboardInterrupt):  # what is known by then counts
        for setting in tune(settings, tried, arguments.minutes):
            display.say(f"{setting}: {setting.failed or f'{setting.speeds[-1]:,.0f} tokens a second'}")
    if not any(setting.found for setting in tried):
        display.say("Nothing has been measured.")
        return 1
    device = " + ".join(gpu.name for gpu in gpus) or f"a CPU with {cores} cores"
    now, best = datetime.now(UTC).isoformat(timespec="seconds"), [own, *faster(tried)][-1]
    found, table = best.row(own), [setting.row(own) for setting in tried]
    facts = {"schema": SCHEMA, "time": now, "device": device, "of_a_step": of_a_step(settings)}
    write_json(planned.run / TUNED, facts | {"tried": table, "fastest": found})
    display.say(f"{pd.DataFrame(table).drop(columns='values').to_string(index=False, na_rep='')}\n{LEGEND}")
    if best is own:
        display.say("No other setting was faster in every trial: no profile is written.")
        return 0
    given = read_profile(planned.profile) | dict(map(read_override, arguments.overrides))
    said = f"{best}: {found['tokens_per_second']:,} tokens a second ({found['against_own']}), bits: {found['bits']}."
    values = {name: each.value for name, each in given.items()} | best.values
    write_profile(target, values, f"{MARK} on {now[:10]}, {device}, against {planned.profile.name}.", said, LEGEND)
    display.say(f"Wrote {shown(target)}: {said}")
    return 0


@dataclass
class Setting:
    """Values in place of the profile's own (none are its own); what its trials found, or why one of them failed."""

    values: Json
    found: list[Json] = field(default_factory=list)
    failed: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items()) or "as it is"

    @property
    def speeds(self) -> list[float]:
        """Tokens per second in each trial; 0 where it was not tried, or failed."""
        return [each["tokens_per_second"] for each in self.found] or [0.0]

    def faster_than(self, other: Setting) -> bool:
        """Whether all of its trials were faster than all of another's, of which there are several."""
        enough = other.failed or min(len(self.found), len(other.found)) >= LEAST
        return bool(enough) and min(self.speeds) > max(other.speeds)

    def row(self, own: Setting) -> Json:
        """What is known of it beside the profile's own values, as a row of a table."""
        facts: Json = {"setting": str(self), "values": self.values}
        if not self.found:
            return facts | {"remark": self.failed or "not tried: no time was left"}
        speed, losses, as_it_is = median(self.speeds), {each["loss"] for each in self.found}, median(own.speeds)
        same = losses <= {each["loss"] for each in own.found}
        apart = self is own or self.faster_than(own) or own.faster_than(self)
        return facts | {
            "tokens_per_second": round(speed),
            "of_trials": [*map(round, self.speeds)],
            "against_own": f"{speed / as_it_is - 1:+.0%}" if as_it_is else "as it is fails",
            "peak_memory_gib": max(each["peak_memory_gib"] for each in self.found),
            "compiled": self.found[-1]["compiled"],
            "bits": "vary" if len(losses) > 1 else "same" if same else "other",
            "remark": "" if apart else "not told apart",
        }


def alternatives(settings: TrainSettings, gpus: tuple[Gpu, ...], cores: int) -> list[Setting]:
    """What is tried: the profile's own values, and each other one of each parameter.

    A step's share of a process goes through it in 1, 2, 4 or 8 micro-batches.
    """
    usable, processes = usable_gpus(gpus), choose_processes(settings.processes, gpus, cores)
    own, share = settings.model_dump() | {"processes": processes}, -(-settings.tokens_per_step // processes)
    tried: dict[str, Sequence[Any]] = {
        "processes": [len(usable)] if usable else [n for n in (1, 2, 4, 8) if n <= cores],
        "tokens_per_microbatch": [share // n for n in (1, 2, 4, 8)],
    }
    if settings.optimizer.startswith("adamw"):
        tried["optimizer"] = ["adamw_torch", "adamw_torch_fused"]
    if usable:
        tried |= {name: ["always" if own[name] == "never" else "never"] for name in ("compile", "deterministic")}
        if processes > 1:
            tried["trainer_options"] = [settings.trainer_options | {"ddp_bucket_cap_mb": n} for n in (25, 100)]
    others = [Setting({name: value}) for name, values in tried.items() for value in values if value != own[name]]
    return [Setting({}), *others]


def faster(tried: Sequence[Setting]) -> list[Setting]:
    """Those that are faster than the profile's own values, which are the first; the fastest is the last."""
    return sorted((each for each in tried if each.faster_than(tried[0])), key=lambda each: median(each.speeds))


def tune(settings: TrainSettings, tried: list[Setting], minutes: float) -> Iterator[Setting]:
    """Tries each setting in a run that is thrown away, and yields it after each trial; the profile's own is the first.

    At last come the faster values of several parameters together, which `tried` then has too. After so many `minutes`
    (0: no limit) no trial is begun that is not expected to end within them.
    """
    run, ends, longest = _copy(Run(settings.run_path)), time.monotonic() + 60 * minutes, 0.0
    try:
        for setting in _in_order(tried):
            began = time.monotonic()
            if minutes and began + longest > ends:
                return
            try:
                own = {"run_dir": str(run.path)} | OF_TRIALS | setting.values
                setting.found.append(trial(TrainSettings.checked(settings.model_dump() | own)))
            except UserError as error:
                setting.found = []
                setting.failed = shorten(f"failed: {str(error).splitlines()[-1]}", 160)
            longest = max(longest, time.monotonic() - began)
            yield setting
    finally:
        shutil.rmtree(run.path)


def _in_order(tried: list[Setting]) -> Iterator[Setting]:
    """In each round those that have not failed, every second time in reverse: a machine that gets slower does so for
    all alike.
    """
    settings = [*tried]
    for number in range(2 * ROUNDS):
        if number == ROUNDS:
            together = {name: value for each in faster(tried) for name, value in each.values.items()}
            if len(together) < 2:
                return
            tried.append(Setting(together))
            settings = [tried[0], tried[-1]]
        yield from (each for each in settings[:: -1 if number % 2 else 1] if not each.failed)


def trial(settings: TrainSettings) -> Json:
    """What the training processes measure before they would train with these settings."""
    run = Run(settings.run_path)
    (run.training / "settings.json").unlink(missing_ok=True)  # it has what an earlier trial measured
    pause.request(run.path)
    started = next(event for event in list(events_of(settings, run.training)) if event["event"] == "started")
    return started["measured"] | {"compiled": started["compiled"]}


def _copy(run: Run) -> Run:
    """A run inside the other one, with its rows, few of the held-out ones, and its base if it has one."""
    own = Run(run.path / ".tune")
    shutil.rmtree(own.path, ignore_errors=True)  # of one that was killed
    link_tree(run.rows, own.rows)
    shutil.rmtree(own.rows / "eval")
    held_out = load_from_disk(str(run.rows / "eval"))
    held_out.select(range(min(HELD_OUT, len(held_out)))).save_to_disk(own.rows / "eval")
    if holds_model(run.base):
        link_tree(run.base, own.base)
    return own
