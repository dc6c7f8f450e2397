"""One simulated account and one undisturbed training for all soak tests of Kaggle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kaggle.simulated import DATA, SMALL, Kaggle, Outcome, bundles, done, image


@pytest.fixture(scope="session")
def account(tmp_path_factory) -> Kaggle:
    folder = tmp_path_factory.mktemp("kaggle")
    return Kaggle(folder, image(folder / "image"))


@pytest.fixture(scope="session")
def unhurried(tmp_path_factory) -> dict[str, Path]:
    """Bundles whose training never pauses."""
    return bundles(SMALL, tmp_path_factory.mktemp("unhurried"), "-p", "budget_minutes=0")


@pytest.fixture(scope="session")
def data(account, unhurried) -> Path:
    """The output of the first notebook."""
    return done(account.run(unhurried["01-filter-data"])).working


@pytest.fixture(scope="session")
def undisturbed(account, unhurried, data) -> Outcome:
    """A training in one session."""
    return done(account.run(unhurried["02-train-sft"], {DATA: data}))
