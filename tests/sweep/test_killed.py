"""Notebook 07 on the demo's conversations, with real trainings, killed and run again."""

import psutil
import pytest

from nbutils.core.files import read_json
from nbutils.core.run.layout import Run
from tests.sweep.forking import start
from tests.train.runs import wait_for

VALUES = {
    "datasets": [{"path": "chitchat", "fraction": 0.1}],
    "data_processes": 1,
    "eval_fraction": 0.3,
    "max_length": 256,
    "max_steps": 60,
    "tokens_per_step": 256,
    "tokens_per_microbatch": 256,
    "eval_steps": 0,
    "checkpoint_steps": 20,
    "log_steps": 10,
    "processes": 1,
    "sample_prompts": ["Hi"],
}
ASKED = {"profile": "", "values": VALUES, "sweep": {"learning_rate": [0.00004, 0.004, 0.4]}, "seeds": 2}


@pytest.mark.soak
def test_killed_twice_it_ends_with_the_table_of_an_undisturbed_one(tmp_path):
    killed, whole, log = tmp_path / "killed", tmp_path / "whole", tmp_path / "log"
    undisturbed = start(ASKED | {"run_dir": str(whole)}, log)  # at the same time: two cores, two sweeps
    for rate in ("4e-05", "0.4"):
        process = start(ASKED | {"run_dir": str(killed)}, log)
        run = Run(killed / f"learning_rate-{rate}_seed-1")
        wait_for(lambda run=run: run.newest_sealed() is not None)
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert below and not psutil.wait_procs(below, timeout=5)[1]
    both = [start(ASKED | {"run_dir": str(killed)}, log), undisturbed]
    for process in both:
        process.join()
    said = log.read_text()
    assert [process.exitcode for process in both] == [0, 0], said
    assert "learning_rate 4e-05, seed 1: was interrupted before it finished" in said
    verdicts = [read_json(out / "verdict.json") for out in (killed, whole)]
    assert verdicts[0] == verdicts[1] and verdicts[0]["verdict"]["best"] == {"learning_rate": 0.004}, said
    assert [row["word"] for row in verdicts[0]["verdict"]["rows"]] == ["best", "worse", "worse"]
    weights = [sorted(out.glob("*/train/final/model.safetensors")) for out in (killed, whole)]
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
