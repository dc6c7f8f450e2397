"""What notebook 04 shows: tables, pictures and texts; nothing here changes what the stage writes."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from IPython.display import HTML, Image, Markdown
from IPython.display import display as show
from tqdm.auto import tqdm

from nbutils.core.charts import save
from nbutils.core.jupyter import interactive
from nbutils.core.text import duration, markdown_table, number, with_interval
from nbutils.evaluate.behaviour import DECODINGS, SHARES
from nbutils.evaluate.figures import EXTENSION_NAMES, context_figure, scores_figure
from nbutils.evaluate.report import (
    difference_table,
    scope,
    scores_table,
    settings_list,
    shown_name,
)

SHOWN = 500
"""Characters of an item's context, and of each of its answers, that are shown."""
BAR_AFTER = 5.0
"""Seconds of scoring after which a bar appears."""
LINE_EVERY = 60.0
"""Seconds between two lines, where there is no bar."""
WORDS = {
    "ended": "ends with `<|im_end|>`",
    "median_tokens": "tokens, median",
    "repeats": "repeats a 4-gram",
    "distinct_1": "different words of all words",
    "distinct_2": "different pairs of words",
    "leaks": "writes role headers or control tokens",
    "echoes": "repeats the message that it answers",
    "empty": "says nothing",
}


@contextmanager
def progress(
    total: int, say: Callable[[str], None] = print, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Shows how far the scoring is: a bar in Jupyter that leaves nothing behind, elsewhere a line a minute.

    Gives the function that counts more of them.
    """
    done, started = 0, clock()
    said = started
    with tqdm(total=total, unit=" requests", disable=not interactive(), delay=BAR_AFTER, leave=False) as bar:

        def count(more: int) -> None:
            nonlocal done, said
            bar.update(more)
            done, now = done + more, clock()
            if bar.disable and now - said >= LINE_EVERY:
                said, left = now, (now - started) / done * (total - done)
                say(f"{done:,} of {total:,} requests ({done / total:.0%}), about {duration(left)} left")

        yield count


def model_list(models: Sequence[Any]) -> Any:
    """The models of the table and where they are."""
    rows = [[shown_name(model.name), f"`{model.facts['source']}`"] for model in models]
    return Markdown(markdown_table(["model", "where"], rows))


def item(task: Any, number_of_item: int = 0) -> Any:
    """One item of a task as lm-eval asks it: the end of its context, and what is scored or expected behind it."""
    doc = task.task_docs[number_of_item]
    question, target = task.doc_to_text(doc), task.doc_to_target(doc)
    targets = target if isinstance(target, list) else [target]
    if task.get_config("doc_to_choice") is None:
        answers = [("✓", text) for text in targets]
    else:
        choices = task.doc_to_choice(doc)
        right = {question} if isinstance(question, int) else set(targets)  # the choices may be the contexts
        answers = [("✓" if k in right or text in right else " ", text) for k, text in enumerate(choices)]
    context = str(target) if isinstance(question, int) else str(question)
    texts = ["… " * (len(context) > SHOWN) + context[-SHOWN:]]
    texts += [f"{mark} {str(text).strip()[:SHOWN]}" + " …" * (len(str(text)) > SHOWN) for mark, text in answers]
    return HTML("\n".join(f"<pre>{html.escape(text)}</pre>" for text in texts))


def scores(found: Mapping[str, Any]) -> Any:
    """The table of scores."""
    return Markdown(scores_table(found["scores"], found["models"]))


def scores_picture(found: Mapping[str, Any], folder: Path) -> None:
    """Draws and keeps the scores with their intervals; a metric without an interval is in the table alone."""
    if any("low" in score for score in found["scores"]):
        _picture(lambda theme: scores_figure(found["scores"], theme), folder, "scores")


def differences(found: Mapping[str, Any]) -> Any:
    """The table of paired differences, and what its words are about."""
    if not found["paired"]:
        return Markdown("There is no other model to compare with.")
    return Markdown(f"{difference_table(found['paired'])}\n\n{scope(found['paired'])}")


def how_measured(found: Mapping[str, Any]) -> Any:
    """The settings that decide the numbers."""
    return Markdown(settings_list(found))


def behaviour_table(behaviour: Mapping[str, Any]) -> Any:
    """The figures of behaviour, models side by side."""
    if not behaviour["models"]:
        return Markdown(
            "No behaviour was measured: `behaviour_prompts` is 0, or no held-out turn leaves room for `reply_tokens`."
        )
    replies = next(iter(next(iter(behaviour["models"].values())).values()))["replies"]
    head = ["share of replies", "decoding", *(shown_name(name) for name in behaviour["models"])]
    left_out = [f"{shown_name(n)}: {why['left_out']}" for n, why in behaviour["left_out"].items()]
    note = (
        f"{replies} replies each, of at most {behaviour['max_new_tokens']} tokens; in brackets 95 % intervals of the "
        "shares (Wilson)."
    )
    return Markdown("\n\n".join([markdown_table(head, behaviour_rows(behaviour)), note, *left_out]))


def behaviour_rows(behaviour: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the side-by-side table: one for each figure and decoding, a cell for each model."""
    models = behaviour["models"].values()
    return [
        [words, decoding, *(_figure(model.get(decoding), figure) for model in models)]
        for figure, words in WORDS.items()
        for decoding in DECODINGS
    ]


def _figure(figures: Mapping[str, Any] | None, name: str) -> str:
    if figures is None:
        return "—"
    if name == "median_tokens":
        return number(figures[name])
    between = "[{:.0%}, {:.0%}]".format(*figures["intervals"][name]) if name in SHARES else ""
    return f"{figures[name]:.0%} {between}".strip()


def sample_texts(rows: Sequence[Mapping[str, Any]], model: str = "run") -> Any:
    """The sampled replies of one model, as quotations in which nothing is markup."""
    parts = []
    for mode, title in (("alone", "Each prompt alone"), ("conversation", "All five in one conversation")):
        parts.append(f"<h4>{title}</h4>")
        for row in (r for r in rows if r["model"] == model and r["mode"] == mode):
            end = "" if row["ended"] else " <em>(stopped at the limit)</em>"
            reply = html.escape(row["reply"]) or "<em>(nothing)</em>"
            parts.append(
                f"<p><b>User:</b> {html.escape(row['prompt'])}<br><b>Assistant:</b> "
                f"<span style='white-space:pre-wrap'>{reply}</span>{end}</p>"
            )
    return HTML("\n".join(parts))


def curve_text(curve: Mapping[str, Any] | None, folder: Path) -> Any:
    """The context curve with its sentence of advice, or why there is none."""
    if curve is None:
        return Markdown(
            "There is no context curve: it is switched off (`context_curve: 0`), the model cannot be extended, "
            "or no held-out conversation outgrows what the model was trained to read."
        )
    _picture(lambda theme: context_figure(curve, theme), folder, "context_curve")
    rows = [
        [EXTENSION_NAMES.get(name, name), with_interval(d["value"], d["low"], d["high"], "+"), f"**{d['word']}**"]
        for name, d in curve["differences"].items()
    ]
    table = markdown_table(["extension, against none", "nats per token beyond the trained length", "in a word"], rows)
    return Markdown(
        f"{table}\n\n{curve['advice']} ({curve['conversations']} conversations, {curve['tokens_beyond']:,} tokens "
        "beyond the trained length.)"
    )


def _picture(draw: Callable[[str], Any], folder: Path, name: str) -> None:
    """Keeps a figure in both themes and shows it."""
    save(draw, folder, name)
    show(Image(filename=str(folder / f"{name}.png"), width=800))
