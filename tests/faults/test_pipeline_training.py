"""The real notebook 02 under the pipeline: a pause, a rank killed, the pipeline killed, and the way on."""

import shutil
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from nbutils.core.files import read_json
from nbutils.core.run.layout import Run
from nbutils.core.run.stage import Stage
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from tests.builders import data_folder
from tests.faults.bench import Bench, signals, to_one
from tests.train.runs import wait_for

pytestmark = pytest.mark.soak

PROFILE = """
max_length: 256
max_steps: 160
tokens_per_step: 512
log_steps: 1
checkpoint_steps: 10
eval_steps: 0
plain_loop_steps: 0
sample_prompts: [Hello]
processes: 2
"""


class Training(Bench):
    """Pipelines on one run folder with the real notebooks."""

    def __init__(self, folder):
        super().__init__(folder, ("-m", "nbutils"), PROFILE, "--only=train")

    def checkpoints(self):
        """Those that are whole, the newest first."""
        return Run(self.run).checkpoints()

    def under_way(self):
        """Waits until training has passed a checkpoint more."""
        before = self.checkpoints()[:1]
        wait_for(lambda: self.checkpoints()[:1] != before)


@pytest.fixture(scope="session")
def prepared(made_once):
    """A finished data stage."""

    def make(folder):
        stage = Stage.begin("data", settings_of(spec("data"), {"run_dir": str(folder), "max_length": 256}))
        data_folder(folder, train=400)
        stage.finish()

    return made_once("data of a training", make)


@pytest.fixture
def training(prepared, tmp_path):
    made = Training(tmp_path)
    shutil.copytree(prepared, made.run)
    return made


def early(training, process):
    """A stage is made ready in tens of seconds, or minutes where a base is large: a request is not forgotten."""
    wait_for((training.run / "train" / "stage.json").is_file)
    process.send_signal(SIGTERM)


MEMORY = "rank 1 was killed by SIGKILL (often the machine ran out of memory: lower tokens_per_microbatch)"
CHAINS = {
    "early, a rank, the pipeline": [
        (early, 0, "train is paused at 0 % (step 0)"),
        (to_one(SIGKILL, "nbutils.train.worker", LOCAL_RANK="1"), 1, MEMORY),
        (signals(SIGKILL), -SIGKILL, ""),
    ],
    "the kernel, by Jupyter, by the pipeline": [
        (to_one(SIGKILL, "ipykernel_launcher"), 1, "the kernel was ended by SIGKILL"),
        (to_one(SIGINT, "ipykernel_launcher"), 0, "is paused at"),
        (signals(SIGINT), 0, "train is paused at"),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_after_one_fault_and_the_next_the_same_command_goes_on(training, chain):
    words = "Training starts"
    for fault in CHAINS[chain]:
        assert words in training.suffers(*fault), fault
        words = "Training resumes at step" if training.checkpoints() else words
    if read_json(training.run / "train" / "stage.json")["status"] == "paused":  # later stages may use the checkpoint
        status, output = training.go("--only=metrics", "--allow-paused")
        assert status == 0, output
    assert words in training.goes_on()
