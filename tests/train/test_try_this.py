"""The experiments at the end of notebook 02 show what the notebook says they show."""

import pytest

from nbutils.core.files import read_jsonl
from tests.builders import data_folder
from tests.train.forked import forked
from tests.train.runs import logged, small_settings

PROMPTS = ["Hi! How are you today?", "What do you do on weekends?", "Do you have any pets?", "hello", "What's up?"]
LONGER = {
    "learning_rate": 0.008,
    "max_steps": 150,
    "tokens_per_step": 1024,
    "tokens_per_microbatch": 512,
    "supervise": "all",
    "eval_steps": 0,
    "checkpoint_steps": 0,
    "log_steps": 50,
    "sample_prompts": PROMPTS,
}


def outcome(run, **changes):
    """Final evaluation loss, and the share of sample replies that ended by themselves."""
    forked(small_settings(run, **LONGER | changes), 2)
    last = logged(run, "eval")[-1]
    samples = [row["ended"] for row in read_jsonl(run / "train" / "samples.jsonl") if row["step"] == last["step"]]
    assert len(samples) == len(PROMPTS)
    return last["eval_loss"], sum(samples) / len(samples)


@pytest.mark.soak
def test_what_the_experiments_promise(tmp_path):
    data_folder(tmp_path, train=500, evaluation=20)
    usual, ended = outcome(tmp_path)
    assert ended >= 0.8
    _, never = outcome(tmp_path, supervise_end=False)
    assert never == 0.0  # 1. replies never stop
    one_side, _ = outcome(tmp_path, supervise="assistant")
    assert one_side > usual + 0.1  # 2. an untrained base learns less from the assistant's side alone
    too_fast, _ = outcome(tmp_path, learning_rate=30 * LONGER["learning_rate"])
    assert too_fast > usual + 1.0  # 3. the loss stays near where it was
