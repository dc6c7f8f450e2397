"""What a notebook shows of itself: whether anybody looks on, what they need not see, and how something is done."""

from __future__ import annotations

import html
import inspect
import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython import get_ipython
from IPython.display import HTML, Markdown, display

from nbutils.core.files import Json
from nbutils.core.run.pause import PIPELINE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def interactive() -> bool:
    """Whether a person may be looking on: a Jupyter kernel, and no pipeline above it."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and PIPELINE not in os.environ


def quiet() -> None:
    """Keeps the libraries' progress bars for loading and saving out of notebooks, where they would stay for good."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def show_source(function: Callable[..., Any]) -> None:
    """Shows the real source of a function below the cell: how it is done, not only that it is."""
    source = textwrap.dedent(inspect.getsource(function)).strip()
    display(Markdown(f"`{function.__module__}`:\n\n```python\n{source}\n```"))


def coloured(tokenizer: PreTrainedTokenizerBase, row: Json) -> HTML:
    """A row of a set token by token, supervised ones in green; hover for the id. Texts are escaped."""
    spans = []
    for number, (token, supervised) in enumerate(zip(row["input_ids"], row["supervised"], strict=True)):
        text = html.escape(tokenizer.decode([token])).replace("\n", "⏎\n")
        shade = ("#b8e6d0", "#9bd9bd") if supervised else ("#eeeeee", "#dddddd")
        spans.append(f'<span style="background:{shade[number % 2]};color:#222" title="{token}">{text}</span>')
    return HTML(f'<pre style="white-space:pre-wrap;line-height:1.6">{"".join(spans)}</pre>')
