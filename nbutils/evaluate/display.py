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

from nbutils.core.jupyter import interactive
from nbutils.core.text import duration, markdown_table, number, with_interval
from nbutils.evaluate.behaviour import DECODINGS, SHARES
from nbutils.evaluate.figures import EXTENSION_NAMES, context_figure, save, scores_figure
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
    handle: Any = None
    bar, done, started = interactive(), 0, clock()
    last_shown = started - (LINE_EVERY - BAR_AFTER if bar else 0.0)

    def count(more: int) -> None:
        nonlocal handle, done, last_shown
        done, now = done + more, clock()
        if now - last_shown < (LINE_EVERY if handle is None else 1.0):
            return
        last_shown = now
        left = (now - started) / max(1, done) * (total - done)
        text = f"{done:,} of {total:,} requests ({done / total:.0%}), about {duration(left)} left"
        if not bar:
            say(text)
            return
        drawn = HTML(f'<progress value="{done}" max="{total}" style="width:20em"></progress> {text}')
        if handle is None:
            handle = show(drawn, display_id=True)
        else:
            handle.update(drawn)

    try:
        yield count
    finally:
        if handle is not None:
            handle.update(HTML(""))


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
        texts = task.doc_to_choice(doc)
        right = {question} if isinstance(question, int) else set(targets)  # the choices may be the contexts
        answers = [("✓" if k in right or text in right else " ", text) for k, text in enumerate(texts)]
    context = str(target) if isinstance(question, int) else str(question)
    lines = [f"<pre>{html.escape(_last(context))}</pre>"]
    lines += [f"<pre>{mark} {html.escape(_first(str(text).strip()))}</pre>" for mark, text in answers]
    return HTML("\n".join(lines))


def _first(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def _last(text: str) -> str:
    return text if len(text) <= SHOWN else "… " + text[-SHOWN:]


def scores(found: Mapping[str, Any]) -> Any:
    """The table of scores."""
    return Markdown(scores_table(found["scores"], found["models"]))


def scores_picture(found: Mapping[str, Any], folder: Path) -> None:
    """Draws and keeps the scores with their intervals; a metric without an interval is in the table alone."""
    if any("low" in score for score in found["scores"]):
        save(lambda theme: scores_figure(found["scores"], found["models"], theme), folder, "scores")
        picture(folder, "scores")


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
    save(lambda theme: context_figure(curve, theme), folder, "context_curve")
    picture(folder, "context_curve")
    rows = [
        [EXTENSION_NAMES.get(name, name), with_interval(d["value"], d["low"], d["high"], "+"), f"**{d['word']}**"]
        for name, d in curve["differences"].items()
    ]
    table = markdown_table(["extension, against none", "nats per token beyond the trained length", "in a word"], rows)
    return Markdown(
        f"{table}\n\n{curve['advice']} ({curve['conversations']} conversations, {curve['tokens_beyond']:,} tokens "
        "beyond the trained length.)"
    )


def picture(folder: Path, name: str) -> None:
    """Shows a saved figure; nothing where there was none to draw."""
    if (folder / f"{name}.png").is_file():
        show(Image(filename=str(folder / f"{name}.png"), width=800))
