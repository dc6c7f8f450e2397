"""Every bundle of a profile on a simulated Kaggle: no parameters, no repository on the path, each fed the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbutils.core.files import read_json
from nbutils.core.notebooks import STAGES
from tests.kaggle.simulated import SMALL, bundles

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    return bundles(SMALL, tmp_path_factory.mktemp("bundles"))


def test_six_notebooks_one_after_the_other(account, made):
    account.layout = "nested"
    outputs: dict[str, Path] = {}
    for stage in STAGES:
        name = stage.file.removesuffix(".ipynb").replace("_", "-")
        sources = set(read_json(made[name] / "kernel-metadata.json")["kernel_sources"])
        attached = {address: output for address, output in outputs.items() if address in sources}
        assert len(attached) == len(stage.reads)
        outcome = account.run(made[name], attached)
        assert outcome.status == 0, f"{name}: {outcome.text[-3000:]}"
        assert read_json(outcome.working / "runs" / "small" / stage.name / "stage.json")["status"] == "done"
        outputs[f"someone/{made[name].name}"] = outcome.working


def test_the_whole_pipeline_in_two_sessions(account, made):
    bundle = made["whole-pipeline"]
    first = account.run(bundle, {}, **{"NBUTILS_STARTED": "1"})  # the budget is long used up: training pauses
    assert first.status == 0, first.text[-3000:]
    assert "paused at step 1 of 3" in first.text and "Save Version" in first.text
    second = account.run(bundle, {f"someone/{bundle.name}": first.working})
    assert second.status == 0, second.text[-3000:]
    assert "Continues session 1" in second.text
    for stage in STAGES:
        assert read_json(second.working / "runs" / "small" / stage.name / "stage.json")["status"] == "done"
