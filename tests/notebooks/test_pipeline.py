"""The whole road on a smaller profile: the exact listing of the run folder, what stands in it, and a second run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasets import load_from_disk
from papermill.cli import papermill
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils.core.files import read_json, read_jsonl, sha256_of_file
from nbutils.core.stages import STAGES
from tests.conftest import ROOT

PROFILE = ROOT / "tests" / "notebooks" / "small.yaml"
SECRETS = {"HF_TOKEN": "hf_" + "planted" * 5, "KAGGLE_KEY": "kgat" + "planted" * 4}


def pipeline(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nbutils", "run", str(PROFILE), "--run-dir", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | SECRETS
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=560, check=False)


@pytest.fixture(scope="session")
def run(made_once) -> Path:
    """A finished run; tests leave it as it is."""

    def make(folder: Path) -> None:
        done = pipeline(folder)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    return made_once("small", make)


@pytest.fixture
def spare(run, tmp_path) -> Path:
    """A copy of the finished run, with the times of change of its files."""
    return shutil.copytree(run, tmp_path / "small")


def listing(run: Path) -> list[str]:
    """Files of the run folder, those of one kind folded where their number depends on the data."""
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return sorted({re.sub(r"data-\d{5}-of-\d{5}", "data-N-of-N", name) for name in names})


def test_the_exact_listing_of_the_run_folder(run):
    expected = (ROOT / "tests" / "notebooks" / "listing.txt").read_text().split("\n")
    assert listing(run) == [line for line in expected if line]


def test_every_stage_says_what_it_made_with_hashes(run):
    for stage in STAGES:
        record = read_json(run / stage.name / "stage.json")
        assert record["status"] == "done" and record["schema"] == 1
        files = {p for p in (run / stage.name).rglob("*") if p.is_file() and p.name != "stage.json"}
        assert {run / stage.name / name for name in record["outputs"]} == files
        for name, entry in record["outputs"].items():
            assert sha256_of_file(run / stage.name / name) == entry["sha256"]


def test_the_ledger_and_the_rows_reconcile(run):
    import pyarrow.parquet as pq

    ledger = pq.read_table(run / "data" / "ledger.parquet").to_pandas()
    summary = read_json(run / "data" / "summary.json")
    assert len(ledger) == summary["rows"]
    kept = ledger[ledger.fate == "kept"]
    sides = {side: load_from_disk(str(run / "data" / side)) for side in ("train", "eval")}
    assert {side: len(rows) for side, rows in sides.items()} == kept.side.value_counts().to_dict()
    assert max(len(row["input_ids"]) for rows in sides.values() for row in rows) <= 256


def test_the_metrics_are_those_of_the_training_asked_for(run):
    rows = read_jsonl(run / "train" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4, 8, 12, 16]
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [0, 8, 16]
    losses = [r["eval_loss"] for r in rows if r["kind"] == "eval"]
    assert losses[0] == pytest.approx(math.log(4096), abs=0.3) and losses[-1] < losses[0] - 0.5


def test_the_published_folder_loads_without_nbutils(run):
    code = (
        "import sys; sys.modules['nbutils'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(run / 'publish')!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(run / 'publish')!r})\n"
        "ids = t.apply_chat_template([{'role': 'user', 'content': 'Hi'}], add_generation_prompt=True, "
        "return_tensors='pt', return_dict=True)\n"
        "print(m.generate(**ids, max_new_tokens=3, do_sample=False).shape[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/", check=False
    )
    assert done.stdout.strip().endswith("1"), done.stderr[-2000:]
    assert AutoTokenizer.from_pretrained(run / "train" / "final").eos_token == "<|im_end|>"
    assert AutoModelForCausalLM.from_pretrained(run / "train" / "base").num_parameters() == 1_315_968


def test_a_second_run_executes_nothing_and_says_so(spare):
    before = {path: path.stat().st_mtime_ns for path in spare.rglob("*") if path.is_file() and path.name != "run.json"}
    again = pipeline(spare)
    assert again.returncode == 0
    assert "cell 1/" not in again.stdout and "nothing" in again.stdout.lower()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_no_secret_is_written_anywhere(run):
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_a_notebook_runs_on_its_own_from_any_directory(spare, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "03_plot_metrics.ipynb"), str(out)]
    done = subprocess.run(
        [*command, "-f", str(PROFILE), "-p", "run_dir", str(spare), "-k", "python3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(spare / "metrics" / "stage.json")["status"] == "done"
    assert json.loads(out.read_text())["cells"]


def test_help_notebook_explains_every_parameter():
    for stage in STAGES:
        done = CliRunner().invoke(papermill, ["--help-notebook", str(ROOT / "notebooks" / stage.file)])
        assert done.exit_code == 0 and "run_dir: str" in done.output, stage.file


@pytest.mark.parametrize(
    "options,words",
    [
        (["-p", "learnig_rate=1"], ["learnig_rate", "learning_rate"]),
        (["-p", "learning_rate=-1"], ["learning_rate", "greater than 0"]),
        (["--only", "metrics"], ["02_train_sft.ipynb"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, options, words):
    done = pipeline(tmp_path / "empty", *options)
    assert done.returncode != 0 and "Traceback" not in done.stderr + done.stdout
    assert all(word in done.stderr + done.stdout for word in words), done.stderr
