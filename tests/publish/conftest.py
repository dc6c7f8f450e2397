"""One made-up run and its published folder for all tests of publication."""

from __future__ import annotations

import io
import shutil
import subprocess
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbutils.core.files import write_text
from nbutils.publish import plain_reader
from nbutils.publish.card import render_card
from nbutils.publish.export import export
from nbutils.publish.facts import Facts, read_facts
from nbutils.publish.settings import PublishSettings
from tests.publish.made_up_run import make_run


def settings_for(run: Path, **changes) -> PublishSettings:
    """Settings of the publish stage as notebook 06 has them, with changes."""
    given = {
        "run_dir": str(run), "model_name": "made-up", "license": "apache-2.0", "languages": ["en"], "tags": [],
        "base_model_id": "", "dataset_ids": [],
        "parity_conversations": 200, "parity_replies": 6, "parity_tokens": 24, "push": False, "repo_id": "",
        "private": True,
    }  # fmt: skip
    return PublishSettings.checked(given | changes)


@dataclass(frozen=True)
class Published:
    """A run, its facts, and the folder and card that were made from them."""

    run: Path
    facts: Facts
    folder: Path
    settings: PublishSettings

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def published(made_once) -> Published:
    """The published folder of a made-up run; tests leave it as it is."""
    run = made_once("published", lambda folder: publish(make_run(folder / "run"))) / "run"
    return Published(run, read_facts(run), run / "publish", settings_for(run))


def publish(run: Path, **changes) -> Published:
    """Folder and card of a run, as notebook 06 makes them."""
    facts, settings, folder = read_facts(run), settings_for(run, **changes), run / "publish"
    export(facts, settings, folder)
    write_text(folder / "README.md", render_card(facts, settings))
    return Published(run, facts, folder, settings)


@pytest.fixture
def spare(published, tmp_path) -> Path:
    """A copy of the made-up run that a test may spoil, before notebook 06 was opened."""
    return shutil.copytree(published.run, tmp_path / "run", ignore=shutil.ignore_patterns("publish"))


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy of the published folder that a test may spoil."""
    return shutil.copytree(published.folder, tmp_path / "publish")


@pytest.fixture
def read_here(monkeypatch) -> None:
    """What plain transformers reads for the parity check it reads in this process: no other one is started."""

    class Here:
        def __init__(self, *_, **__) -> None:
            self.returncode = 0

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

        def communicate(self, job: str) -> tuple[str, str]:
            monkeypatch.setattr("sys.stdin", io.StringIO(job))
            with redirect_stdout(io.StringIO()) as out:
                try:
                    plain_reader.main()
                except Exception as error:  # whatever it is, a process would end with it
                    self.returncode = 1
                    return "", f"Traceback\n{error}"
            return out.getvalue(), ""

    monkeypatch.setattr(subprocess, "Popen", Here)
