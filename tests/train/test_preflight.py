"""Preflight: every check on facts of machines that are not here, and on data that is wrong in one way at a time."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from nbutils.core import hardware
from nbutils.core.errors import UserError
from nbutils.core.hardware import DeviceReport, Gpu
from nbutils.train import preflight
from nbutils.train.arguments import trainer_arguments
from nbutils.train.dataset import TokenRows
from nbutils.train.memory import GIB, fitting_microbatch, memory_need, with_microbatch
from nbutils.train.preflight import FINE, NOTE, STOP
from tests.core.test_chatml import llama
from tests.train.runs import P100, T4, checkpoint, small_settings


def weightless(hidden, layers, intermediate):
    """A Llama of these sizes that takes no memory."""
    with torch.device("meta"):
        return llama(32_003, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                     num_attention_heads=hidden // 64)  # fmt: skip


REFERENCE = weightless(768, 12, 2_048)


def texts(findings, level):
    """What is said at a level."""
    return " ".join(finding.text for finding in findings if finding.level == level)


@pytest.fixture
def tokenizer(tmp_path):
    small_settings(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")


@pytest.mark.parametrize(
    "gpus,changes,level,expected",
    [
        ((T4, T4), {}, FINE, "Tesla T4 in fp16, 2 processes"),
        ((Gpu("NVIDIA A100", (8, 0), 79.2),), {}, FINE, "NVIDIA A100 in bf16, 1 process."),
        ((), {}, FINE, "the CPU in fp32, 2 processes."),
        ((P100,), {}, NOTE, "Tesla P100-PCIE-16GB is too old"),
        ((P100,), {"precision": "fp16"}, STOP, "precision is fp16, but training runs on the CPU"),
        ((T4,), {"processes": 2}, STOP, "processes is 2, but this machine has 1 usable GPU;"),
        ((T4,), {"deterministic": "never"}, NOTE, "resuming is then no longer exact"),
        ((), {"deterministic": "never"}, NOTE, "this changes nothing on the CPU"),
    ],
)
def test_what_is_said_of_a_machine(tmp_path, gpus, changes, level, expected):
    settings = small_settings(tmp_path, **{"processes": 0} | changes)
    found = list(preflight.device_findings(settings, DeviceReport(gpus, cores=2), gpus))
    assert expected in texts(found, level) and bool(texts(found, STOP)) is (level == STOP)
    assert not ("precision" in texts(found, STOP) and "Training runs" in texts(found, FINE)), "one verdict for one fact"


def test_the_worker_refuses_fp16_on_the_cpu(tmp_path):
    with pytest.raises(UserError, match="fp16, but training runs on the CPU"):
        trainer_arguments(small_settings(tmp_path, precision="fp16"), tmp_path / "train")


def test_the_disk_has_to_hold_one_more_checkpoint_than_are_kept(tmp_path, monkeypatch):
    # 3 checkpoints of 12 bytes a parameter, base, final, last and an earlier best of 4, and a tenth
    needed = int(1.1 * 134_110_464 * (3 * 12 + 4 * 4))

    def found(free):
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        return preflight.disk_finding(small_settings(tmp_path, checkpoints_kept=2, optimizer="adamw_torch"), REFERENCE)

    assert found(needed + 1).level == FINE
    short = found(needed - 10)
    assert short.level == STOP and "3 checkpoints of 1.5 GiB and the models need 7.1 GiB" in short.text
    checkpoint(tmp_path / "train" / "checkpoints", 1)  # will be replaced, so its room counts as free
    assert found(needed - 10).level == FINE


WHOLE, ENDLESS, NONE = [False, False, True, True, True], [False, False, True, True, False], [False] * 5


@pytest.mark.parametrize(
    "first,second,ends,replies,level,expected",
    [
        (WHOLE, WHOLE, True, 4, FINE, "Every training conversation has a supervised <|im_end|>"),
        (WHOLE, WHOLE, False, 4, NOTE, "replies will not stop"),
        (WHOLE, WHOLE, True, 3, NOTE, "chooses among 4 replies, and the held-out conversations hold 3 "),
        (NONE, WHOLE, True, 4, NOTE, "1 of 2 training conversations have no supervised token"),
        (NONE, NONE, True, 4, STOP, "2 of 2 training conversations have no supervised token: there is nothing to"),
        (WHOLE, NONE, True, 4, STOP, "No evaluation conversation has a supervised token"),
        (ENDLESS, ENDLESS, True, 4, STOP, "2 of 2 training conversations have no supervised <|im_end|>"),
    ],
)
def test_data_that_is_wrong_in_one_way(tokenizer, tmp_path, first, second, ends, replies, level, expected):
    """Two training rows with these masks, held-out ones with the second. `Reply 1` and `reply  1` are one reply, and
    what a conversation begins with is none.
    """
    rows = [{"input_ids": [5, 6, 7, 8, tokenizer.eos_token_id], "supervised": mask} for mask in (first, second)]
    held_out = [
        rows[1] | {"messages": [{"role": "user", "content": f"Question {n}"},
                                {"role": "assistant", "content": f"{word} {n // 2}"}]}
        for n, word in enumerate(["Reply", "reply "] * replies)
    ]  # fmt: skip
    for name, side in (("train", rows), ("eval", held_out)):
        Dataset.from_list(side).save_to_disk(str(tmp_path / name))
    settings = small_settings(tmp_path, supervise_end=ends)
    train = TokenRows.for_training(tmp_path, settings, tokenizer)
    found = list(preflight.data_findings(settings, train, tmp_path / "eval", tokenizer))
    assert expected in texts(found, level)
    assert level != FINE or {finding.level for finding in found} == {FINE}
    assert level != NOTE or not texts(found, STOP)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("width", [688, 1024, None])
def test_predicted_activations_are_what_autograd_keeps(tmp_path, width, half):
    """In Llamas with feed-forward parts of such a width, and in a GPT-2."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=128, n_layer=4, n_head=4))
    if width:
        sizes = {"hidden_size": 256, "intermediate_size": width, "num_hidden_layers": 4, "num_attention_heads": 4}
        model = llama(100, **sizes)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, or its address might be used again
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.base_model(input_ids=torch.randint(0, 90, (4, 256)), use_cache=False)
    settings = small_settings(tmp_path, precision="bf16" if half else "fp32", processes=1, optimizer="adamw_torch")
    need = memory_need(settings, model, 4 * 256, DeviceReport())
    assert need.activations == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.3)
    assert need.states == 16 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "gpus,model,tokens,level,expected",
    [
        ((T4, T4), REFERENCE, 8192, FINE, "at its peak; Tesla T4 has 14.7 GiB."),
        ((T4, T4), REFERENCE, 131_072, STOP, "Lower tokens_per_microbatch: 131,072 tokens take"),
        ((T4, T4), weightless(2560, 32, 8_192), 8192, STOP, "choose a smaller base_model"),
        ((), REFERENCE, 200, STOP, "4.0 GiB are free for 2 processes"),
    ],
)
def test_memory_is_set_against_the_device(tmp_path, gpus, model, tokens, level, expected):
    settings = small_settings(tmp_path, precision="fp16" if gpus else "fp32", tokens_per_microbatch=tokens)
    found = preflight.memory_finding(settings, model, 200, DeviceReport(gpus, cores=2), 4 * GIB)
    assert found.level == level and expected in found.text


@pytest.mark.parametrize(
    "gpus,step,expected",
    [
        ((T4, T4), 65_536, 8_192),
        ((T4, T4), 12_000, 6_000),  # of a step there is no more for each
        ((), 32_768, 512),
    ],
)
def test_a_microbatch_of_0_tokens_is_one_that_fits(tmp_path, gpus, step, expected):
    settings = small_settings(tmp_path, precision="auto", optimizer="adamw_torch", tokens_per_step=step)
    assert fitting_microbatch(settings, REFERENCE, DeviceReport(gpus), 10 * GIB) == expected


def test_a_resumed_run_keeps_the_microbatch_that_fitted_when_it_began(tmp_path):
    settings = small_settings(tmp_path, tokens_per_microbatch=0)
    assert "tokens_per_microbatch is 0, which comes to 300" in texts(preflight.run_findings(settings), FINE)
    checkpoint(tmp_path / "train" / "checkpoints", 5, {"parameters": {"tokens_per_microbatch": 200}})
    assert with_microbatch(settings).tokens_per_microbatch == 200


def test_a_base_without_a_key_value_cache_or_for_another_optimizer_is_told(tokenizer, tmp_path):
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    for part in (MambaForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path)
    told = texts(preflight.run_findings(small_settings(tmp_path, base_model=str(tmp_path), optimizer="muon")), NOTE)
    assert "no key/value cache: the chat reads everything again" in told
    assert "no advantage, and tends to be worse; take adamw_torch" in told


def test_all_problems_are_told_at_once(tmp_path, capsys):
    wrong = small_settings(tmp_path, report_to=["tensorbord"], precision="fp16")
    with pytest.raises(UserError, match=r"2 problems would stop this run or spoil it\. report_to.* precision is"):
        preflight.preflight(wrong)
    assert capsys.readouterr().out.count("  STOP  ") == 2


def test_the_notebooks_part_never_initialises_cuda(tmp_path, monkeypatch, capsys):
    """The processes that it starts, some by fork, could not use a GPU then."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was initialised"))
    preflight.preflight(small_settings(tmp_path, optimizer="muon"))
    out = capsys.readouterr().out
    assert "STOP" not in out and "muon" not in out  # where nothing was learned before, nothing speaks against it


def test_the_device_is_asked_in_a_child(tmp_path, monkeypatch):
    """An `nvidia-smi` that lists a GPU makes the child answer, and torch in it sees none."""
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    monkeypatch.setattr(preflight, "nvidia_gpus", lambda: (T4,))
    told = texts(preflight.run_findings(small_settings(tmp_path)), STOP)
    assert f"nvidia-smi lists Tesla T4, but torch {torch.__version__}" in told


def test_a_broken_driver_is_told_in_its_own_words(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'RuntimeError: CUDA driver is too old' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(hardware.sys, "executable", str(program))
    with pytest.raises(UserError, match=r"Asking torch for its devices failed.*CUDA driver is too old"):
        hardware.child_report()
