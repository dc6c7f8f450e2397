"""The model card: facts of a run folder, in words and tables, filled into `card.md.jinja`."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nbutils.publish import judgement, origin, sections
from nbutils.publish.architecture import (
    Extension,
    architecture,
    context_length,
    extension,
    parameter_counts,
    tensor_shapes,
)
from nbutils.publish.export import GENERATION, control_tokens
from nbutils.publish.facts import Facts, data_figures
from nbutils.publish.metadata import card_metadata
from nbutils.publish.settings import PublishSettings

LONGEST_REPLY = int(GENERATION["max_new_tokens"])


def render_card(facts: Facts, settings: PublishSettings) -> str:
    """The card's text: metadata, then Markdown. Model output on it is untrusted and quoted as plain text."""
    folder = facts.model_folder
    size = sum(parameter_counts(tensor_shapes(folder)).values())
    # As the conversation on the card was held; transcripts of an earlier smallchat do not say how.
    extended = extension(folder, facts.transcript.get("settings", {}).get("context_extension", "dynamic"))
    text = _template("card.md.jinja").render(
        metadata=card_metadata(facts, settings),
        title=settings.model_name,
        model_id=model_id(settings),
        on_hub=bool(settings.repo_id),
        summary=sections.summary(facts, settings, size),
        architecture=architecture(folder),
        tokens=[(f"`{token}`", number, purpose) for token, number, purpose in control_tokens(folder)],
        training_sentence=sections.training_sentence(facts),
        training=sections.training(facts),
        data_sentence=sections.data_sentence(facts),
        fates=sections.fates(facts),
        data_note=sections.data_note(facts),
        data_figures=[(f"figures/data-{name}", caption) for name, caption in data_figures(facts).items()],
        metrics=sections.metrics(facts),
        remarks=[remark["text"] for remark in facts.metrics["remarks"]],
        figures=[(f"figures/{Path(name).name}", caption) for name, caption in facts.figures.items()],
        evaluation_sentence=judgement.evaluation_sentence(facts),
        scores_head=judgement.scores_head(facts),
        scores=judgement.scores(facts),
        paired=judgement.paired(facts),
        samples=judgement.samples(facts),
        dialogue=judgement.dialogue(facts),
        limitations=judgement.limitations(facts, size),
        context=f"{context_length(folder):,}",
        extension=extended,
        usage=usage_code(folder, model_id(settings), extended),
        generation=", ".join(f"{name} {value}" for name, value in GENERATION.items() if name != "do_sample"),
        provenance=origin.provenance(facts, settings),
        datasets=origin.datasets(facts),
        command=origin.reproduce_command(facts),
        reservations=origin.reservations(facts, settings),
    )
    return text.rstrip() + "\n"


def usage_code(folder: Path, name: str, extended: Extension | None) -> str:
    """A streaming chat in plain transformers, with rolling window and, where the model takes one, context extension."""
    longest = min(LONGEST_REPLY, context_length(folder) // 4)
    code = _template("usage.py.jinja").render(model_id=name, extension=extended, longest_reply=longest)
    return code.strip()


def model_id(settings: PublishSettings) -> str:
    """What `from_pretrained` takes: the Hub's id, or `.` for the folder that the card lies in."""
    return settings.repo_id or "."


@lru_cache(maxsize=4)
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.from_string(files("nbutils.publish").joinpath(name).read_text(encoding="utf-8"))
