"""The device under proof, and a line of JSON for each test as soon as it ends.

`make gpu` shows the processes one card; with `DEVICE=cpu` none, and every line is tried on the CPU in small sizes.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM

from nbutils.core.files import Json, read_json
from nbutils.core.run.models import train_bpe
from nbutils.train.control import peak_memory_gib
from nbutils.train.settings import TrainSettings
from tests.benchmarks.train import REFERENCE
from tests.builders import chitchat, rows_of, save_data
from tests.train.runs import logged, small_settings
from tests.train.test_trainer import bare_trainer

__all__ = ["bare_trainer"]  # a fixture

SMALLER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
"""What the CPU changes of the reference architecture."""
CONTEXT = 1024


def pytest_runtest_logreport(report: pytest.TestReport):
    """Prints what a test has measured at once: a run that is cut off still shows what passed."""
    if report.when == "call":
        name = report.nodeid.partition("::")[2]
        facts = {"test": name, "outcome": report.outcome, "seconds": round(report.duration, 1)}
        facts["peak_memory_gib"] = peak_memory_gib()  # of this process, unless a training has measured its own
        print(f"\n{json.dumps(facts | dict(report.user_properties))}", flush=True)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CUDA device; without one `make gpu` ends here with a sentence, unless it is to try the tests on the CPU."""
    asked = os.environ.get("DEVICE")
    if asked == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        words = "torch sees no CUDA device here, so nothing is proven; `make gpu DEVICE=cpu` tries the tests themselves"
        if asked:
            pytest.exit(words, returncode=0)
        pytest.skip(words)
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh(device, record_property, monkeypatch):
    """Leaves no test the last one's precision, determinism or peak of memory; says which device it ran on."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # transformers sets it
    AcceleratorState._reset_state(reset_partial_state=True)
    record_property("torch", torch.__version__)
    record_property("device", torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def measured(record_property) -> Callable[[Path], Json]:
    """Records precision, speed and memory of a training's last row, and returns them."""

    def record(run: Path) -> Json:
        derived, row = read_json(run / "train" / "settings.json")["derived"], logged(run, "train")[-1]
        facts = {name: row[name] for name in ("tokens_per_second", "mfu", "peak_memory_gib", "skipped_steps")}
        facts |= {name: derived[name] for name in ("precision", "matrix_flops_per_second")}
        for name, value in facts.items():
            record_property(name, value)
        return facts

    return record


@pytest.fixture(scope="session")
def reference(device, tmp_path_factory) -> Callable[..., TrainSettings]:
    """Settings of a run of the reference architecture, `reference(run, conversations, turns, **changes)`.

    Its vocabulary is made up: bytes, and names that no text has.
    """
    base = tmp_path_factory.mktemp("base")
    tokenizer = train_bpe([], 256)
    tokenizer.add_tokens([f"<{number}>" for number in range(REFERENCE["vocab_size"] - len(tokenizer))])
    torch.manual_seed(0)
    sizes = REFERENCE | (SMALLER if device.type == "cpu" else {})
    for part in (LlamaForCausalLM(LlamaConfig(max_position_embeddings=CONTEXT, **sizes)), tokenizer):
        part.save_pretrained(base)

    def settings(run: Path, conversations: int, turns: int, **changes) -> TrainSettings:
        rows = rows_of(tokenizer, chitchat(conversations, turns))
        rows = [row for row in rows if len(row["input_ids"]) <= CONTEXT]
        save_data(run, tokenizer, rows[8:], rows[:8], CONTEXT, str(base))
        given = {"base_model": str(base), "max_length": CONTEXT, "optimizer": "adamw_torch", "learning_rate": 3e-5}
        return small_settings(run, **given | changes)

    return settings
