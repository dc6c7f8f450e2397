"""The fp16 loss scaler that says which optimizer steps it skipped."""

from __future__ import annotations

from typing import Any

import torch


class CountingScaler(torch.amp.GradScaler):
    """A GradScaler that counts skipped steps.

    A step is skipped where a gradient overflowed; the scale then falls, which is how it shows from outside: fused
    optimizers skip inside their kernel, so that nobody sees whether `step` did anything.
    """

    def __init__(self, device: str, **options: Any) -> None:
        super().__init__(device, **options)
        self.skipped_steps = 0
        self.last_skipped = False

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """As in torch; sets `last_skipped` and counts."""
        before = self.get_scale()
        super().update(new_scale)
        self.last_skipped = self.get_scale() < before
        self.skipped_steps += int(self.last_skipped)

    def state_dict(self) -> dict[str, float]:
        """The scaler's state with the count of skipped steps."""
        return super().state_dict() | {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restores what `state_dict` returned."""
        state = dict(state_dict)
        self.skipped_steps = int(state.pop("skipped_steps", 0))
        super().load_state_dict(state)
