"""What 02 to 06 would stop over is said before 01, by `run` and by `doctor`; and what is fine is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbutils.cli import main
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.parameters import plan
from tests.conftest import ROOT

DEMO = ROOT / "params" / "demo.yaml"


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["max_length=128"], "max_new_tokens is 250, more than half of the 256 tokens"),
        (["max_length=256"], ""),
        (["max_length=256", "context_extension=none"], "choose at most 128"),
        (["max_length=128", "max_new_tokens=100", "parity_tokens=129"], "parity_tokens is 129"),
        (["tasks=[heldout_perplexity, hellaswga]"], "No task is called 'hellaswga'"),
        (["tasks=[hellaswag, arc_challenge, mmlu, ai2_arc]"], ""),  # tasks, a group, a tag
        (["task_path=no/such"], "The folder no/such"),
        (["push=true"], "repo_id is empty"),
        (["push=true", "repo_id=me/it"], ""),
    ],
)
def test_what_a_later_notebook_would_stop_over(overrides, words, tmp_path):
    planned = plan(DEMO, overrides, str(tmp_path / "run"))
    found = list(problems(planned, planned.stages))
    assert len(found) == bool(words) and words in "".join(found)
    assert not list(problems(planned, planned.stages[:3]))  # --until metrics asks none of it


def test_run_says_it_before_the_first_notebook(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["run", str(DEMO), "--run-dir", str(run), "-p", "max_length=128"]) == 1
    assert "max_new_tokens is 250" in capsys.readouterr().err
    assert not (run / "data").exists() and not (run / "notebooks").exists()


def test_a_console_that_is_not_utf8_shows_other_characters():
    code = "from nbutils.cli import main; main(['fetch', '--help']); print('\u2192 \u65e5')"
    env = {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT), "PATH": ""}
    code = code.replace("main(['fetch', '--help'])", "main(['run', 'no \u2192 such'])")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, encoding="latin-1", cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "? ?\n", done.stderr
    assert "There is no profile no ? such" in done.stderr
