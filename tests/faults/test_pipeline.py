"""Every way in which a run can end badly: real processes, real kernels, real signals, real disks."""

import os
import shlex
import subprocess
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest

from nbutils.core.files import read_json
from tests.conftest import ROOT
from tests.faults.bench import SECRETS, Bench, mounted, nothing, signals, to_one
from tests.pipeline.fake import PROGRAM, write_notebooks

KERNEL = "ipykernel_launcher"


@pytest.fixture
def bench(tmp_path):
    folder = write_notebooks(tmp_path / "notebooks")
    return Bench(tmp_path, PROGRAM, "steps: 60\n", "--until=second", NBUTILS_NOTEBOOKS=str(folder))


CHAINS = {
    "in a cell": [
        (nothing, 1, "02_second.ipynb, cell In [4] raised ValueError: the answer is not 42.", "-pfault=exception"),
        (nothing, 1, "cell In [4] called sys.exit(3)", "-pfault=exit"),
        (nothing, 1, "cell In [4] called sys.exit()", "-pfault=exit0"),
        (nothing, 1, "code cell 4: the kernel died with exit status 7", "-pfault=os_exit"),
        (nothing, 1, "cell In [4]: memory ran out", "-pfault=memory"),
        (nothing, 1, "code cell 4 took longer than --cell-minutes 0.15", "-pfault=child", "--cell-minutes=0.15"),
        (to_one(SIGKILL, KERNEL), 1, "code cell 4: the kernel was ended by SIGKILL", "-pfault=child"),
        (to_one(SIGINT, KERNEL), 1, "cell In [4] was interrupted; run the same command again", "-pfault=child"),
    ],
    "signals to a stage that cannot pause": [
        (signals(number), 128 + number, f"first was stopped by {number.name}", "-pnote=child")
        for number in (SIGINT, SIGTERM, SIGHUP)
    ],
    "signals to one that can": [
        (signals(SIGTERM), 0, "second is paused at", "-pstep_seconds=0.2"),
        (signals(SIGHUP), 0, "second is paused at", "-pstep_seconds=0.2"),
        (signals(SIGINT, SIGINT), 128 + SIGINT, "Ending the stage now", "-pfault=child"),
        # it does not answer
        (signals(SIGTERM), 128 + SIGTERM, "ended by SIGTERM before it had saved a checkpoint", "-pfault=child"),
        (signals(SIGKILL), -SIGKILL, "", "-pfault=child"),
    ],
}


@pytest.mark.soak
@pytest.mark.parametrize("chain", CHAINS)
def test_after_one_fault_and_the_next_the_same_command_goes_on(bench, chain):
    for fault in CHAINS[chain]:
        bench.suffers(*fault)
    assert ("01_first.ipynb" in bench.goes_on()) == ("cannot" in chain), "only what was interrupted is run again"


def test_secrets_stand_in_no_file_and_a_signal_pauses(bench):
    said = bench.suffers(nothing, 1, "cell In [4] raised ValueError: 401 with [secret]", "-pfault=secret")
    assert "halves [secret]\n" in said
    bench.suffers(signals(SIGINT), 0, "second is paused at", "-pstep_seconds=0.2")
    assert "01_first.ipynb" not in bench.goes_on()
    for path in bench.run.rglob("*"):
        assert path.is_dir() or not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path


@pytest.mark.soak
def test_a_kernel_that_does_not_start(bench, tmp_path):
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('no zmq here')")
    status, output = bench.go(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert status == 1
    assert "The kernel for 01_first.ipynb did not start (ImportError: no zmq here)" in output


@pytest.mark.soak
def test_a_full_disk(bench):
    with mounted(bench.run, "size=4m"):
        status, output = bench.go("-pfault=full_disk")
        assert status == 1 and "is full: free some space and run the same command again." in output
        assert read_json(bench.run / "notebooks" / "02_second.ipynb")["cells"], "the last that was saved is whole"
        (bench.run / "second" / "big.bin").unlink()
        bench.goes_on()


@pytest.mark.soak
def test_a_read_only_run_folder(bench):
    with mounted(bench.run, "ro"):
        status, output = bench.go()
        assert status == 1 and output.count("\n") == 1 and "cannot be written (Read-only file system)" in output


@pytest.mark.soak
def test_a_reader_that_goes_away_ends_nothing(bench):
    line = shlex.join([*bench.line, "--until=first"])
    subprocess.run(f"{line} | head -1", shell=True, env=bench.environment, check=True, capture_output=True)
    assert read_json(bench.run / "first" / "stage.json")["status"] == "done"
