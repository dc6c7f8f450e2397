"""The model card: facts of a run folder, filled into `card.md.jinja`; what models wrote is quoted as plain text."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.run.state import in_short
from nbutils.core.stages import maker, spec
from nbutils.core.text import (
    code,
    counted,
    duration,
    markdown_table,
    memorised_table,
    score_rows,
    size,
    task_of,
    with_interval,
)
from nbutils.publish.architecture import extension, parameter_counts, tensor_shapes
from nbutils.publish.export import GENERATION, published_figure, token_ids
from nbutils.publish.facts import Facts
from nbutils.publish.gguf_export import read_gguf
from nbutils.publish.repeats import in_words
from nbutils.publish.settings import PublishSettings


def render_card(facts: Facts, settings: PublishSettings) -> str:
    """The card's text: metadata, then Markdown. Model output on it is untrusted and quoted as plain text."""
    folder = facts.model_folder
    config, shapes = ModelRef.parse(str(folder)).config(), tensor_shapes(folder)
    context = getattr(config, "max_position_embeddings", None) or facts.data["max_length"]
    text = TEMPLATES.get_template("card.md.jinja").render(
        facts=facts,
        settings=settings,
        metadata=card_metadata(facts, settings),
        model_id=settings.repo_id or ".",  # for `from_pretrained`: the Hub's id, or the folder that the card is in
        config=lambda name: getattr(config, name, None),
        counts=parameter_counts(shapes),
        widest=max((max(shape) for name, shape in shapes.items() if "mlp" in name), default=None),
        context=context,
        longest_reply=min(int(GENERATION["max_new_tokens"]), context // 4),  # in a chat that fits the context
        scores=score_rows(facts.evaluation),
        tokens=token_ids(folder),
        gguf=read_gguf(Run(facts.run).folder(maker("card").name)),
        extension=extension(config, facts.transcript["settings"]["context_extension"]),  # as the chat had it
        generation=", ".join(f"{name} {value}" for name, value in GENERATION.items() if name != "do_sample"),
    )
    return text.rstrip() + "\n"


def preview(card: str) -> str:
    """The card as the Hub shows it below its metadata, without its pictures: notebook 03 has them."""
    body = card.split("\n---\n", 1)[1].replace("\n# ", "\n### ", 1)
    return re.sub(r"<picture>.*?</picture>|<img [^>]*>", "", body, flags=re.DOTALL)


def card_metadata(facts: Facts, settings: PublishSettings) -> str:
    """The YAML block between the card's first two lines of dashes; ValueError for what the Hub would not take."""
    read = dict.fromkeys(dataset["path"] for dataset in facts.data["datasets"])
    data = ModelCardData(
        language=settings.languages,
        license=settings.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=facts.hub_base(settings) or None,
        datasets=settings.dataset_ids or list(filter(facts.on_hub, read)) or None,
        tags=list(dict.fromkeys(["conversational", "chatml", "sft", "smallchat", *settings.tags])),
        model_name=settings.model_name,
        eval_results=_eval_results(facts) or None,
    )
    return str(data.to_yaml(line_break="\n", original_order=None)).strip()


def quoted(text: str, who: str) -> str:
    """Text as a Markdown quotation in which nothing is markup: model output is untrusted."""
    first, *others = text.strip().splitlines() or [""]
    return "\n".join([f"> **{who}:** {_plain(first)}", *(f"> {_plain(line)}" for line in others)])


def _plain(line: str) -> str:
    """A line of text that Markdown shows as it is: no HTML, emphasis, list, heading, rule, table, code or link."""
    escaped = re.sub(r"([\\`*_\[\]#|~$@])", r"\\\1", html.escape(line.strip(), quote=False))
    escaped = re.sub(r"(?i)://|\bwww\.", lambda found: found[0].replace(":", "\\:").replace(".", "\\."), escaped)
    return re.sub(r"^(\d{1,9})?([-+=.)])", r"\1\\\2", escaped)  # `---`, `===`, `+`, `1.`, `1)`


def _eval_results(facts: Facts) -> list[EvalResult]:
    """The run's own scores as entries of the model index; values that are no finite number are left out."""
    conversations = facts.dataset_name(facts.data["datasets"][0])  # of which a part was held out
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=conversations if _held_out(score["task"]) else score["task"],
            dataset_name=score["task"],
            dataset_config=score["task"],  # without it the Hub's classes merge all tasks made from one dataset
            metric_type=score["metric"],
            metric_name=score["metric"],
            metric_value=round(float(score["value"]), 6),
        )
        for score in facts.evaluation["scores"]
        if score["model"] == "run" and "part" not in score and math.isfinite(score["value"])
    ]


def _held_out(task: str) -> bool:
    """Whether a task is one of our own, made from the conversations that were held out."""
    return task.startswith("heldout_")


def _percent(share: float) -> str:
    """A share in per cent that says more than "0%" of what is there."""
    return f"{share:.0%}" if share == 0 or share >= 0.01 else f"{100 * share:.1g}%"


def _versions(these: dict[str, str], usual: dict[str, str] | None = None) -> str:
    """Libraries with their versions, where those are not the usual ones."""
    return ", ".join(f"{n} {v}" for n, v in these.items() if v not in ("absent", (usual or {}).get(n)))


def _value(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("nbutils.publish", "."), undefined=jinja2.StrictUndefined)
"""The card and the code on it, with what they call."""
TEMPLATES.globals |= {
    "table": markdown_table,
    "with_interval": with_interval,
    "memorised_table": memorised_table,
    "repeats_in_words": in_words,
}
TEMPLATES.tests |= {"held_out": _held_out}
TEMPLATES.filters |= {
    "count": "{:,}".format,
    "counted": counted,
    "percent": _percent,
    "value": _value,
    "duration": duration,
    "size": size,
    "task": task_of,
    "code": code,
    "plain": lambda text: _plain(" ".join(text.split())),
    "cell": lambda text: text.replace("|", "\\|"),
    "quoted": quoted,
    "versions": _versions,
    "in_short": in_short,
    "notebook": lambda stage: spec(stage).file,
    "file_name": lambda path: Path(path).name,
    "published": published_figure,
}
