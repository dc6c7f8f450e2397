"""The whole road on a smaller profile: the exact listing of the run folder, what stands in it, and a second run."""

import io
import math
import re
import shutil
from contextlib import redirect_stdout

import papermill
import pyarrow.parquet as pq
import pytest
import yaml

from nbutils.cli import main
from nbutils.core.files import read_json, read_jsonl
from nbutils.core.notebooks import parameters
from nbutils.core.run.layout import Run
from nbutils.core.stages import STAGES
from tests import forked_kernels
from tests.conftest import ROOT
from tests.faults.bench import SECRETS

PROFILE = ROOT / "tests" / "notebooks" / "small.yaml"
CHAT = ROOT / "notebooks" / "05_chat.ipynb"


def pipeline(run):
    """Runs it in this process, with forked kernels; what was printed."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        forked_kernels.use(patch)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        assert main(["run", str(PROFILE), "--run-dir", str(run)]) == 0, out.getvalue()[-3000:]
    return out.getvalue()


@pytest.fixture(scope="session")
def run(made_once):
    """A finished run; tests leave it as it is."""
    return made_once("small", pipeline)


@pytest.fixture
def spare(run, tmp_path):
    """A copy of the finished run, with the times of change of its files."""
    return shutil.copytree(run, tmp_path / "small")


def files(run):
    """Name in the run folder → path."""
    return {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}


def test_the_exact_listing_of_the_run_folder(run):
    """Files of one kind are folded where their number depends on the data."""
    found = {re.sub(r"data-\d{5}-of-\d{5}", "data-N-of-N", name) for name in files(run)}
    assert sorted(found) == (ROOT / "tests" / "notebooks" / "listing.txt").read_text().split()


def test_every_stage_lists_what_it_made(run):
    for stage in STAGES:
        outputs = read_json(run / stage.name / "stage.json")["outputs"]
        assert {*outputs, "stage.json"} == set(files(run / stage.name))


def test_the_metrics_are_those_of_the_training_asked_for(run):
    rows = read_jsonl(run / "train" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4, 8, 12, 16]
    evaluations = [(r["step"], r["epoch"]) for r in rows if r["kind"] == "eval"]
    assert evaluations == [(0, 0.0), (8, 1.0), (16, 2.0)]  # once, where an epoch ends too
    losses = [r["eval_loss"] for r in rows if r["kind"] == "eval"]
    assert losses[0] == pytest.approx(math.log(4096), abs=0.3) and losses[-1] < losses[0] - 0.5


def test_the_held_out_losses_are_those_of_the_last_evaluation_by_the_rows_of_the_ledger(run):
    found = pq.read_table(Run(run).heldout)
    (last,) = (r for r in read_jsonl(run / "train" / "metrics.jsonl") if r["step"] == 16 and r["kind"] == "eval")
    loss, tokens = (found[name].to_numpy() for name in ("loss_sum", "tokens"))
    assert loss.sum() / tokens.sum() == last["eval_loss_all_tokens"]  # what `supervise: all` counts
    ledger = pq.read_table(run / "data" / "ledger.parquet", filters=[("fate", "=", "kept"), ("side", "=", "eval")])
    assert found.select(["source", "index"]).equals(ledger.select(["source", "index"]))
    assert tokens.tolist() == [row - 1 for row in ledger["tokens"].to_pylist()]  # the first is never predicted


def test_the_published_folder_answers_without_nbutils_as_the_session_does(run):
    found = read_json(run / "publish" / "stage.json")["facts"]["parity"]
    assert (found["conversations"], found["replies"]) == (5, 1)


def test_a_second_run_executes_nothing_and_says_so(spare):
    before = {path: path.stat().st_mtime_ns for name, path in files(spare).items() if name != "run.json"}
    said = pipeline(spare)
    assert "cell 1/" not in said and "Nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_no_secret_is_written_anywhere(run):
    for name, path in files(run).items():
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), name


def test_a_notebook_runs_on_its_own_from_any_directory(spare, tmp_path, monkeypatch):
    forked_kernels.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(PROFILE.read_text()) | {"run_dir": str(spare)}
    own = {name: values[name] for name in parameters(CHAT) if name in values}
    papermill.execute_notebook(CHAT, "out.ipynb", own, kernel_name="python3", progress_bar=False)
    assert read_json(spare / "chat" / "stage.json")["status"] == "done"
