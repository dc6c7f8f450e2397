"""`python -m nbutils doctor`: before notebook 01, on a run's own data, with problems, and learning by heart."""

import re
import time

import pytest

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl
from nbutils.core.run.models import ModelRef
from nbutils.data.settings import DatasetSpec
from nbutils.data.sources import open_source
from nbutils.train import overfit
from tests.builders import data_folder
from tests.train.forked import forked
from tests.train.runs import small_settings


@pytest.fixture
def doctor(tmp_path, capsys):
    """Runs the command in this process; its exit status and what it printed."""

    def run(*options):
        profile = tmp_path / "profile.yaml"
        profile.write_text("base_model: tiny\nmax_length: 256\nprocesses: 2\n")
        status = main(["doctor", str(profile), "--run-dir", str(tmp_path / "run"), *options])
        return status, capsys.readouterr().out

    return run


def test_every_problem_is_listed_at_once_and_the_status_says_so(doctor, tmp_path):
    data_folder(tmp_path / "run", train=30)
    status, out = doctor("-pprecision=fp16", "-preport_to=[tensorbord]", "-pbase_model=params")
    assert status == 1 and "4 problems would stop this run or spoil it:" in out
    stops = ("no tracker tensorbord", "precision is fp16, but training runs on the CPU", "params holds no model")
    for text in (*stops, "run/data was tokenised for base_model 'tiny'"):
        assert len(re.findall(f"  STOP  .*{text}", out)) == 1, out


def test_without_a_network_no_library_tries_again(monkeypatch, unasked, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    model = ModelRef("nobody/none", hub="nobody/none")
    for read in (model.config, model.commit, lambda: open_source(DatasetSpec(path="nobody/none"), False)):
        with pytest.raises(UserError, match="the hub does not answer"):
            read()
    assert time.monotonic() - started < 20 and "etry" not in caplog.text


@pytest.fixture
def one_forked_rank(monkeypatch):
    """The real training program, without torchrun and the imports of its processes."""

    def events(settings, folder):
        forked(settings, 1)
        return read_jsonl(folder / "progress.jsonl")

    monkeypatch.setattr(overfit, "events_of", events)


def test_before_notebook_01_four_conversations_are_learned_by_heart(doctor, tmp_path, one_forked_rank):
    status, out = doctor("--overfit")
    assert status == 0, out
    assert "4 of 4 replies came out word for word, each stopping by itself" in out
    assert "later  " in out and "run notebook 01, then this again" in out
    assert "The base model tiny has" in out and "disk of" in out
    assert out.splitlines()[-1] == "Nothing stands against this run, as far as it can be checked yet."
    assert not (tmp_path / "run").exists()  # a look changes nothing


def test_a_set_up_that_cannot_learn_is_told(tmp_path, monkeypatch, one_forked_rank):
    monkeypatch.setattr(overfit, "RATE", {True: 1e-6})
    monkeypatch.setattr(overfit, "STEPS", {True: 5})
    found = overfit.overfit(small_settings(tmp_path / "run", processes=1))
    stops = " ".join(finding.text for finding in found if finding.level == "STOP")
    assert "below 0.1 is needed" in stops and "of 4 replies came out word for word" in stops and "for example" in stops
