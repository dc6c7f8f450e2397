"""Sweeps whose trials are made up in an instant: their records are real, and their losses follow a rule."""

import argparse
import math
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbutils.core.files import write_jsonl
from nbutils.core.run.pause import PIPELINE
from nbutils.core.run.stage import Stage
from nbutils.pipeline.parameters import plan
from nbutils.sweep import run
from nbutils.sweep.command import add_arguments, settings_by
from nbutils.sweep.run import Sweeper

VERSION = lru_cache(metadata.version)


class Process:
    """A pipeline's process; `settings` are those of the stage that it is to make, `conduct` says what becomes of it."""

    def __init__(self, line, environment, conduct):
        _, profile, *words, _, folder, _, stage = line
        planned = {each.stage.name: each.settings for each in plan(Path(profile), words[1::2], folder).stages}
        self.settings, self.environment, self.conduct = planned[stage], environment, conduct
        self.stdout = ["Something is said.\n", "It cannot be done.\n"]
        self.asked, self.status = False, None

    def poll(self):
        """The exit status, once the stage has been made."""
        if self.status is None and (how := self.conduct(self)):
            stage = Stage.begin("train" if hasattr(self.settings, "learning_rate") else "data", self.settings)
            if stage.spec.name == "data":
                (stage.folder / "summary.json").write_text("{}")
            elif how == "done":
                heldout(self.settings).to_parquet(stage.layout.heldout)
            if how != "fails":
                stage.finish(how, fraction=0.5, step=3)
            self.status = int(how == "fails")
        return self.status

    def terminate(self):
        """It is asked to pause."""
        self.asked = True

    kill = terminate


def heldout(settings, conversations=60):
    """What a model would lose: least at a rate of 0.004, and on each conversation what that is like."""
    rng = np.random.default_rng(settings.seed)
    hard = np.random.default_rng(7).normal(40, 8, conversations)
    losses = hard + 20 * abs(math.log10(settings.learning_rate / 0.004)) + rng.normal(0, 0.5, conversations)
    losses[conversations if settings.learning_rate < 1 else 0 :] = math.nan
    places = {"source": "talk", "index": range(conversations)}
    return pd.DataFrame(places | {"loss_sum": losses, "tokens": 10})


class Sweeps:
    """Sweeps in a folder, what they said, and the processes that they started."""

    def __init__(self, folder):
        self.out, self.profile = folder / "sweep", folder / "profile.yaml"
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        write_jsonl(folder / "talk.jsonl", [{"messages": talk}])  # is opened faster than the demo's corpus
        self.profile.write_text(f"datasets: ['{folder / 'talk.jsonl'}']\nepochs: 2\n")
        self.said, self.started = [], []
        self.conduct = lambda process: "done"

    def sweeper(self, *words, **changes):
        """Of the command line with these options."""
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments = parser.parse_args([str(self.profile), "--out", str(self.out), *words])
        asked = {"run_dir": arguments.out, "minutes": arguments.minutes, "take": arguments.take}
        planned = settings_by(arguments, **asked).plan(arguments.yes)
        return Sweeper(planned, self.said.append, **{"gpus": (), "start": self.start} | changes)

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
        return [
            (p.settings.learning_rate, p.settings.seed) for p in self.started if hasattr(p.settings, "learning_rate")
        ]


@pytest.fixture
def sweeps(tmp_path, monkeypatch) -> Sweeps:
    """Nothing is there yet."""
    monkeypatch.setattr(run, "POLL_SECONDS", 0)
    monkeypatch.setattr(metadata, "version", VERSION)  # of a dozen packages, read again for every stage
    monkeypatch.setattr("nbutils.sweep.answer.save", lambda draw, folder, name: name)  # drawn in `test_verdict`
    monkeypatch.setenv(PIPELINE, "tests")  # the made-up processes do not lock run folders
    return Sweeps(tmp_path)
