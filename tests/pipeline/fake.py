"""Three small stages with real notebooks and settings: what the pipeline's tests run instead of the six."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pydantic import Field

from nbutils.core import stages as real
from nbutils.core.run import pause
from nbutils.core.run.checkpoints import Checkpoint, in_folder
from nbutils.core.settings import STEERING, Seed, Settings
from nbutils.core.stages import StageSpec

PROGRAM = ("-c", "from tests.pipeline.fake import main; main()")
"""Behind `python`: the command line on the three stages."""


class FirstSettings(Settings):
    """Of the stage `first`."""

    seed: Seed
    words: Annotated[int, Field(ge=1, le=100)]
    note: Annotated[str, STEERING]


class SecondSettings(Settings):
    """Of the stage `second`."""

    seed: Seed
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    steps: Annotated[int, Field(ge=1)]
    step_seconds: Annotated[float, Field(ge=0), STEERING]
    fault: Annotated[str, STEERING]


class ThirdSettings(Settings):
    """Of the stage `third`."""

    title: str


class SmallStage(StageSpec):
    """A stage whose settings are here."""

    def settings_class(self) -> type[Settings]:
        """One of the three above."""
        return {"first": FirstSettings, "second": SecondSettings, "third": ThirdSettings}[self.name]


STAGES = (
    SmallStage("first", "01_first.ipynb", makes=("rows",)),
    SmallStage("second", "02_second.ipynb", {"first": ("words.txt",)}, makes=("model",), pausable=True),
    SmallStage("third", "03_third.ipynb", {"second": ("final/*",)}),
)


def install():
    """Makes this process know these stages instead of the six, unless a test has done so already."""
    if real.STAGES[0].name != "first":
        real.STAGES = STAGES


def main():
    """The command line on these stages."""
    from nbutils.cli import main as command_line

    install()
    pause.GRACE_SECONDS = 10
    sys.exit(command_line())


BEGIN = """from nbutils.core.run.stage import Stage
from tests.pipeline.fake import STAGES, install, misbehave, train
install()
settings = STAGES[{number}].settings_class().from_notebook(globals())
stage = Stage.begin(STAGES[{number}].name, settings)"""
CELLS = {
    "first": [
        """misbehave(settings.note, stage)
(stage.folder / "words.txt").write_text("word " * settings.words)
print("wrote", settings.words, "words")""",
        "stage.finish(made=f'{settings.words} words')",
    ],
    "second": ["misbehave(settings.fault, stage)", "train(stage, settings, made=f'{settings.steps} steps')"],
    "third": [
        """model = stage.upstream("second") / "final"
text = (model / "model.txt").read_text() if model.exists() else "checkpoint"
(stage.folder / "report.txt").write_text(settings.title + text)""",
        "stage.finish()",
    ],
}
PARAMETERS = {
    "01_first.ipynb": """run_dir: str = "runs/fake"  # folder of the run
seed: int = 1  # random seed
words: int = 3  # number of words
note: str = "none"  # only shown""",
    "02_second.ipynb": """run_dir: str = "runs/fake"  # folder of the run
seed: int = 1  # random seed
learning_rate: float = 1e-3  # per step
steps: int = 4  # optimizer steps
step_seconds: float = 0.0  # seconds a step takes
fault: str = ""  # what goes wrong""",
    "03_third.ipynb": """run_dir: str = "runs/fake"  # folder of the run
title: str = "report"  # first words of the report""",
}


def train(stage, settings, made):
    """A loop with checkpoints that answers a pause request, in the way of the training stage."""
    folder = stage.folder / "checkpoints"
    done = next((newest.step for newest in in_folder(folder)), 0)
    for step in range(done + 1, settings.steps + 1):
        time.sleep(settings.step_seconds)
        print("step", step, flush=True)
        (stage.run / "at-work").touch()
        if pause.requested(stage.run):
            saved = Checkpoint.at(folder, step)
            saved.partial.mkdir(parents=True)
            saved.seal({}, {})
            stage.finish("paused", step=step, fraction=step / settings.steps)
            return
    (stage.folder / "final").mkdir(exist_ok=True)
    (stage.folder / "final" / "model.txt").write_text(f"model of rate {settings.learning_rate}")
    stage.finish(made=made)


def misbehave(fault, stage):
    """The fault of that name, for real."""
    match fault:
        case "exception":
            raise ValueError("the answer is not 42\nsecond line")
        case "exit":
            sys.exit(3)
        case "exit0":
            sys.exit()
        case "os_exit":
            os._exit(7)
        case "memory":
            bytearray(1 << 60)
        case "secret":
            token = os.environ["HF_TOKEN"]
            print("token", token)
            print("halves", token[:9], end="", flush=True)
            print(token[9:], flush=True)
            raise ValueError(f"401 with {token}")
        case "child":
            subprocess.Popen(["sleep", "300"], start_new_session=True)
            (stage.run / "at-work").touch()
            time.sleep(300)
        case "long":
            print("so far", flush=True)
            time.sleep(3)
            (stage.folder / "meanwhile.txt").write_text((stage.run / "notebooks" / stage.spec.file).read_text())
        case "full_disk":
            (stage.folder / "big.bin").write_bytes(b"\0" * 64 * 2**20)


def write_notebooks(folder: Path) -> Path:
    """The three notebooks in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(STAGES):
        parameters = new_code_cell(PARAMETERS[stage.file], metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell(f"# {stage.name}"), parameters]
        for source in (BEGIN.format(number=number), *CELLS[stage.name]):
            cells += [new_markdown_cell("## Do it"), new_code_cell(source)]
        kernel = {"name": "python3", "display_name": "Python 3"}
        notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, folder / stage.file)
    return folder
