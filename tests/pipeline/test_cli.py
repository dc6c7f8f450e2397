"""The command line: help, wrong usage, one sentence for what is wrong."""

import subprocess
import sys

import pytest

from nbutils.cli import main
from tests.conftest import ROOT

RUN = ["run", "params/demo.yaml"]


@pytest.mark.parametrize(
    "line,words,absent",
    [
        (["run"], "PROFILE -p --run-dir --from --only --until --accept --force --allow-paused --explain", "--out"),
        (["fetch"], "PROFILE -p --out --check", "--run-dir"),
        (["sweep"], "PROFILE -p --out --seeds --minutes --guard --take --accept --force --explain --yes", "--run-dir"),
        (["tune"], "PROFILE -p --run-dir --accept --force --minutes --explain", "--out"),
        ([], "run chat origin doctor settings fetch page sweep tune kaggle", "--run-dir"),
    ],
)
def test_help_names_every_command_and_the_options_that_have_an_effect(line, words, absent, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*line, "--help"])
    out = capsys.readouterr().out.split()
    assert ended.value.code == 0 and set(words.split()) <= {word.strip("[]") for word in out}, out
    assert absent not in out


@pytest.mark.parametrize(
    "line,words",
    [
        ([], ""),
        (["nonsense"], "nonsense"),
        (["run"], "PROFILE"),
        (["run", "x.yaml", "--accept", "--force"], ""),
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
        (["run", "x" * 300], "File name too long"),
        ([*RUN, f"-ptask_path={'x' * 300}"], "File name too long"),
        ([*RUN, "-pbase_model=~nobody-at-all/x"], "home directory"),
        ([*RUN, "--only", "train", "--until", "data"], "before train"),
        ([*RUN, "--until", "trian"], "Did you mean 'train'"),
        ([*RUN, "--only", "metrics"], "02_train_sft.ipynb"),
    ],
)
def test_a_users_error_is_one_sentence_and_status_1(line, words, refused, tmp_path):
    assert words in refused(*line, "--run-dir", tmp_path / "run")


def python(code, **env):
    """What came of the code in a Python of its own."""
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
