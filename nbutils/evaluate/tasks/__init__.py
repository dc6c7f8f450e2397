"""The embedded tasks: YAMLs of lm-evaluation-harness whose items are made from a run's held-out conversations."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = {
    "heldout_perplexity": ("heldout_perplexity.yaml", "replies.parquet"),
    "heldout_next_utterance": ("heldout_next_utterance.yaml", "next_utterance.parquet"),
}
"""Task name → its YAML here, and the file of items that the stage writes into `evaluate/heldout/`."""


def yaml_of(name: str) -> Path:
    """The YAML of an embedded task."""
    return Path(__file__).with_name(EMBEDDED[name][0])
