"""Starting the workers: who failed and why, secrets in their log, a hang at the first exchange, trackers."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from nbutils.cli import main
from nbutils.core import hardware, torchrun
from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl, write_text
from nbutils.core.hardware import DeviceReport
from nbutils.core.text import HIDDEN
from nbutils.core.torchrun import LOG, LOG_LINES, Hang, Torchrun
from nbutils.train import run as training
from nbutils.train import worker
from tests.conftest import ROOT
from tests.train.forked import forked
from tests.train.runs import T4, logged, small_settings, wait_for


@pytest.mark.parametrize(
    "words,failed",
    {
        "Training ended: rank 1 was killed by SIGSEGV; the last lines of ": {"rank": 1, "status": -11},
        "A sentence.": {"event": "error", "message": "A sentence."},
        "Training ended with status 1; the last ": {},
    }.items(),
)
def test_who_failed_and_how_is_told_with_the_last_40_lines_of_its_own(tmp_path, words, failed):
    (tmp_path / LOG).write_text("".join(f"[rank {i % 2}] line {i}\n" for i in range(200)))
    program = Torchrun("none", tmp_path / "settings.json", 2, activity="Training", knob="tokens_per_microbatch")
    first, *lines = program.failure(failed, 1).splitlines()
    assert words in first
    if "rank" in failed:
        assert len(lines) == LOG_LINES and lines[-1] == "[rank 1] line 199" and not any("[rank 0]" in x for x in lines)


PROGRAM = "tests.train.program"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What comes of a training whose program does something else, named by `act`."""

    def run(act):
        own = torchrun.command
        monkeypatch.setattr(torchrun, "command", lambda module, *rest: own(PROGRAM, *rest))
        monkeypatch.setenv("ACT", act)
        write_text(tmp_path / "train" / "metrics.jsonl", "")
        return training.run_training(small_settings(tmp_path), tmp_path / "train")

    return run


def processes_left(folder):
    """Of the program of a run, those that have lost their parent too."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info["cmdline"])]


def test_a_failing_rank_is_shown_and_its_secret_is_not(tmp_path, trained, monkeypatch):
    secret = "hf_" + "planted" * 4
    monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(UserError, match="Training ended: rank 1 failed with status 1") as caught:
        trained("raises")
    assert f"[rank 1] RuntimeError: planted, with the secret {HIDDEN}" in str(caught.value)
    assert "[rank 0]" not in str(caught.value) and "ChildFailedError" not in str(caught.value)
    log = (tmp_path / "train" / "worker.log").read_text()
    assert secret not in log and "planted, with the secret" in log


@pytest.mark.parametrize(
    "act,words",
    [("hangs", "could not reach each other; set processes to 1"), ("dies", r"was killed by SIGKILL \(often")],
)
def test_processes_that_do_not_meet_or_are_killed_while_they_import_are_told_with_advice(
    tmp_path, trained, capsys, act, words
):
    with pytest.raises(UserError, match=words):
        trained(act)
    assert not processes_left(tmp_path) and "once more" not in capsys.readouterr().out


@pytest.mark.parametrize("point", ["never_joins", pytest.param("never_arrives", marks=pytest.mark.soak)])
def test_a_rank_that_never_joins_ends_the_others_soon(tmp_path, point):
    """And not after the half hour that torch would wait."""
    done = forked(small_settings(tmp_path), 2, FAULT=f"{point}:1:1", HANG_SECONDS="1")
    assert done.returncode and read_jsonl(tmp_path / "train" / "progress.jsonl")[-1]["event"] == "hang"


def test_processes_meet_where_the_hosts_name_leads_nowhere(tmp_path):
    """In a mount namespace of its own, whose /etc/hosts has an address that nobody answers."""
    apart = ["unshare", "-rm"]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("namespaces are not allowed here")
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n192.0.2.1 {socket.gethostname()}\n")
    command = shlex.join(torchrun.command(PROGRAM, tmp_path / "settings.json", 2))
    script = f"mount --bind {tmp_path}/hosts /etc/hosts && exec {command}"
    done = subprocess.run([*apart, "sh", "-c", script], env=os.environ | {"ACT": "sums"}, capture_output=True,
                          text=True, timeout=100, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [row["ranks"] for row in read_jsonl(tmp_path / "progress.jsonl") if row["event"] == "finished"]
    assert ranks == [2, 2]


KERNEL = """
import sys
from pathlib import Path
from nbutils.core.torchrun import Torchrun
list(Torchrun("tests.train.program", Path(sys.argv[1]), 2, activity="Training", knob="").events())
"""


@pytest.mark.parametrize("killed,act", [("kernel", "sleeps"), ("torchrun", "sleeps"), ("kernel", "imports")])
def test_workers_die_with_their_parent_also_under_sigkill(tmp_path, killed, act):
    """torchrun makes each worker the leader of a session of its own, so nothing else would end them."""
    request, progress = tmp_path / "settings.json", tmp_path / "progress.jsonl"
    line = {
        "kernel": [sys.executable, "-c", KERNEL, str(request)],
        "torchrun": torchrun.command(PROGRAM, request, 2),
    }[killed]
    process = psutil.Popen(line, env=os.environ | {"ACT": act}, cwd=ROOT)
    try:
        wait_for(lambda: progress.is_file() and len(read_jsonl(progress)) == 2)
        below = process.children(recursive=True)
        assert len(below) == 2 + (killed == "kernel")
    finally:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(below, timeout=30)
    assert not left


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupts this process while the events of these numbers are printed, as Jupyter's ■ may."""
    before = signal.getsignal(signal.SIGINT)

    def plan(*numbers):
        seen, own = [], training.line_of

        def line_of(event, steps):
            seen.append(event)
            if len(seen) in numbers:
                os.kill(os.getpid(), signal.SIGINT)
            return own(event, steps)

        monkeypatch.setattr(training, "line_of", line_of)

    yield plan
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_a_line_is_printed_is_a_pause(trained, interrupted, capsys):
    interrupted(2)
    outcome = trained("pauses")
    assert (outcome["status"], outcome["step"], outcome["made"]) == ("paused", 3, "step 3 of 9")
    assert capsys.readouterr().out.count("Pausing: a checkpoint is being written. Interrupt again") == 1


@pytest.mark.parametrize("act,numbers", [("goes on", (2, 5)), ("imports", (1, 2))])
def test_a_second_interrupt_stops_at_once(tmp_path, trained, interrupted, act, numbers):
    interrupted(*numbers)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trained(act)
    assert time.monotonic() - started < 35  # and not until the grace time for a checkpoint is over
    assert not processes_left(tmp_path)


def test_on_nccl_a_hang_is_tried_once_more_without_peer_to_peer(tmp_path, monkeypatch):
    """With as many processes as torch sees GPUs: CUDA_VISIBLE_DEVICES hides one from it, and not from nvidia-smi."""
    found = []

    def hang(self):
        (processes,) = [part.partition("=")[2] for part in self.command if part.startswith("--nproc-per-node")]
        found.append((processes, self.environment.get("NCCL_P2P_DISABLE")))
        raise Hang
        yield {}

    monkeypatch.setattr(Torchrun, "events", hang)
    monkeypatch.setattr(hardware, "nvidia_gpus", lambda: (T4, T4))
    monkeypatch.setattr(hardware, "child_report", lambda: DeviceReport((T4,), cores=2))
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    with pytest.raises(UserError, match="reach each other, also with NCCL_P2P_DISABLE=1; set processes to 1"):
        list(training.events_of(small_settings(tmp_path, processes=0), tmp_path))
    assert found == [("1", None), ("1", "1")]


@pytest.mark.parametrize(
    "text,words", [("[]", "nbutils settings PROFILE"), ('{"settings": {"seed": -1}}', "parameter 'seed' is -1")]
)
def test_wrong_settings_files_are_sentences(tmp_path, capsys, text, words):
    file = tmp_path / "SETTINGS.json"
    file.write_text(text)
    assert worker.main([str(file)]) == worker.EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_the_command_writes_settings_that_the_worker_reads(tmp_path, root, capsys):
    assert main(["settings", str(root / "params" / "demo.yaml"), "--run-dir", str(tmp_path), "-p", "max_steps=7"]) == 0
    settings = worker.read_settings(tmp_path / "train" / "settings.json")
    assert settings.max_steps == 7 and settings.run_path == tmp_path
    assert f"-m nbutils.train.worker {tmp_path}/train/settings.json" in capsys.readouterr().out
    (tmp_path / "train" / "stage.json").write_text("{}")
    assert main(["settings", str(root / "params" / "demo.yaml"), "--run-dir", str(tmp_path)]) == 1
    assert worker.read_settings(tmp_path / "train" / "settings.json").max_steps == 7


def test_a_tracker_gets_the_logged_numbers(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    settings = small_settings(tmp_path, report_to=["tensorboard"], max_steps=4, eval_steps=2, checkpoint_steps=2)
    worker.train(settings, lambda: False)
    events = accumulator.EventAccumulator(str(tmp_path / "train" / "trackers")).Reload()
    for kind, column in (("train", "loss"), ("eval", "eval_loss")):
        seen = {event.step: event.value for event in events.Scalars(f"{kind}/loss")}
        assert seen == pytest.approx({row["step"]: row[column] for row in logged(tmp_path, kind)}, rel=1e-6)
    assert not list((tmp_path / "train" / "checkpoints").glob("runs*"))
