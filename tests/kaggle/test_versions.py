"""The oldest transformers that smallchat admits: parts of the suite, and a run that moves to a newer image."""

from __future__ import annotations

import re
import subprocess

import pytest

from nbutils.core.files import read_json, read_jsonl
from tests.conftest import ROOT
from tests.kaggle.attachments import WHEELS
from tests.kaggle.simulated import DATA, SMALL, Kaggle, bundles, done

pytestmark = pytest.mark.soak

PARTS = [
    "tests/core/test_models.py",
    "tests/core/test_chatml.py",
    "tests/core/test_chat_engine.py",
    "tests/core/test_generation.py",
    "tests/core/test_encode_within.py",
    "tests/train/test_parts.py",
    "tests/train/test_loss.py",
    "tests/train/test_batches.py",
    "tests/train/test_equality.py",
    "tests/evaluate/test_shared_prefix.py",
    "tests/publish/test_export.py",
]
"""Tests that touch the libraries most."""


def test_parts_of_the_suite_pass_with_the_oldest(oldest):
    command = [oldest, "-m", "pytest", "-q", "-m", "not soak", "-p", "no:cacheprovider", *PARTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_a_run_moves_from_the_oldest_to_the_newest_and_says_so(oldest, wheels, account, data, tmp_path):
    hurried = bundles(SMALL, tmp_path, "-p", "budget_minutes=0.001")["02-train-sft"]
    first = done(Kaggle(tmp_path / "oldest", oldest).run(hurried, {DATA: data, WHEELS: wheels}))
    assert re.search(r"transformers +>=5.0 +5.0.0 +kept", first.text) and "paused at step 1 of 3" in first.text
    account.layout = "flat"
    second = done(account.run(hurried, {DATA: data, "someone/any-name": first.working}))
    assert "transformers 5.0.0 (now " in second.text and "at step 1" in second.text
    train = second.working / "runs" / "small" / "train"
    assert read_json(train / "stage.json")["facts"]["step"] == 2
    rows = read_jsonl(train.parent / "kaggle.jsonl")
    assert rows[0]["versions"]["transformers"] == "5.0.0" != rows[1]["versions"]["transformers"]
