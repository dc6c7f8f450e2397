"""Sweeps whose trials are made up in an instant: their pipelines are real, and their losses follow a rule."""

import argparse
import io
import json
import math
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbutils.cli import main
from nbutils.core.files import write_jsonl
from nbutils.core.run.pause import PIPELINE
from nbutils.core.run.stage import Stage
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from nbutils.pipeline.run import StageFailed
from nbutils.sweep import run
from nbutils.sweep.command import add_arguments, sweeper_by

VERSION = lru_cache(metadata.version)


class Process:
    """A pipeline's process without a kernel: `conduct` says when its notebook ends, and how.

    `given` has the parameters of its command line, `stage` the name of the stage that it is to make.
    """

    def __init__(self, line, environment, conduct):
        self.line, self.environment, self.conduct = line, environment, conduct
        given = (word[2:].split("=", 1) for word in line if word.startswith("-p"))
        self.given = {name: json.loads(value) for name, value in given}
        self.stage = line[line.index("--until") + 1]
        self.asked, self.status, self.said, self.ended = False, None, io.StringIO(), threading.Event()
        self.stdout = self.lines()

    def lines(self):
        """What it has said, once it has ended."""
        self.ended.wait()
        yield from self.said.getvalue().splitlines()

    def poll(self):
        """The exit status, once there is one."""
        if self.status is None and (how := self.conduct(self)):
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(self.said), redirect_stderr(self.said):
                patch.setattr("nbutils.pipeline.run._execute", lambda job: self.execute(job.parameters, how))
                self.status = main(self.line)
            self.ended.set()
        return self.status

    def execute(self, parameters, how):
        """Does what the notebook does."""
        settings = settings_of(spec(self.stage), parameters)
        stage = Stage.begin(self.stage, settings)
        if how == "fails":
            raise StageFailed("It cannot be done.")
        if self.stage == "data":
            (stage.folder / "summary.json").write_text(json.dumps(Path(settings.datasets[0].path).read_text()))
        elif how == "done":
            heldout(settings).to_parquet(stage.layout.heldout)
        stage.finish(how, fraction=0.5, step=3)

    def terminate(self):
        """It is asked to pause."""
        self.asked = True

    kill = terminate


def heldout(settings, conversations=60):
    """What a model would lose: least at a rate of 0.004, and on each conversation what that is like."""
    rng = np.random.default_rng(settings.seed)
    hard = np.random.default_rng(7).normal(40, 8, conversations)
    losses = hard + 20 * abs(math.log10(settings.learning_rate / 0.004)) + rng.normal(0, 0.5, conversations)
    losses *= 1 if settings.learning_rate < 1 else math.nan
    return pd.DataFrame({"source": "talk", "index": range(conversations), "loss_sum": losses, "tokens": 10})


class Sweeps:
    """Sweeps in a folder, what they said, and the processes that they started."""

    def __init__(self, folder):
        self.out, self.profile, self.talk = folder / "sweep", folder / "profile.yaml", folder / "talk.jsonl"
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        write_jsonl(self.talk, [{"messages": talk}])  # is opened faster than the demo's corpus
        self.profile.write_text(f"datasets: ['{self.talk}']\nepochs: 2\npause_after_steps: 9\n")
        self.said, self.started = [], []
        self.conduct = lambda process: "done"

    def sweeper(self, *words, **changes):
        """Of the command line with these options."""
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments = parser.parse_args([str(self.profile), "--out", str(self.out), "--seeds=1", *words])
        return replace(sweeper_by(arguments, self.said.append), **changes)

    def start(self, line, environment):
        self.started.append(Process(line, environment, self.conduct))
        return self.started[-1]

    def go(self, *words, **changes):
        """The answer; what was said and started before is forgotten."""
        self.said, self.started = [], []
        return self.sweeper(*words, **changes).go()

    @property
    def trained(self):
        """Learning rates and seeds of the trainings that were started."""
        return [(p.given["learning_rate"], p.given["seed"]) for p in self.started if p.stage == "train"]


@pytest.fixture
def sweeps(tmp_path, monkeypatch) -> Sweeps:
    """Nothing is there yet."""
    made = Sweeps(tmp_path)
    monkeypatch.setattr(run, "start", made.start)
    monkeypatch.setattr(run, "POLL_SECONDS", 0)
    monkeypatch.setattr(metadata, "version", VERSION)  # of a dozen packages, read again for every stage
    monkeypatch.setattr("nbutils.sweep.answer.save", lambda draw, folder, name: name)  # drawn in `test_verdict`
    monkeypatch.setenv(PIPELINE, "tests")  # the made-up processes do not lock run folders
    return made
