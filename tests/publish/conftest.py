"""One made-up run and its published folder for all tests of publication."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbutils.core.files import write_text
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
    """A run, its facts, and the folder that was made from them."""

    run: Path
    facts: Facts
    folder: Path
    settings: PublishSettings


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Published:
    """The published folder of a made-up run; tests leave it as it is."""
    return publish(make_run(tmp_path_factory.mktemp("published") / "run"))


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
