"""How the next token is chosen: greedy, or temperature and nucleus sampling with a repetition penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nbutils.core.settings import Seed, in_words

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Slider:
    """The range and step that a slider offers; a field may allow more."""

    low: float
    high: float
    step: float


class Sampling(BaseModel):
    """Settings of one reply; the defaults are the reference's. UserError for values out of range.

    Everything else is made from these fields: sliders, command line flags, notebook 05's settings, and the
    `generation_config.json` of a published model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    greedy: bool = Field(False, description="always take the likeliest token")
    temperature: Annotated[float, Slider(0.05, 2.0, 0.05)] = Field(
        0.75, ge=0.01, le=5, description="above 0; lower is more predictable"
    )
    top_p: Annotated[float, Slider(0.05, 1.0, 0.05)] = Field(
        0.9, ge=0.01, le=1, description="probability mass that is sampled from, above 0 up to 1"
    )
    repetition_penalty: Annotated[float, Slider(1.0, 2.0, 0.05)] = Field(
        1.2, ge=0.5, le=5, description="divides the scores of tokens that were there already; 1 for none"
    )
    max_new_tokens: Annotated[int, Slider(10, 250, 10)] = Field(
        250, ge=1, le=1_000_000, description="tokens of the longest reply"
    )
    seed: Seed = Field(0, description="of the sampling")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise in_words(error, Sampling) from None

    def changed(self, **values: Any) -> Sampling:
        """These settings with other values. UserError for values out of range."""
        return Sampling(**self.model_dump() | values)

    def generation_config(self) -> dict[str, Any]:
        """The same choice of tokens as arguments of transformers' `GenerationConfig`."""
        if self.greedy:
            return {"do_sample": False} | self.model_dump(include={"repetition_penalty", "max_new_tokens"})
        sampled = {"do_sample": True, "temperature": self.temperature, "top_k": 0}
        return sampled | self.model_dump(exclude={"greedy", "seed"})

    def generator(self, reply: int) -> torch.Generator:
        """A random generator for the n-th reply of a session: the same on every device, another one for each n."""
        import torch

        return torch.Generator().manual_seed((self.seed * 1_000_003 + reply) % 2**63)


def next_id(logits: torch.Tensor, seen: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token id from float32 logits (V,) on the CPU; `seen` (V,) marks every id of prompt and reply so far.

    Repetition penalty, temperature and top-p act in this order and in the manner of transformers' logits processors
    (`generation/logits_process.py`), so that greedy replies equal those of `model.generate`. The penalty holds for
    greedy decoding too.
    """
    import torch

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
