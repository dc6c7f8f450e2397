"""The whole road on a smaller profile: the exact listing of the run folder, what stands in it, and a second run."""

from __future__ import annotations

import io
import math
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import papermill
import pytest
import yaml
from datasets import load_from_disk

from nbutils.cli import main
from nbutils.core.files import read_json, read_jsonl, sha256_of_file
from nbutils.core.notebooks import parameters
from nbutils.core.stages import STAGES
from tests import forked_kernels
from tests.conftest import ROOT
from tests.train.forked import LIBRARIES

PROFILE = ROOT / "tests" / "notebooks" / "small.yaml"
CHAT = ROOT / "notebooks" / "05_chat.ipynb"
SECRETS = {"HF_TOKEN": "hf_" + "planted" * 5, "KAGGLE_KEY": "kgat" + "planted" * 4}


def pipeline(run: Path) -> str:
    """Runs it in this process, with the first kernel fresh and others forked; what was printed."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        forked_kernels.use(patch, fresh=1)
        for name, value in ({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | SECRETS).items():
            patch.setenv(name, value)
        assert main(["run", str(PROFILE), "--run-dir", str(run)]) == 0, out.getvalue()[-3000:]
    return out.getvalue()


@pytest.fixture(scope="session")
def run(made_once) -> Path:
    """A finished run; tests leave it as it is."""
    return made_once("small", pipeline)


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
    assert max(len(row["input_ids"]) for rows in sides.values() for row in rows) <= 128


def test_the_metrics_are_those_of_the_training_asked_for(run):
    rows = read_jsonl(run / "train" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4, 8, 12, 16]
    evaluations = [(r["step"], r["epoch"]) for r in rows if r["kind"] == "eval"]
    assert evaluations == [(0, 0.0), (8, 1.0), (16, 2.0)]  # once, where an epoch ends too
    losses = [r["eval_loss"] for r in rows if r["kind"] == "eval"]
    assert losses[0] == pytest.approx(math.log(4096), abs=0.3) and losses[-1] < losses[0] - 0.5


def loads(run: Path) -> None:
    """In a process of its own: what is published, read by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.modules["nbutils"] = None
    model = AutoModelForCausalLM.from_pretrained(run / "publish")
    tokenizer = AutoTokenizer.from_pretrained(run / "publish")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert AutoTokenizer.from_pretrained(run / "train" / "final").eos_token == "<|im_end|>"
    assert AutoModelForCausalLM.from_pretrained(run / "train" / "base").num_parameters() == 1_315_968


def test_the_published_folder_loads_without_nbutils(run):
    process = LIBRARIES.Process(target=loads, args=(run,))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_a_second_run_executes_nothing_and_says_so(spare):
    before = {path: path.stat().st_mtime_ns for path in spare.rglob("*") if path.is_file() and path.name != "run.json"}
    said = pipeline(spare)
    assert "cell 1/" not in said and "Nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_no_secret_is_written_anywhere(run):
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_a_notebook_runs_on_its_own_from_any_directory(spare, tmp_path, monkeypatch):
    forked_kernels.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(PROFILE.read_text()) | {"run_dir": str(spare)}
    own = {name: values[name] for name in parameters(CHAT) if name in values}
    papermill.execute_notebook(str(CHAT), "out.ipynb", own, kernel_name="python3", progress_bar=False)
    assert read_json(spare / "chat" / "stage.json")["status"] == "done"
    assert read_json(tmp_path / "out.ipynb")["cells"]
