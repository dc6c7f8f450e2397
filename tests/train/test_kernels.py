"""How a device computes. Compiled layers: the others' numbers, the same weights by name, and a resume to the bit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import sdpa_attention

from nbutils.core.files import read_json
from nbutils.core.hardware import Gpu
from nbutils.train.kernels import CACHE, repeat_shared_heads
from tests.conftest import missing
from tests.core.test_chatml import llama
from tests.train.forked import forked
from tests.train.runs import T4, history, result, small_settings


@pytest.mark.soak
def test_numbers_and_names_are_those_of_a_run_that_is_not_compiled_and_resuming_is_exact(tmp_path, monkeypatch):
    if not shutil.which("g++"):
        missing("there is no g++, with which torch.compile works on the CPU")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    plain, compiled, paused = runs = [tmp_path / name for name in ("plain", "compiled", "paused")]
    changes = {"compile": "always", "optimizer": "adamw_torch", "max_steps": 8}
    forked(small_settings(plain, **changes | {"compile": "auto"}), 2)  # which is never on a CPU
    forked(small_settings(paused, **changes, pause_after_steps=3), 2)
    for run in (compiled, paused):
        forked(small_settings(run, **changes), 2)
    assert result(paused) == result(compiled)
    assert [read_json(run / "train" / "settings.json")["derived"]["compiled"] for run in runs] == [False, True, True]
    for name in ("loss", "grad_norm"):
        found, expected = ([row[name] for row in history(run) if name in row] for run in (compiled, plain))
        assert found == pytest.approx(expected, rel=1e-4)
    names = [load_file(run / "train" / "final" / "model.safetensors").keys() for run in runs]
    assert names[0] == names[1]


H200 = Gpu("NVIDIA H200", (9, 0), 139.8)


@pytest.mark.parametrize(
    "precision,gpus,repeated",
    [("fp16", (T4, T4), True), ("bf16", (H200,), False), ("fp32", (H200,), True), ("fp32", (), False)],
)
def test_shared_heads_are_repeated_where_flash_attention_cannot_be(precision, gpus, repeated, monkeypatch):
    own, model, ids = sdpa_attention.use_gqa_in_sdpa, llama(50, num_key_value_heads=1), torch.arange(6)[None]
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", own)
    expected = model(ids).logits
    repeat_shared_heads(precision, gpus)
    assert (sdpa_attention.use_gqa_in_sdpa is not own) == repeated
    torch.testing.assert_close(model(ids).logits, expected)
