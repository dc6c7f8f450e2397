"""How the next token is chosen: greedy, or temperature and nucleus sampling with a repetition penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nbutils.core.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of one reply; the values given here are the reference's. UserError for values out of range."""

    greedy: bool = False
    temperature: float = 0.75
    top_p: float = 0.9
    repetition_penalty: float = 1.2
    max_new_tokens: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.01, 5.0),
            "top_p": (0.01, 1.0),
            "repetition_penalty": (0.5, 5.0),
            "max_new_tokens": (1, 1_000_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                hint = " (for no randomness set greedy)" if name == "temperature" else ""
                raise UserError(f"{name} is {value}, which is outside {low} to {high}{hint}; choose a value inside.")

    def generator(self, reply: int) -> torch.Generator:
        """A random generator for the n-th reply of a session: the same on every device, another one for each n."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + reply) % 2**63)


def next_id(logits: torch.Tensor, seen: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token id from float32 logits (V,) on the CPU; `seen` (V,) marks every id of prompt and reply so far.

    Repetition penalty, temperature and top-p act in this order and in the manner of transformers' logits processors
    (`generation/logits_process.py`), so that greedy replies equal those of `model.generate`. The penalty holds for
    greedy decoding too.
    """
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.greedy:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    while True:  # rejection gives exactly the nucleus, and sorts nothing; a draw is kept with a chance of top_p or more
        point = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative[-1]
        drawn = int(torch.searchsorted(cumulative, point).clamp(max=len(logits) - 1))
        if probabilities[probabilities > probabilities[drawn]].sum() < sampling.top_p:
            return drawn
