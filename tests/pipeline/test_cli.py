"""The command line: help, wrong usage, one sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbutils.cli import main
from tests.conftest import ROOT

RUN = ["run", "params/demo.yaml"]


@pytest.mark.parametrize(
    "line,words",
    [
        (["--help"], "run the notebooks of a profile"),
        (["run", "--help"], "PROFILE -p --run-dir --from --only --accept --force --allow-paused --explain --until"),
    ],
)
def test_help_names_every_command_and_option(line, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    out = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and (words in out or all(word in out for word in words.split(" ")))


def test_an_option_without_effect_is_not_offered(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    assert "--run-dir" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "line,words",
    [
        *(([], ""), (["nonsense"], "nonsense"), (["run"], "PROFILE"), (["run", "x.yaml", "--accept", "--force"], "")),
        # a time limit is a number above 0
        *(([*RUN, "--explain", "--cell-minutes", n], "--cell-minutes") for n in ("0", "-1", "inf", "nan", "soon")),
    ],
)
def test_wrong_usage_ends_with_2(line, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "line,words",
    [
        (["run", "params/no_such_profile.yaml"], "There is no profile params/no_such_profile.yaml"),
        (["run", "params/demo.yaml/x"], "Not a directory"),
        (["run", "x" * 300], "File name too long"),
        (["run", "params"], "demo.yaml"),
        ([*RUN, "--only", "train", "--until", "data"], "before train"),
        ([*RUN, "--from", "evaluate", "--until", "train"], "before evaluate"),
        ([*RUN, "--until", "trian"], "There is no stage 'trian'"),
        ([*RUN, "--until", "trian"], "Did you mean 'train'"),
        ([*RUN, "--only", "metrics"], "02_train_sft.ipynb"),
        ([*RUN, "-p", "learnig_rate=1"], "Did you mean 'learning_rate'"),
    ],
)
def test_a_users_error_is_one_sentence_and_status_1(line, words, capsys, tmp_path):
    assert main([*line, "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    line, own = [sys.executable, "-c", f"from nbutils.cli import main\n{code}"], {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(line, env=own | env, capture_output=True, encoding="latin-1", cwd=ROOT)


def test_explaining_needs_neither_torch_nor_papermill():
    heavy = "{'torch', 'transformers', 'papermill', 'datasets', 'pandas'}"
    done = python(f"assert main({RUN} + ['--explain']) == 0\nimport sys; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_console_that_is_not_utf8_shows_other_characters():
    done = python("main(['run', 'no \\u2192 such'])\nprint('\\u2192 \\u65e5')", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and done.stdout == "? ?\n", done.stderr
    assert "There is no profile no ? such" in done.stderr
