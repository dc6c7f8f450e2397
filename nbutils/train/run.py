"""What notebook 02 runs and shows: training in child processes to the end or to a pause, and what came out of it."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType

import pandas as pd
from IPython.display import HTML

from nbutils.core.charts import LiveFigure, whole_table
from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, read_jsonl, write_json
from nbutils.core.hardware import choose_processes, usable_gpus, visible_gpus
from nbutils.core.run import pause
from nbutils.core.text import counted, duration
from nbutils.core.torchrun import PEER_TO_PEER, STARTED, Event, Hang, Torchrun, tell
from nbutils.core.training_log import LOG
from nbutils.train.settings import TrainSettings

LEAST_STEPS = 3
"""Steps of a run before its time left is forecast: the first is a warm-up, and one more says little."""


def run_training(settings: TrainSettings, folder: Path) -> Json:
    """Trains in child processes; prints a line per log step and redraws the live loss curve in Jupyter.

    Running it again resumes from the newest valid checkpoint by itself. Returns what the stage's record says about it:
    `done` or `paused`, and at which optimizer step of how many.
    """
    pause.clear(settings.run_path)
    figure = LiveFigure()
    rows: list[Event] = []
    with closing(events_of(settings, folder)) as events:
        for event, line in with_time_left(events, settings.budget_minutes):
            if line:
                print(line, flush=True)
            if event["event"] == "started":  # what earlier sessions logged is part of the curve
                figure.steps, rows = event["steps"], read_jsonl(folder / LOG)
            elif event["event"] == "metric":
                rows.append(event)
                figure.update(rows)
    figure.update(rows, now=True)
    step, steps = event["step"], event["steps"]  # the last says how it ended
    facts = {"step": step, "steps": steps, "fraction": round(step / steps, 4), "made": f"step {step:,} of {steps:,}"}
    if event["event"] == "finished":
        if words := which_was_kept(rows, event["chosen"]) if settings.keep == "best" else "":
            print(f"The final model is {words}.")
            facts["made"] += f"; final: {words.partition(':')[0]}"
        return facts | {"status": "done", "chosen": event["chosen"]}
    return facts | {"status": "paused", "how_to_continue": "run the same command, or this notebook, again"}


def events_of(settings: TrainSettings, folder: Path) -> Generator[Event, None, None]:
    """Trains, and yields each event as it happens; the last is `finished` or `paused`.

    UserError as by `Torchrun.events`. Ctrl-C, Jupyter's interrupt and a pause request of the pipeline end in a
    checkpoint and a last event `paused`; a second interrupt raises KeyboardInterrupt and ends the processes at once.
    """
    gpus = visible_gpus()
    cores = os.cpu_count() or 1
    processes = choose_processes(settings.processes, gpus, cores)
    usable = usable_gpus(gpus)
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),  # or their threads get in each other's way
        "TOKENIZERS_PARALLELISM": "false",
        STARTED: os.environ.get(STARTED) or str(time.time()),
        **({} if usable else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    request = folder / "settings.json"
    derived = read_json(request) if request.is_file() else {"schema": 1}  # an earlier session may have derived more
    write_json(request, derived | {"settings": settings.model_dump(mode="json")})
    for changes in ({}, {PEER_TO_PEER: "1"}) if usable and PEER_TO_PEER not in os.environ else ({},):
        if changes:
            print("The processes could not reach each other in time; trying once more without peer-to-peer.")
        program = Torchrun("nbutils.train.worker", request, processes, activity="Training",
                           knob="tokens_per_microbatch", **environment, **changes)  # fmt: skip
        with suppress(Hang), _interrupts(settings.run_path, program):
            yield from program.events()
            return
    raise UserError(
        f"The training processes could not reach each other{', also with NCCL_P2P_DISABLE=1' if usable else ''}; set "
        "processes to 1, or check that the loopback interface is up and no firewall closes it."
    )


@contextmanager
def _interrupts(run: Path, program: Torchrun) -> Iterator[None]:
    """Takes SIGINT while the block runs, also while whoever iterates over the events prints or draws.

    The first asks for a pause, the next one ends the processes at once.
    """

    def take(number: int, frame: FrameType | None) -> None:
        if pause.requested(run):
            program.kill()
            raise KeyboardInterrupt
        pause.request(run)
        tell(program.folder, "pausing")  # printed by whoever follows: the signal may have interrupted a print

    before = signal.signal(signal.SIGINT, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_time_left(events: Iterable[Event], budget_minutes: float) -> Iterator[tuple[Event, str]]:
    """Each event with the line about it; that of a training step says also how long the rest takes.

    The first forecast says how many sessions of the budget that is.
    """
    began, budget = float(os.environ.get(STARTED) or time.time()), 60 * budget_minutes
    first: Event = {}
    steps = 0
    for event in events:
        steps = event.get("steps", steps)
        line = line_of(event, steps)
        if event.get("kind") == "train":
            first = first or event
            taken, left = event["step"] - first["step"], steps - event["step"]
            if taken and left and event["step"] >= LEAST_STEPS:
                seconds = left * (event["elapsed"] - first["elapsed"]) / taken
                line += f"  about {duration(seconds)} left"
                if budget:
                    sessions = math.ceil((time.time() - began + seconds) / budget)
                    line += f"\nForecast: {counted(sessions, 'session')} of {duration(budget)}, this one included."
                    budget = 0.0
        yield event, line


def which_was_kept(rows: Sequence[Json], chosen: int) -> str:
    """Which model is the final one, out of how many evaluations, and what the last was; '' where one was possible."""
    losses = {row["step"]: row["eval_loss"] for row in rows if row.get("kind") == "eval" and row["step"]}
    if len(losses) < 2 or not math.isfinite(losses[chosen]):
        return ""
    words = f"that of step {chosen:,}: the lowest of {len(losses)} evaluation losses, {losses[chosen]:.3f}"
    last = max(losses)
    return words if chosen == last else f"{words}; the last, of step {last:,}, is {losses[last]:.3f} (train/last)"


def line_of(event: Event, steps: int) -> str:
    """One line for people about an event, empty for those that need none."""
    match event.get("kind", event["event"]):
        case "started":
            step = event["step"]
            where = f"resumes at step {step} of {steps}" if step else f"starts, {steps} steps"
            return (
                f"Training {where}: {counted(event['world_size'], 'process')}, {event['device']}, "
                f"{event['precision']}{', compiled' if event['compiled'] else ''}, about "
                f"{event['microbatches_per_step']} micro-batches of up to "
                f"{event['tokens_per_microbatch']:,} tokens a step"
            )
        case "train":
            return (
                f"step {event['step']:>6}/{steps}  loss {event['loss']:.3f}  accuracy {event['token_accuracy']:.1%}  "
                f"lr {event['learning_rate']:.2e}  grad norm {event['grad_norm']:.2f}  "
                f"{event['tokens_per_second']:,.0f} tok/s"
            )
        case "eval":
            return (
                f"step {event['step']:>6}/{steps}  evaluation loss {event['eval_loss']:.3f}  "
                f"accuracy {event['eval_token_accuracy']:.1%}  (the assistant's tokens)"
            )
        case "warning":
            return f"Note: {event['message']}"
        case "pausing":
            return "Pausing: a checkpoint is being written. Interrupt again to stop at once."
        case "paused":
            return f"Paused at step {event['step']} of {event['steps']} ({event['step'] / event['steps']:.0%})."
    return ""


def before_and_after(samples: Sequence[Json], chosen: int | None = None) -> HTML:
    """The replies of the untrained and of the trained model to the same prompts, side by side and in full.

    The trained one is that of step `chosen`, or of the last that has samples.
    """
    if not samples:
        return HTML("<p>There are no sample replies yet.</p>")
    table = {
        f"step {step}": {
            sample["prompt"]: (sample["reply"] or "(nothing)") + ("" if sample["ended"] else " …(never ends)")
            for sample in samples
            if sample["step"] == step
        }
        for step in (samples[0]["step"], samples[-1]["step"] if chosen is None else chosen)
    }
    return whole_table(pd.DataFrame(table))


def plain_against_worker(losses: Sequence[float], norms: Sequence[float], rows: Sequence[Json]) -> pd.DataFrame:
    """Loss and gradient norm of the plain loop's steps beside those that the worker logged for the same steps.

    `difference` is the larger of the two relative differences.
    """
    logged = pd.DataFrame(rows, columns=["kind", "step", "loss", "grad_norm"]).set_index("step")
    worker = logged[logged.kind == "train"].drop(columns="kind").rename(columns={"grad_norm": "gradient norm"})
    plain = pd.DataFrame({"loss": losses, "gradient norm": norms}, index=pd.RangeIndex(1, len(losses) + 1, name="step"))
    table = plain.join(worker, lsuffix=", plain loop", rsuffix=", worker")
    return table.assign(difference=abs(plain / worker - 1).max(axis=1)).dropna()
