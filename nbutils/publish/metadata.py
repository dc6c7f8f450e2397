"""The card's metadata as the Hub reads it, built and checked with `huggingface_hub`'s own classes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import resolve, shown
from nbutils.publish.facts import Facts
from nbutils.publish.settings import PublishSettings

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
METRIC_TYPES = {"acc": "accuracy", "acc_norm": "accuracy", "word_perplexity": "perplexity", "loss": "loss"}
"""The Hub's word for a metric of the evaluation harness; others keep their own name."""


def card_metadata(facts: Facts, settings: PublishSettings) -> str:
    """The YAML block between the card's first two lines of dashes; ValueError for what the Hub would not take."""
    from huggingface_hub import ModelCardData

    base = str(facts.record["parameters"].get("base_model", ""))
    datasets = [spec["path"] for spec in facts.data["datasets"] if is_hub_id(spec["path"])]
    data = ModelCardData(
        language=settings.languages,
        license=settings.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if is_hub_id(base) else None,
        datasets=datasets or None,
        tags=list(dict.fromkeys(["conversational", "chatml", "sft", "smallchat", *settings.tags])),
        model_name=settings.model_name,
        eval_results=eval_results(facts.evaluation["scores"], facts.data["datasets"]) or None,
    )
    return str(data.to_yaml(line_break="\n", original_order=None)).strip()


def check_card(path: Path) -> dict[str, Any]:
    """The metadata of a written card, read back with the Hub's classes; UserError where they do not take it."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard.load(path)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"The Hub would not take the metadata of {shown(path)}: {error}.") from error
    found: dict[str, Any] = card.data.to_dict()
    return found


def eval_results(scores: Sequence[dict[str, Any]], datasets: Sequence[dict[str, Any]]) -> list[Any]:
    """The run's own scores as entries of the model index; values that are no finite number are left out."""
    from huggingface_hub import EvalResult

    own = [s for s in scores if s["model"] == "run" and "part" not in s and math.isfinite(s["value"])]
    held_out = datasets[0]["path"] if datasets else "conversations"
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=_dataset(score["task"], held_out),
            dataset_name=score["task"],
            dataset_config=score["task"],  # without it the Hub's classes merge all tasks made from one dataset
            metric_type=METRIC_TYPES.get(score["metric"], score["metric"]),
            metric_name=score["metric"],
            metric_value=round(float(score["value"]), 6),
        )
        for score in own
    ]


def is_hub_id(name: str) -> bool:
    """Whether a base model or dataset is one of the Hub's (`owner/name`), not a folder or the embedded one."""
    return bool(HUB_ID.fullmatch(name)) and not resolve(name).exists()


def _dataset(task: str, held_out: str) -> str:
    """The dataset that a task is made from: the training conversations' held-out part for our own tasks."""
    return held_out if "heldout" in task or "held_out" in task or "chitchat" in task else task
