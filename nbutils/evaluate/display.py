"""What notebook 04 shows: tables, pictures and texts; nothing here changes what the stage writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown
from IPython.display import display as show
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nbutils.core.charts import LINE_STYLES, THEMES, add_legend, caption, new_figure, save, whole_table
from nbutils.core.files import Json
from nbutils.core.origin.index import MIN_WORDS
from nbutils.core.text import memorised_table, number, score_of
from nbutils.evaluate.memorised import PEOPLE
from nbutils.evaluate.report import NAMES, shown_name

SHOWN = 500
"""Characters of an item's context, and of each of its answers, that are shown."""
WORDS = {
    "replies": "replies",
    "ended": "ends with `<|im_end|>`",
    "median_tokens": "tokens, median",
    "repeats": "repeats a 4-gram",
    "distinct_1": "different words of all words",
    "distinct_2": "different pairs of words",
    "leaks": "writes role headers or control tokens",
    "echoes": "repeats the message that it answers",
    "empty": "says nothing",
}


def item(task: Any) -> str:
    """The first item of a task as lm-eval asks it: the end of its context, what is asked behind it, and its target."""
    doc = task.task_docs[0]
    found = task.construct_requests(doc, task.fewshot_context(doc, num_fewshot=0))
    asked = [request.args for request in (found if isinstance(found, list) else [found])]
    behind = [str(text) for _, *rest in asked for text in rest]
    texts = [asked[0][0][-SHOWN:], *dict.fromkeys(behind), f"target: {task.doc_to_target(doc)}"]
    return "\n\n".join(text.strip()[:SHOWN] for text in texts)


def scores_picture(found: Json, folder: Path) -> None:
    """Draws and keeps the scores with their intervals; a metric without an interval is in the table alone."""
    if any("low" in score for score in found["scores"]):
        show(save(lambda theme: scores_figure(found["scores"], theme), folder, "scores"))


def behaviour_table(behaviour: Json) -> Any:
    """The figures of behaviour, models and decodings side by side; before it what they are of, and who is left out."""
    notes = [f"{shown_name(name)}: {why['left_out']}" for name, why in behaviour["left_out"].items()]
    notes.append(
        "Shares of all replies, in brackets their 95 % intervals (Wilson). There are none where `behaviour_prompts` is "
        "0, or no held-out turn leaves room for `reply_tokens`."
    )
    show(Markdown("\n\n".join(notes)))
    return pd.DataFrame(
        {
            (shown_name(name), decoding): {words: _figure(figures, key) for key, words in WORDS.items()}
            for name, of_model in behaviour["models"].items()
            for decoding, figures in of_model.items()
        }
    )


def _figure(figures: Json, name: str) -> str:
    if name in ("replies", "median_tokens"):
        return number(figures[name])
    between = "[{:.0%}, {:.0%}]".format(*figures["intervals"][name]) if name in figures["intervals"] else ""
    return f"{figures[name]:.0%} {between}".strip()


def memorised_share(found: Json, folder: Path) -> Any:
    """Draws and keeps how much each model repeats, and gives the table; or why there is none."""
    if not found.get("rows"):
        return Markdown(found.get("left_out", "There are no replies to look for."))
    show(save(lambda theme: memorised_figure(found["rows"], theme), folder, "memorised"))
    return Markdown(memorised_table(found, NAMES))


def sample_texts(rows: Sequence[Json]) -> Any:
    """The sampled replies of the run's model, as a table in which nothing is markup."""
    own = pd.DataFrame([row for row in rows if row["model"] == "run"])
    return whole_table(own[["mode", "prompt", "reply", "ended"]], index=False)


def curve_text(curve: Json | None, folder: Path) -> Any:
    """The context curve with its sentence of advice, or why there is none."""
    if curve is None:
        return Markdown(
            "There is no context curve: it is switched off (`context_curve: 0`), the model cannot be extended, "
            "or no held-out conversation outgrows what the model was trained to read."
        )
    show(save(lambda theme: context_figure(curve, theme), folder, "context_curve"))
    return Markdown(f"{curve['advice']} ({curve['conversations']} conversations.)")


def scores_figure(scores: Sequence[Json], theme: str = "light") -> Figure:
    """A panel for each metric: a point and its 95 % interval for each model; where lower is better on a log axis."""
    frame = pd.DataFrame(score for score in scores if "low" in score and "part" not in score)
    panels, colours = frame.groupby(["task", "metric"], sort=False), THEMES[theme]
    figure, axes = new_figure(len(panels), 1, theme=theme, height=0.7 * len(panels) + 0.3 * len(frame))
    figure.subplots_adjust(left=0.4, hspace=0.9, top=0.9, bottom=0.1)
    for ax, ((task, metric), rows) in zip(axes, panels, strict=True):
        for row in rows.to_dict("records"):
            label = f"{shown_name(row['model'])}   {score_of(row)}"
            colour = colours.first if row["model"] == "run" else colours.second
            ax.plot([row["low"], row["value"], row["high"]], [label] * 3, "o-", color=colour, markevery=[1])
        ax.margins(y=0.5)
        ax.invert_yaxis()
        better = "higher" if row["higher_is_better"] else "lower"
        ax.set_xscale("linear" if better == "higher" else "log")
        caption(ax, theme, f"{task} · {metric} ({better} is better)")
    return figure


def memorised_figure(rows: Sequence[Json], theme: str = "light") -> Figure:
    """The share that each model repeats, with its 95 % interval, on the band of what people repeat."""
    figure, (ax,) = new_figure(1, 1, theme=theme, height=1.2 + 0.3 * len(rows))
    figure.subplots_adjust(left=0.25)
    for row in rows:
        share, label = row["share"], ", ".join(filter(None, (shown_name(row["model"]), row["decoding"])))
        colour = THEMES[theme].first if row["model"] == "run" else THEMES[theme].second
        if row["model"] == PEOPLE:
            band = "what people repeat (95 % interval)"
            ax.axvspan(share["low"], share["high"], color=THEMES[theme].faint, zorder=0, label=band)
        ax.plot([share["low"], share["value"], share["high"]], [label] * 3, "o-", color=colour, markevery=[1])
    ax.margins(y=0.2)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    caption(ax, theme, f"Words in passages of {MIN_WORDS} words or more that stand in the training data")
    add_legend(ax, theme)
    return figure


def context_figure(curve: Json, theme: str = "light") -> Figure:
    """Loss by position under each extension, with the trained length."""
    figure, (ax,) = new_figure(1, 1, theme=theme, height=3.2)
    for index, (name, values) in enumerate(curve["curves"].items()):
        ax.plot(curve["positions"], values, LINE_STYLES[index], color=THEMES[theme].curves[index], label=name)
    ax.axvline(curve["trained_length"], color=THEMES[theme].ink, linestyle=":", label="trained length")
    caption(ax, theme, "Loss, nats per token", "position in the conversation, tokens")
    add_legend(ax, theme)
    return figure
