"""The stages of a run: their order and roles, what each reads from earlier ones, and the code that it depends on."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError

if TYPE_CHECKING:
    from nbutils.core.settings import Settings


@dataclass(frozen=True)
class StageSpec:
    """One stage. Its name is the name of its package, of its folder in a run and of its settings class.

    `reads`: patterns of the files that it needs from earlier stages. `consults`: stages that it looks into if they are
    there. `makes`: its roles, by which others find it. `code`: the modules and resources below `nbutils` that can
    change a bit of its result. `pausable`: it answers a pause request with a checkpoint. `gpu`: it takes long without
    one.
    """

    name: str
    file: str
    reads: dict[str, tuple[str, ...]] = field(default_factory=dict)
    consults: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    pausable: bool = False
    gpu: bool = False

    def needs(self, earlier: str, name: str) -> bool:
        """Whether it reads a file of that name from an earlier stage."""
        return any(fnmatch(name, pattern) for pattern in self.reads.get(earlier, ()))

    def settings_class(self) -> type[Settings]:
        """The class that checks this stage's parameters, imported when it is needed."""
        module = importlib.import_module(f"nbutils.{self.name}.settings")
        return getattr(module, f"{self.name.title()}Settings")


def own(package: str, *without: str) -> tuple[str, ...]:
    """The modules and resources of a package, but for those that cannot change a result (`display` never does)."""
    folder = Path(__file__).parents[1].joinpath(*package.split("."))
    kinds = (".py", ".jinja", ".yaml", ".html", ".css", ".js")
    files = sorted(file for file in folder.iterdir() if file.suffix in kinds)
    counted = [file for file in files if file.stem not in ("__init__", "display", *without)]
    inside = package.replace(".", "/")
    return tuple(f"{package}.{f.stem}" if f.suffix == ".py" else f"{inside}/{f.name}" for f in counted)


CHATML = ("core.chatml", "core/chatml.jinja", "core.vocabulary", "core.run.models")
"""Reading a model and writing a conversation: nearly every result depends on these."""
ENGINE = own("core.chat_engine")
"""From messages to a reply."""

STAGES = (
    StageSpec(
        "data",
        "01_filter_data.ipynb",
        makes=("rows",),
        code=(*CHATML, "core.encode_within", "core.tasks", *own("data")),
    ),
    StageSpec(
        "train",
        "02_train_sft.ipynb",
        {"data": ("train/*", "eval/*", "tokenizer/*", "summary.json")},
        makes=("model", "history"),
        code=(
            *CHATML,
            "core.chat_engine.generation",
            "core.chat_engine.sampling",
            *own("train", "forecast", "overfit", "preflight", "run"),
        ),
        pausable=True,
        gpu=True,
    ),
    StageSpec(
        "metrics",
        "03_plot_metrics.ipynb",
        {"train": ("metrics.jsonl", "settings.json")},
        makes=("curves",),
        code=("core.history", *own("metrics")),
    ),
    StageSpec(
        "evaluate",
        "04_evaluate.ipynb",
        {
            "data": ("train/*", "eval/*", "tokenizer/*", "too_long/*", "ledger.parquet"),
            "train": ("final/*", "base/*"),
        },
        makes=("scores",),
        code=(
            *CHATML,
            "core.bootstrap",
            "core.chat_engine.generation",
            "core.chat_engine.sampling",
            "core.chat_engine.template",
            "core.chat_engine.window",
            "core.origin.index",
            "core.tasks",
            *own("evaluate", "worker"),
        ),
        gpu=True,
    ),
    StageSpec(
        "chat",
        "05_chat.ipynb",
        {"train": ("final/*", "base/*")},
        consults=("evaluate",),
        makes=("transcript",),
        code=(*CHATML, *ENGINE, *own("chat", "llama", "markup", "parts", "terminal", "widget")),
    ),
    StageSpec(
        "publish",
        "06_publish.ipynb",
        {
            "data": ("summary.json", "figures/*", "train/*", "eval/*"),
            "train": ("final/*", "base/source.json", "settings.json", "metrics.jsonl", "samples.jsonl"),
            "metrics": ("figures/*", "summary.json"),
            "evaluate": ("results.json", "comparison.md", "samples.jsonl", "replies.jsonl", "items/*"),
            "chat": ("transcript.json",),
        },
        makes=("card",),
        code=(
            *CHATML,
            "core.bootstrap",
            "core.llamacpp",
            *(name for name in ENGINE if not name.endswith("generation")),
            "core.origin.index",
            *own("publish", "push"),
            *own("publish.page"),
        ),
    ),
)


def stages() -> tuple[StageSpec, ...]:
    """The stages in order."""
    return STAGES


def spec(name: str) -> StageSpec:
    """The stage of that name. UserError where there is none."""
    for stage in stages():
        if stage.name == name:
            return stage
    raise UserError(f"There is no stage '{name}'; the stages are {', '.join(stage.name for stage in stages())}.")


def maker(role: str) -> StageSpec:
    """The stage that makes the `model`, the `rows`, the `history`, the `curves`, the `scores`, …"""
    return next(stage for stage in stages() if role in stage.makes)
