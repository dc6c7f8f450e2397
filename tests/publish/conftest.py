"""One made-up run and its published folder for all tests of publication."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbutils.core.files import write_text
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from nbutils.publish.card import render_card
from nbutils.publish.export import export
from nbutils.publish.facts import Facts, read_facts
from nbutils.publish.settings import PublishSettings
from tests.publish.made_up_run import make_run


def settings_for(run: Path, **changes) -> PublishSettings:
    """Settings of the publish stage as notebook 06 has them, with changes."""
    return settings_of(spec("publish"), {"run_dir": str(run)} | changes)


@dataclass(frozen=True)
class Published:
    """A run, its facts, and the folder and card that were made from them."""

    run: Path
    facts: Facts
    folder: Path
    settings: PublishSettings

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text()


@pytest.fixture(scope="session")
def published(made_once) -> Published:
    """The published folder of a made-up run; tests leave it as it is."""
    return read(made_once("published", lambda folder: publish(make_run(folder / "run"))) / "run")


def read(run: Path, **changes) -> Published:
    """A run with its facts, published or not."""
    return Published(run, read_facts(run), run / "publish", settings_for(run, **changes))


def publish(run: Path, **changes) -> Published:
    """Folder and card of a run, as notebook 06 makes them."""
    made = read(run, **changes)
    export(made.facts, made.settings, made.folder)
    write_text(made.folder / "README.md", render_card(made.facts, made.settings))
    return made


@pytest.fixture
def spare(published, tmp_path) -> Path:
    """A copy of the made-up run that a test may spoil, before notebook 06 was opened."""
    return shutil.copytree(published.run, tmp_path / "run", ignore=shutil.ignore_patterns("publish"))


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy of the published folder that a test may spoil."""
    return shutil.copytree(published.folder, tmp_path / "publish")
