"""Scoring in several processes: every answer that the cache lacks, by `nbutils.evaluate.worker` under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from nbutils.core.files import write_json
from nbutils.core.torchrun import LOG, PROGRESS, Torchrun


def fill_cache(
    settings: Any, folder: Path, data: Path, trained: Path, processes: int, say: Callable[[str], None]
) -> None:
    """Has the workers put all answers into the cache: lm-eval shards each task's items by rank.

    UserError with a worker's own sentence, or with the end of its log. An interruption ends the workers first.
    """
    request = folder / "worker.json"
    asked = {"settings": settings.model_dump(mode="json"), "data": str(data), "trained": str(trained)}
    write_json(request, asked)
    program = Torchrun("nbutils.evaluate.worker", request, processes, work="Scoring", knob="tokens_per_batch")
    try:
        with closing(program.events()) as events:
            for event in events:
                if event["event"] == "said":
                    say(event["text"])
        (folder / LOG).unlink()
    finally:
        request.unlink()
        (folder / PROGRESS).unlink(missing_ok=True)
