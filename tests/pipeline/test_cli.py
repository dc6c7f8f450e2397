"""The command line: help, wrong usage, one sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbutils.cli import main


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "run the notebooks of a profile" in capsys.readouterr().out


def test_help_of_run_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    for option in (
        "PROFILE",
        "-p",
        "--run-dir",
        "--from",
        "--only",
        "--accept",
        "--force",
        "--allow-paused",
        "--explain",
        "--until",
    ):
        assert option in out


@pytest.mark.parametrize("line", [[], ["nonsense"], ["run"], ["run", "x.yaml", "--accept", "--force"]])
def test_wrong_usage_ends_with_2(line, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2


def test_a_users_error_is_one_sentence_and_status_1(capsys):
    assert main(["run", "params/no_such_profile.yaml"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "There is no profile params/no_such_profile.yaml" in error


@pytest.mark.parametrize(
    "options,words",
    [
        (["--only", "train", "--until", "data"], "before train"),
        (["--from", "evaluate", "--until", "train"], "before evaluate"),
        (["--until", "trian"], "There is no stage 'trian'"),
    ],
)
def test_stages_that_cannot_be_chosen_together_are_one_sentence(options, words, capsys, tmp_path):
    assert main(["run", "params/demo.yaml", "--run-dir", str(tmp_path / "run"), *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    "profile,words",
    [("params/demo.yaml/x", "Not a directory"), ("x" * 300, "File name too long"), ("params", "demo.yaml")],
)
def test_a_profile_that_cannot_be_read_is_one_sentence(profile, words, capsys):
    assert main(["run", profile]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


@pytest.mark.parametrize("minutes", ["0", "-1", "inf", "nan", "soon"])
def test_a_time_limit_is_a_number_above_0(minutes, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "params/demo.yaml", "--explain", "--cell-minutes", minutes])
    assert ended.value.code == 2 and "--cell-minutes" in capsys.readouterr().err


def test_explaining_needs_neither_torch_nor_papermill():
    code = (
        "import sys; from nbutils.cli import main; status = main(['run', 'params/demo.yaml', '--explain']); "
        "print(sorted({'torch', 'transformers', 'papermill', 'datasets'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
