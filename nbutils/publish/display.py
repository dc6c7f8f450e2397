"""What notebook 06 shows of a published folder; nothing here changes what the stage writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbutils.core.text import markdown_table, size


def file_table(folder: Path, files: Sequence[Path]) -> Any:
    """The files of the repository with their sizes, as a Markdown table."""
    from IPython.display import Markdown

    rows = [(f"`{file}`", size((folder / file).stat().st_size)) for file in files]
    return Markdown(markdown_table(["file", "size"], rows))


def parity_line(report: dict[str, Any]) -> str:
    """What was compared before publishing, in a sentence."""
    ties = f"; {report['ties']} of them part at a tie of two scores" if report["ties"] else ""
    return (
        f"The session and plain transformers agree: {report['token_ids']:,} token ids of {report['conversations']} "
        f"held-out conversations, {report['reply_tokens']:,} tokens of {report['replies']} greedy replies{ties}."
    )


def card_preview(text: str) -> Any:
    """The card as the Hub shows it below its metadata; pictures are left out here, notebook 03 has them."""
    from IPython.display import Markdown

    body = text.split("\n---\n", 1)[1]
    return Markdown(
        re.sub(r"<picture>.*?</picture>|<img [^>]*>", "", body, flags=re.DOTALL).replace("\n# ", "\n### ", 1)
    )
