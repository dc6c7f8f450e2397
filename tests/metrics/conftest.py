"""What the tests of metrics share."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.cells import run_cells
from tests.conftest import ROOT
from tests.metrics.histories import history_rows, write_done, write_training


@pytest.fixture
def bundles(monkeypatch) -> list[dict]:
    """What was shown, by media type."""
    shown: list[dict] = []
    monkeypatch.setattr("nbutils.metrics.display.display", lambda bundle, raw=False: shown.append(bundle))
    return shown


@pytest.fixture(scope="session")
def notebook(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The names of notebook 03 after it was run on the runs `slow` and `fast`; `bundles` is what it showed."""
    folder, shown = tmp_path_factory.mktemp("runs"), []
    for name, count, rate, fraction in (("slow", 60, 1e-3, 0.5), ("fast", 40, 1e-2, 1.0)):
        write_training(folder / name, history_rows(count, noise=count / 1000), learning_rate=rate)
        write_done(folder / name / "data", parameters={"run_dir": name, "fraction": fraction, "split_seed": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbutils.metrics.display.display", lambda bundle, raw=False: shown.append(bundle))
        given = {"run_dir": str(folder / "slow"), "compare_runs": [str(folder / "fast")]}
        names = run_cells(ROOT / "notebooks" / "03_plot_metrics.ipynb", **given)
    yield SimpleNamespace(**names, bundles=shown)
