"""Scoring functions that the embedded tasks' YAMLs name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def reply_perplexity(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a reply with its end of turn, and the number of its words."""
    (header, _), (whole, _) = results
    return {"word_perplexity": (whole - header, doc["words"])}
