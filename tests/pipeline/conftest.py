"""The pipeline on three small stages, whose notebooks are executed in this process; everything else is real."""

import io
import shutil
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from nbutils.core.files import read_json, write_json
from nbutils.core.run import pause
from nbutils.core.run.stage import ALLOW_PAUSED
from nbutils.pipeline.choice import Options, explain
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import plan
from nbutils.pipeline.run import Runner
from tests.cells import run_cells
from tests.pipeline.fake import STAGES, write_notebooks

ALL = ["first", "second", "third"]
VERSION = lru_cache(metadata.version)


class Pipeline:
    """The pipeline on a profile, with what it executed and said."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.run = folder / "run"
        self.notebooks = write_notebooks(folder / "notebooks")
        self.profile = folder / "profile.yaml"
        self.profile.write_text(f"run_dir: '{self.run}'\n")
        self.after = lambda job: None
        patch.setenv("NBUTILS_NOTEBOOKS", str(self.notebooks))
        patch.setattr("nbutils.core.stages.STAGES", STAGES)
        patch.setenv("NBUTILS_PIPELINE", "tests")  # the cells run in this process, which holds the lock
        patch.setattr(metadata, "version", VERSION)  # of a dozen packages, read again for every stage

    def go(self, *overrides: str, **options) -> list[str]:
        """Runs, the cells in this process; returns the stages executed. The exit status is in `status`."""
        executed = self.executed = []
        out = io.StringIO()

        def execute(job):
            executed.append(job.source.stem[3:])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(ALLOW_PAUSED, "1" if job.options.allow_paused else "")
                run_cells(job.source, **job.parameters)
            self.after(job)

        try:
            run = Runner(plan(self.profile, list(overrides)), Options(**options), Display(out), execute)
            self.status = run.go()
        finally:
            self.said = out.getvalue()
        return executed

    def explained(self, *overrides: str, **options) -> dict[str, str]:
        out = io.StringIO()
        assert explain(plan(self.profile, list(overrides)), Options(**options), Display(out)) == 0
        return dict(line.split(": ", 1) for line in out.getvalue().splitlines())

    def record(self, stage: str, **changes) -> dict:
        """A stage's record, after these changes to it."""
        path = self.run / stage / "stage.json"
        write_json(path, read_json(path) | changes)
        return read_json(path)

    def add(self, text: str):
        """Adds lines to the profile."""
        self.profile.write_text(f"{self.profile.read_text()}{text}\n")

    def edit(self, notebook: str, old: str, new: str):
        """Replaces a text in the cells of a notebook."""
        cells = nbformat.read(self.notebooks / notebook, as_version=4)
        for cell in cells.cells:
            cell.source = cell.source.replace(old, new)
        nbformat.write(cells, self.notebooks / notebook)

    def aside(self, stage: str) -> list[Path]:
        """The folders in which earlier work of a stage was set aside."""
        return list(self.run.glob(f"{stage}-20*"))

    def text(self, file: str) -> str:
        return (self.run / file).read_text()


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> Pipeline:
    """Nothing has run yet."""
    return Pipeline(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run of the three stages, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        made = Pipeline(tmp_path_factory.mktemp("finished"), patch)
        assert made.go() == ALL
        return made.run


@pytest.fixture
def done(pipeline, finished) -> Pipeline:
    """All three stages are done."""
    shutil.copytree(finished, pipeline.run)
    return pipeline


@pytest.fixture
def long(done) -> Pipeline:
    """The same, and the work of the second took an hour."""
    done.record("second", work_seconds=3600)
    return done


@pytest.fixture
def pausing(pipeline, monkeypatch) -> Pipeline:
    """A pause is asked for while the second stage is at its second step."""
    asked = iter([False, True])
    monkeypatch.setattr(pause, "requested", lambda run: next(asked, False))
    return pipeline


@pytest.fixture
def paused(pausing) -> Pipeline:
    """The second stage is paused at step 2 of 4."""
    assert pausing.go() == ["first", "second"]
    return pausing
