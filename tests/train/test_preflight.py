"""Preflight: every check on facts of machines that are not here, and on data that is wrong in one way at a time."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nbutils.core import hardware
from nbutils.core.errors import UserError
from nbutils.core.hardware import DeviceReport, Gpu
from nbutils.core.run.models import tiny_model
from nbutils.train import preflight
from nbutils.train.dataset import TokenRows
from nbutils.train.memory import GIB, memory_need, weightless_base
from nbutils.train.preflight import FINE, NOTE, STOP, Finding, Machine
from tests.builders import data_folder
from tests.train.runs import small_settings

T4, A100, P100 = (
    Gpu("Tesla T4", (7, 5), 14.7),
    Gpu("NVIDIA A100", (8, 0), 79.2),
    Gpu("Tesla P100-PCIE-16GB", (6, 0), 15.9),
)


def weightless(hidden: int, layers: int, intermediate: int) -> LlamaForCausalLM:
    """A Llama of these sizes that takes no memory."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=32_003, num_attention_heads=hidden // 64, **sizes))


REFERENCE = weightless(768, 12, 2_048)


def machine(*gpus: Gpu, listed: tuple[Gpu, ...] | None = None, memory: float = 16, disk: float = 70, build="12.8"):
    report = DeviceReport(gpus, cores=2, torch="2.13.0", cuda_build=build)
    return Machine(report, gpus if listed is None else listed, int(memory * GIB), int(disk * GIB))


def texts(findings: list[Finding], level: str | None = None) -> str:
    return " ".join(finding.text for finding in findings if level in (None, finding.level))


def every(check):
    """The check with its findings in a list."""
    return lambda *facts: list(check(*facts))


def data_findings(settings, data, tokenizer) -> list[Finding]:
    rows = TokenRows.for_training(data, settings, tokenizer)
    return list(preflight.data_findings(settings, rows, data / "eval", tokenizer))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    data_folder(folder, train=30)
    return folder


@pytest.fixture
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run / "data" / "tokenizer")


@pytest.mark.parametrize(
    "gpus,expected",
    [((T4, T4), "Tesla T4 in fp16, 2 processes"), ((A100,), "NVIDIA A100 in bf16, 1 process."), ((), "CPU in fp32")],
)
def test_each_device_gets_the_precision_that_it_has(run, gpus, expected):
    found = every(preflight.device_findings)(small_settings(run, processes=0), machine(*gpus))
    assert expected in texts(found, FINE) and not texts(found, STOP)


def test_a_p100_falls_back_to_the_cpu_with_the_reason(run):
    found = every(preflight.device_findings)(small_settings(run, processes=0), machine(P100))
    assert "on the CPU in fp32" in texts(found, FINE) and "Tesla P100-PCIE-16GB (capability 6.0) is too old" in texts(
        found, NOTE
    )
    asked = every(preflight.device_findings)(small_settings(run, precision="fp16"), machine(P100))
    assert "precision is fp16, but training runs on the CPU" in texts(asked, STOP)


def test_fewer_gpus_than_processes_a_torch_without_cuda_and_emulated_bf16(run):
    assert "processes is 2, but this machine has 1 usable GPU;" in texts(
        every(preflight.device_findings)(small_settings(run, processes=2), machine(T4)), STOP
    )
    blind = every(preflight.device_findings)(small_settings(run), machine(listed=(T4,), build=""))
    assert "nvidia-smi lists Tesla T4, but torch 2.13.0 has no CUDA in it" in texts(blind, STOP)
    slow = every(preflight.device_findings)(small_settings(run, precision="bf16", processes=1), machine(T4))
    assert "Tesla T4 only emulates" in texts(slow, NOTE)
    fused = every(preflight.device_findings)(
        small_settings(run, optimizer="adamw_torch_fused", processes=1), machine(T4)
    )
    assert "hides skipped fp16 steps" in texts(fused, STOP)
    many = every(preflight.device_findings)(small_settings(run, processes=8), machine())
    assert "8 processes share 2 cores" in texts(many, NOTE)


def test_the_worker_refuses_fp16_on_the_cpu(run):
    from nbutils.train.arguments import trainer_arguments

    with pytest.raises(UserError, match="fp16, but training runs on the CPU"):
        trainer_arguments(small_settings(run, precision="fp16"), run / "train")


def test_the_disk_has_to_hold_one_more_checkpoint_than_are_kept(run):
    settings = small_settings(run, checkpoints_kept=2)
    # 3 checkpoints of 12 bytes a parameter, base and final of 4, and a tenth
    needed = 1.1 * 134_110_464 * (3 * 12 + 4 + 4)
    assert not texts(every(preflight.disk_findings)(settings, REFERENCE, int(needed) + 1), STOP)
    short = every(preflight.disk_findings)(settings, REFERENCE, int(needed) - 10)
    assert "3 checkpoints of 1.5 GiB and the models need 6.0 GiB" in texts(short, STOP)
    old = run / "train" / "checkpoints" / "step-000001"
    old.mkdir(parents=True, exist_ok=True)
    (old / "model.safetensors").write_bytes(b"x" * 1000)  # will be replaced, so its room counts as free
    assert not texts(every(preflight.disk_findings)(settings, REFERENCE, int(needed) - 10), STOP)


def test_good_data_has_no_problem(run, tokenizer):
    found = data_findings(small_settings(run), run / "data", tokenizer)
    assert {finding.level for finding in found} == {FINE} and "inside its supervised part" in texts(found)
    assert {finding.level for finding in every(preflight.tokenizer_findings)(tokenizer)} == {FINE}


@pytest.mark.parametrize(
    "harm,expected,level",
    [
        ("one", "1 of 2 training conversations have no supervised token", NOTE),
        ("all", "2 of 2 training conversations have no supervised token: there is nothing to learn", STOP),
        ("end", "2 of 2 training conversations have no supervised <|im_end|>", STOP),
    ],
)
def test_data_that_is_wrong_in_one_way(tmp_path, run, tokenizer, harm, expected, level):
    end = tokenizer.eos_token_id
    rows = [{"input_ids": [5, 6, 7, 8, end], "supervised": [False, False, True, True, True]} for _ in range(2)]
    if harm in ("one", "all"):
        for row in rows[: 1 if harm == "one" else 2]:
            row["supervised"] = [False] * 5
    else:
        for row in rows:
            row["supervised"][-1] = False
    for side in ("train", "eval"):
        Dataset.from_list(rows).save_to_disk(str(tmp_path / side))
    found = data_findings(small_settings(run), tmp_path, tokenizer)
    assert expected in texts(found, level)


def test_leaving_the_stop_token_out_on_purpose_is_a_note(run, tokenizer):
    found = data_findings(small_settings(run, supervise_end=False), run / "data", tokenizer)
    assert "replies will not stop" in texts(found, NOTE) and not texts(found, STOP)


def test_padding_with_the_stop_token_and_another_eos_are_problems(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    assert "pads with its eos, '<|im_end|>'" in texts(every(preflight.tokenizer_findings)(tokenizer), STOP)
    tokenizer.eos_token = "<|pad|>"
    assert "eos is '<|pad|>', not <|im_end|>" in texts(every(preflight.tokenizer_findings)(tokenizer), STOP)


def kept_for_backward(model, batch: int, length: int, half: bool) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    ids = torch.randint(0, 90, (batch, length))
    context = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), context:
        out = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert out.shape[:2] == (batch, length)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["llama", "wide", "gpt2"])
def test_predicted_activations_are_what_autograd_keeps(kind, half):
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=128, n_layer=4, n_head=4))
    else:
        sizes = {"hidden_size": 256, "intermediate_size": 1024 if kind == "wide" else 688, "num_hidden_layers": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_attention_heads=4, **sizes))
    need = memory_need(model, 4 * 256, half=half, processes=1, optimizer="adamw_torch")
    assert need.activations == pytest.approx(kept_for_backward(model, 4, 256, half), rel=0.3)
    assert need.states == 16 * sum(p.numel() for p in model.parameters())


def test_memory_is_set_against_the_device(run):
    fits = small_settings(run, precision="fp16", tokens_per_microbatch=8192)
    assert preflight.memory_finding(fits, REFERENCE, 1024, machine(T4, T4)).level == FINE
    large = small_settings(run, precision="fp16", tokens_per_microbatch=131_072)
    assert "Lower tokens_per_microbatch: 131,072 tokens take" in texts(
        [preflight.memory_finding(large, REFERENCE, 1024, machine(T4, T4))], STOP
    )
    huge = weightless(2560, 32, 8_192)
    assert "choose a smaller base_model" in texts([preflight.memory_finding(fits, huge, 1024, machine(T4, T4))], STOP)
    small = preflight.memory_finding(small_settings(run, processes=2), REFERENCE, 200, machine(memory=4))
    assert "4.0 GiB are free for 2 processes" in small.text


def test_a_model_without_weights_has_the_shape_of_the_model(run, tokenizer):
    sizes = [{name: p.shape for name, p in model.named_parameters()} for model in
             (weightless_base(small_settings(run), len(tokenizer)), tiny_model(tokenizer, 256, 0))]  # fmt: skip
    assert sizes[0] == sizes[1]
    with pytest.raises(UserError, match=r"holds no model|could not be read"):
        weightless_base(small_settings(run, base_model=str(run / "data")))


def test_all_problems_are_told_at_once(run, monkeypatch, capsys):
    findings = [Finding(FINE, "Good."), Finding(STOP, "First."), Finding(NOTE, "Hm."), Finding(STOP, "Second.")]
    monkeypatch.setattr(preflight, "run_findings", lambda settings: iter(findings))
    with pytest.raises(UserError, match=r"2 problems would stop this run or spoil it\. First\. Second\."):
        preflight.preflight(small_settings(run))
    assert capsys.readouterr().out.splitlines() == ["    ok  Good.", "  STOP  First.", "  note  Hm.", "  STOP  Second."]
    monkeypatch.setattr(preflight, "run_findings", lambda settings: findings[:1])
    preflight.preflight(small_settings(run))


def test_the_device_is_asked_in_a_child(run, monkeypatch):
    """No CUDA here: an `nvidia-smi` that lists a GPU makes the child answer, and torch in it sees none."""
    monkeypatch.setattr(preflight, "nvidia_gpus", lambda: (T4,))
    found = preflight.this_machine(run)
    assert found.report.torch == torch.__version__ and found.report.cores >= 1
    if not torch.cuda.is_available():
        assert "nvidia-smi lists Tesla T4, but torch" in texts(
            every(preflight.device_findings)(small_settings(run), found), STOP
        )
    monkeypatch.setattr(hardware.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="Asking torch for its devices failed"):
        hardware.child_report()


def test_a_broken_driver_is_told_in_its_own_words(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'RuntimeError: CUDA driver is too old' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(hardware.sys, "executable", str(program))
    with pytest.raises(UserError, match="CUDA driver is too old"):
        hardware.child_report()


def test_the_notebooks_part_never_initialises_cuda(run):
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from tests.train.runs import small_settings; from nbutils.train.preflight import preflight\n"
        "preflight(small_settings(Path(sys.argv[1])))\n"
        "print(torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "False" and "STOP" not in done.stdout
