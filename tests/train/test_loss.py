"""The chunked loss equals cross-entropy on full logits, gradients too, without ever holding them."""

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from nbutils.train.dataset import Microbatch
from nbutils.train.loss import causal_lm_loss, chunked_cross_entropy, with_loss_in_forward
from tests.core.test_chatml import llama


def made_up(positions, pieces=50):
    """Hidden states, an output embedding, and what is to be predicted."""
    torch.manual_seed(positions)
    hidden, weight = (torch.randn(count, 16, requires_grad=True) for count in (positions, pieces))
    return hidden, weight, torch.randint(0, pieces, (positions,))


@pytest.mark.parametrize("positions", [0, 1, 7, 64])
@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
def test_equals_torch(positions, chunk):
    hidden, weight, targets = made_up(positions)
    loss, correct, losses = chunked_cross_entropy(hidden, weight, targets, chunk)
    logits = hidden @ weight.T
    expected = cross_entropy(logits, targets, reduction="sum")
    ours, theirs = ((each, grad(each * 0.37, (hidden, weight))) for each in (loss, expected))
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_close(losses, cross_entropy(logits, targets, reduction="none"))
    assert correct == (logits.argmax(-1) == targets).sum()


def test_a_sure_prediction_keeps_its_slope_in_half_precision():
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[7.0], [0.0]])  # logits 7 and 0
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = chunked_cross_entropy(hidden, weight, torch.tensor([0]))
    exact = torch.log1p(torch.exp(torch.tensor(-7.0)))  # 0.0009
    assert_close(loss, exact)
    assert_close(grad(loss, hidden)[0].item(), 7 * torch.expm1(-exact).item(), rtol=0.01, atol=0)


@pytest.mark.parametrize("half", [False, True])
def test_an_output_embedding_padded_for_a_device_gives_the_same(half, monkeypatch):
    found = []
    for aligned in ({}, {"cpu": 8}):
        monkeypatch.setattr("nbutils.train.loss.ALIGNED", aligned)
        hidden, weight, targets = made_up(20, pieces=83)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, correct, losses = chunked_cross_entropy(hidden, weight, targets, 7)
        found.append((correct, losses, *grad(loss * 0.37, (hidden, weight))))
    assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
def test_padded_rows_without_a_mask_give_the_loss_of_each_row_alone(tie):
    model = llama(97, tie_word_embeddings=tie)
    rows = [torch.randint(0, 97, (length,)) for length in (5, 11, 8)]
    ids = pad_sequence(rows, batch_first=True)
    positions = torch.cat([11 * row + torch.arange(1, len(ids) - 1) for row, ids in enumerate(rows)])
    loss, *_ = causal_lm_loss(model, ids, positions, ids.flatten()[positions + 1])
    alone = sum(cross_entropy(model(input_ids=row[None]).logits[0, 1:-1], row[2:], reduction="sum") for row in rows)
    ours, theirs = ((each, grad(each, tuple(model.parameters()))) for each in (loss, alone))
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_loss_never_holds_positions_times_vocabulary():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    given = made_up(4096, pieces=3000)
    with Largest() as seen:
        chunked_cross_entropy(*given, chunk=128)[0].backward()
    assert seen.elements <= 128 * 3000 < 4096 * 3000


def test_forward_without_labels_is_the_models_own():
    model = llama(97)
    ids = torch.randint(0, 97, (2, 6))
    before = model(input_ids=ids).logits
    assert torch.equal(with_loss_in_forward(model)(input_ids=ids).logits, before)


def test_without_gradients_none_are_made(monkeypatch):
    """Evaluation would otherwise hold a (vocabulary, width) gradient, and multiply twice as much."""
    given = made_up(40)
    expected, *_ = chunked_cross_entropy(*given)
    monkeypatch.setattr(torch, "zeros_like", lambda *a, **k: pytest.fail("a gradient was made"))
    with torch.no_grad():
        loss, *_ = chunked_cross_entropy(*given)
    assert loss == expected and not loss.requires_grad


def test_half_precision_autocast_stays_close():
    given = made_up(40)
    full, *_ = chunked_cross_entropy(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, *_ = chunked_cross_entropy(*given)
    assert_close(half, full, rtol=0.01, atol=0)  # in float32, too


def test_the_host_waits_for_nothing_of_a_microbatch(monkeypatch):
    """On a device without values whatever reads one fails; ids may stand in for where and what is predicted."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # which has no answer for this device
    model = with_loss_in_forward(llama(97)).to("meta")
    ids = torch.zeros((2, 6), dtype=torch.int64, device="meta")
    out = model(microbatch=Microbatch(ids, ids[0], ids[0]))
    out["loss_sum"].backward()
    assert out["correct"].is_meta and all(p.grad.is_meta for p in model.parameters())
