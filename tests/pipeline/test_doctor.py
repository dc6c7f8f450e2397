"""`python -m nbutils doctor`: before notebook 01, on a run's own data, with problems, and learning by heart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, write_json
from nbutils.core.run.models import ModelRef
from nbutils.data.settings import DatasetSpec
from nbutils.data.sources import open_source
from nbutils.train import overfit
from nbutils.train.settings import TrainSettings
from tests.builders import data_folder
from tests.train.forked import forked
from tests.train.runs import small_settings

PROFILE = "base_model: tiny\nmax_length: 256\nprocesses: 2\n"


@pytest.fixture
def doctor(capsys):
    """Runs the command in this process; its exit status and what it printed."""

    def run(profile: Path, run: Path, *options: str) -> tuple[int, str]:
        status = main(["doctor", str(profile), "--run-dir", str(run), *options])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def profile(tmp_path) -> Path:
    file = tmp_path / "profile.yaml"
    file.write_text(PROFILE)
    return file


def test_before_notebook_01_it_says_what_cannot_be_checked_yet(doctor, profile, tmp_path):
    status, out = doctor(profile, tmp_path / "run")
    assert status == 0, out
    assert "later  " in out and "run notebook 01, then this again" in out
    assert "The base model tiny has" in out and "disk of" in out
    assert out.splitlines()[-1] == "Nothing stands against this run, as far as it can be checked yet."
    assert not (tmp_path / "run").exists()  # a look changes nothing


def test_every_problem_is_listed_at_once_and_the_status_says_so(doctor, profile, tmp_path):
    run = tmp_path / "run"
    data = data_folder(run, train=30)
    write_json(data / "summary.json", read_json(data / "summary.json") | {"max_length": 999})
    status, out = doctor(profile, run, "-p", "precision=fp16", "-p", "report_to=[tensorbord]")
    assert status == 1 and "3 problems would stop this run or spoil it:" in out
    for text in ("report_to: no tracker tensorbord", "precision is fp16, but training runs on the CPU"):
        assert out.count(f"  STOP  {text}") == 1
    assert "up to 999 tokens, but max_length is 256" in out  # of another notebook 01


def test_a_base_folder_that_holds_no_model_is_one_problem_in_the_list(doctor, profile, tmp_path):
    status, out = doctor(profile, tmp_path / "run", "-p", "base_model=params", "-p", "report_to=[tensorbord]")
    assert status == 1 and "2 problems would stop this run or spoil it:" in out
    assert out.count("  STOP  ") == 2 and "params holds no model" in out and "no tracker tensorbord" in out


@pytest.mark.parametrize(
    "option,words",
    [
        ("learning_rate=11", "'learning_rate' is 11"),
        ("learning_rat=1", "Did you mean 'learning_rate'?"),
        ("trainer_options={packing: true}", "'packing' cannot be set here"),
        ("base_model=nobody/no-such-model", "no way to base model nobody/no-such-model (offline: the hub does not"),
    ],
)
def test_wrong_parameters_and_what_cannot_be_had_are_one_sentence(profile, tmp_path, capsys, option, words):
    assert main(["doctor", str(profile), "--run-dir", str(tmp_path / "run"), "-p", option]) == 1
    said = capsys.readouterr()
    assert words in said.err and not said.out and said.err.count("\n") == 1


def test_without_a_network_no_library_tries_again(tmp_path, monkeypatch, unasked, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    for read in (ModelRef("nobody/none", hub="nobody/none").config, ModelRef("nobody/none", hub="nobody/none").commit):
        with pytest.raises(UserError, match="the hub does not answer"):
            read()
    with pytest.raises(UserError, match="the hub does not answer"):
        open_source(DatasetSpec(path="nobody/none"), False)
    assert time.monotonic() - started < 20 and "etry" not in caplog.text


@pytest.fixture
def one_forked_rank(monkeypatch):
    """The real training program, without torchrun and the imports of its processes."""

    def events(settings: TrainSettings, folder: Path) -> list[dict]:
        done = forked(settings, 1)
        assert done.returncode == 0, done.stderr
        return read_jsonl(folder / "progress.jsonl")

    monkeypatch.setattr(overfit, "events_of", events)


def test_four_conversations_are_learned_by_heart(doctor, profile, tmp_path, one_forked_rank):
    run = tmp_path / "run"
    status, out = doctor(profile, run, "--overfit")
    assert status == 0, out
    assert "4 of 4 replies came out word for word, each stopping by itself" in out
    assert "tiny learned by heart: the loss came down to" in out
    assert not (run / "train").exists()


def test_a_set_up_that_cannot_learn_is_told(tmp_path, monkeypatch, one_forked_rank):
    monkeypatch.setattr(overfit, "RATE", {True: 1e-6})
    monkeypatch.setattr(overfit, "STEPS", {True: 5})
    found = overfit.overfit(small_settings(tmp_path / "run", processes=1))
    stops = " ".join(finding.text for finding in found if finding.level == "STOP")
    assert "below 0.1 is needed" in stops and "of 4 replies came out word for word" in stops and "for example" in stops
