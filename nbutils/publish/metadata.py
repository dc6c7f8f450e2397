"""The card's metadata as the Hub reads it, built and checked with `huggingface_hub`'s own classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.publish.facts import Facts
from nbutils.publish.origin import dataset_name, hub_base, hub_datasets
from nbutils.publish.settings import PublishSettings

METRIC_TYPES = {"acc": "accuracy", "acc_norm": "accuracy", "word_perplexity": "perplexity", "loss": "loss"}
"""The Hub's word for a metric of the evaluation harness; others keep their own name."""


def card_metadata(facts: Facts, settings: PublishSettings) -> str:
    """The YAML block between the card's first two lines of dashes; ValueError for what the Hub would not take."""
    from huggingface_hub import ModelCardData

    names = [dataset_name(dataset) for dataset in facts.data["datasets"]]
    data = ModelCardData(
        language=settings.languages,
        license=settings.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=hub_base(facts, settings),
        datasets=hub_datasets(facts, settings) or None,
        tags=list(dict.fromkeys(["conversational", "chatml", "sft", "smallchat", *settings.tags])),
        model_name=settings.model_name,
        eval_results=eval_results(facts.evaluation["scores"], names) or None,
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


def eval_results(scores: Sequence[dict[str, Any]], datasets: Sequence[str]) -> list[Any]:
    """The run's own scores as entries of the model index; values that are no finite number are left out.

    `datasets` are the names of what was trained on, of which a part was held out.
    """
    from huggingface_hub import EvalResult

    own = [s for s in scores if s["model"] == "run" and "part" not in s and math.isfinite(s["value"])]
    conversations = datasets[0] if datasets else "conversations"
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=conversations if held_out(score) else score["task"],
            dataset_name=score["task"],
            dataset_config=score["task"],  # without it the Hub's classes merge all tasks made from one dataset
            metric_type=METRIC_TYPES.get(score["metric"], score["metric"]),
            metric_name=score["metric"],
            metric_value=round(float(score["value"]), 6),
        )
        for score in own
    ]


def held_out(score: dict[str, Any]) -> bool:
    """Whether a score is of one of our own tasks, made from the conversations that were held out."""
    return any(word in score["task"] for word in ("heldout", "held_out", "chitchat"))
