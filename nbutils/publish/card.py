"""The model card: facts of a run folder, in words and tables, filled into `card.md.jinja`."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.text import duration
from nbutils.publish import architecture, card_provenance, card_tables
from nbutils.publish.architecture import Extension
from nbutils.publish.export import GENERATION, control_tokens, published_figure
from nbutils.publish.facts import Facts
from nbutils.publish.settings import PublishSettings

METRIC_TYPES = {"acc": "accuracy", "acc_norm": "accuracy", "word_perplexity": "perplexity", "loss": "loss"}
"""The Hub's word for a metric of the evaluation harness; others keep their own name."""


def render_card(facts: Facts, settings: PublishSettings) -> str:
    """The card's text: metadata, then Markdown. Model output on it is untrusted and quoted as plain text."""
    folder = facts.model_folder
    model_id = settings.repo_id or "."  # what `from_pretrained` takes: the Hub's id, or the folder that the card is in
    extension = architecture.extension(folder, facts.transcript["settings"]["context_extension"])  # as the chat had it
    text = _template("card.md.jinja").render(
        facts=facts,
        settings=settings,
        metadata=card_metadata(facts, settings),
        model_id=model_id,
        model=architecture,
        tables=card_tables,
        provenance=card_provenance,
        tokens=[(f"`{token}`", number, purpose) for token, number, purpose in control_tokens(folder)],
        extension=extension,
        usage=usage_code(folder, model_id, extension),
        generation=", ".join(f"{name} {value}" for name, value in GENERATION.items() if name != "do_sample"),
    )
    return text.rstrip() + "\n"


def usage_code(folder: Path, name: str, extension: Extension | None) -> str:
    """A streaming chat in plain transformers, with rolling window and, where the model takes one, context extension."""
    longest = min(int(GENERATION["max_new_tokens"]), architecture.context_length(folder) // 4)
    code: str = _template("usage.py.jinja").render(model_id=name, extension=extension, longest_reply=longest)
    return code.strip()


def card_metadata(facts: Facts, settings: PublishSettings) -> str:
    """The YAML block between the card's first two lines of dashes; ValueError for what the Hub would not take."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        language=settings.languages,
        license=settings.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=card_provenance.hub_base(facts, settings),
        datasets=card_provenance.hub_datasets(facts, settings) or None,
        tags=list(dict.fromkeys(["conversational", "chatml", "sft", "smallchat", *settings.tags])),
        model_name=settings.model_name,
        eval_results=_eval_results(facts) or None,
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


def _eval_results(facts: Facts) -> list[Any]:
    """The run's own scores as entries of the model index; values that are no finite number are left out."""
    from huggingface_hub import EvalResult

    scores = facts.evaluation["scores"]
    own = [s for s in scores if s["model"] == "run" and "part" not in s and math.isfinite(s["value"])]
    conversations = card_provenance.dataset_name(facts.data["datasets"][0])  # of which a part was held out
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=conversations if card_tables.held_out(score["task"]) else score["task"],
            dataset_name=score["task"],
            dataset_config=score["task"],  # without it the Hub's classes merge all tasks made from one dataset
            metric_type=METRIC_TYPES.get(score["metric"], score["metric"]),
            metric_name=score["metric"],
            metric_value=round(float(score["value"]), 6),
        )
        for score in own
    ]


@lru_cache(maxsize=4)
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {
        "cell": lambda value: str(value).replace("|", "\\|").replace("\n", " "),
        "count": "{:,}".format,
        "share": "{:.0%}".format,
        "percent": card_tables.percent,
        "duration": duration,
        "dataset_name": lambda dataset: f"`{card_provenance.dataset_name(dataset)}`",
        "file_name": lambda path: Path(path).name,
        "published": published_figure,
    }
    return environment.from_string(files("nbutils.publish").joinpath(name).read_text(encoding="utf-8"))
