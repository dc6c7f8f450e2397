"""Notebook 07 on the demo's conversations, with real trainings: killed and run again, and with real questions."""

import json
import subprocess
import sys

import psutil
import pytest

from nbutils.core.files import read_json
from nbutils.core.notebooks import SWEEP, notebooks_folder
from nbutils.core.run.layout import Run
from tests.evaluate.stock_tasks import write_stock_tasks
from tests.train.runs import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]  # a dozen kernels on few cores
VALUES = {
    "datasets": [{"path": "chitchat", "fraction": 0.1}],
    "eval_fraction": 0.3,
    "max_length": 256,
    "max_steps": 60,
    "tokens_per_step": 256,
    "tokens_per_microbatch": 256,
    "eval_steps": 0,
    "checkpoint_steps": 20,
    "processes": 1,
}


def start(out, *rates, **changes):
    """The process of papermill; what it says is appended to a file beside the sweep."""
    asked = {"run_dir": str(out), "profile": "", "values": VALUES, "sweep": {"learning_rate": rates}, "seeds": 1}
    line = [sys.executable, "-m", "papermill", notebooks_folder() / SWEEP, out.with_suffix(".ipynb"), "--log-output",
            "-y", json.dumps(asked | changes)]  # fmt: skip
    with out.with_suffix(".log").open("a") as log:
        return psutil.Popen(line, stdout=log, stderr=subprocess.STDOUT)


def test_killed_twice_it_ends_with_the_table_of_an_undisturbed_one(tmp_path):
    killed, whole, rates = tmp_path / "killed", tmp_path / "whole", (0.00004, 0.004)
    undisturbed = start(whole, *rates)  # at the same time: two cores, two sweeps
    for rate in ("4e-05", "0.004"):
        process, run = start(killed, *rates), Run(killed / f"learning_rate-{rate}_seed-0")
        wait_for(lambda run=run: run.newest_sealed() is not None, 1500)
        below = process.children(recursive=True)
        process.kill()
        assert below and not psutil.wait_procs(below, timeout=30)[1]
    ended = [start(killed, *rates).wait(), undisturbed.wait()]
    said = killed.with_suffix(".log").read_text()
    assert ended == [0, 0] and "learning_rate 4e-05, seed 0: was interrupted before it finished" in said
    verdicts = [read_json(out / "verdict.json") for out in (killed, whole)]
    assert verdicts[0] == verdicts[1] and verdicts[0]["verdict"]["best"] == {"learning_rate": 0.004}, said
    assert [row["word"] for row in verdicts[0]["verdict"]["rows"]] == ["best", "worse"]


def test_the_guard_asks_the_base_and_each_recipe_real_questions(tmp_path, evaldata):
    own = {"task_path": write_stock_tasks(tmp_path / "tasks", evaldata), "cache_dir": str(tmp_path / "cache")}
    out, values = tmp_path / "sweep", VALUES | own | {"max_steps": 8}
    assert not start(out, 0.0004, 0.004, values=values, guard="hellaswag:200,sciq:200").wait()
    lost = read_json(out / "verdict.json")["lost"]
    rows = [(row["task"], row["metric"], row["groups"]) for rows in lost.values() for row in rows]
    assert len(lost) == 2 and rows == [("hellaswag", "acc_norm", 200), ("sciq", "acc_norm", 200)] * 2
    assert (out / "sweep.md").read_text().count("Against its base, learning_rate 0.") == 2
