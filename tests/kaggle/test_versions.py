"""The oldest transformers that smallchat admits: parts of the suite (whole notebooks are in test_all_notebooks)."""

import subprocess

import pytest

from tests.conftest import ROOT

PARTS = [
    "tests/core/test_models.py",
    "tests/core/test_chatml.py",
    "tests/core/test_chat_engine.py",
    "tests/core/test_generation.py",
    "tests/train/test_parts.py",
    "tests/train/test_loss.py",
    "tests/evaluate/test_shared_prefix.py",
]
"""Tests that touch the libraries most, and that the notebooks do not make themselves."""


@pytest.mark.soak
def test_parts_of_the_suite_pass_with_the_oldest(oldest):
    ran = subprocess.run([oldest, "-m", "pytest", "-q", "-m", "not soak", "-p", "no:cacheprovider", *PARTS], cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
