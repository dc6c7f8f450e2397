"""Writes docs/: the executed demo notebooks as Markdown pages, and README's picture. `make docs` runs it."""

import re
import shutil
import sys
import textwrap
from pathlib import Path

import nbformat
from matplotlib.figure import Figure
from matplotlib.image import imread
from nbconvert import MarkdownExporter
from nbconvert.writers import FilesWriter
from traitlets.config import Config

from nbutils.core.files import read_json, replaced

ROOT = Path(__file__).resolve().parents[1]
LINE = 400
"""Characters of a printed line that are kept on a page."""
BY_HAND = ("chat.png", "devices.md")
"""What stays when pages are made again: the chat window, taken by a browser test (`runs/.screenshots`), and what was
counted and seen on GPUs."""
OPTIONS = {
    "ExtractOutputPreprocessor": {"output_filename_template": "{cell_index}_{index}{extension}"},
    "TagRemovePreprocessor": {"enabled": True, "remove_cell_tags": ["injected-parameters"]},
}


def main(run: Path = ROOT / "runs" / "demo", docs: Path = ROOT / "docs") -> None:
    """Converts `run/notebooks/*.ipynb` into `docs`, and draws README's picture there."""
    notebooks = sorted((run / "notebooks").glob("0*.ipynb"))
    if len(notebooks) != 6:
        sys.exit(f"{run / 'notebooks'} holds {len(notebooks)} of 6 executed notebooks; run `make demo` first.")
    with replaced(docs) as partial:
        partial.mkdir()
        for notebook in notebooks:
            convert(notebook, partial)
        draw(run, partial / "demo.png")
        for name in filter(lambda name: (docs / name).is_file(), BY_HAND):
            shutil.copyfile(docs / name, partial / name)
    print(f"{docs.name}/: {len(notebooks)} pages")


def convert(path: Path, docs: Path) -> None:
    """One notebook as a page, its pictures in a folder of the same name."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if readable(output)]
    body, resources = MarkdownExporter(config=Config(OPTIONS)).from_notebook_node(
        notebook, resources={"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    )
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"\]\((0\d_\w+)\.ipynb\)", r"](\1.md)", body)
    body = re.sub(r"\n{3,}", "\n\n", body)
    source = f"<!-- Made by `make docs` from notebooks/{path.name}, as `make demo` executed it. -->\n\n"
    FilesWriter(build_directory=str(docs)).write(source + body.strip() + "\n", resources, path.stem)


def readable(output: nbformat.NotebookNode) -> bool:
    """Whether a page shows an output, which is changed to what a page can show of it.

    No widgets, no scripts, one picture for each figure, no machine paths, and no links into the run folder.
    """
    if output.output_type == "stream":
        output.text = "\n".join(line[:LINE] for line in clean(output.text).split("\n"))
        return output.name != "stderr"
    data = output.get("data", {})
    kinds = ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/plain")
    kind = next((kind for kind in kinds if kind in data and "<script" not in data[kind]), None)
    if kind is None or (kind == "text/plain" and re.search(r"View\(|Widget|^\S.*:\s+\d+%\|", data[kind])):
        return False  # a widget, or a progress bar in words
    output.data = {kind: data[kind] if kind.startswith("image") else clean(data[kind])}
    return True


def clean(text: str) -> str:
    """Without terminal colours and links into the run folder, and with paths relative to the project."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\[([^\]]+)\]\(run(?:/[^)]+)?\)", r"\1", text)
    return re.sub(r"/[^\s'\"<>]*/(?=(?:runs|notebooks|params)/)", "", text)


def draw(run: Path, target: Path) -> None:
    """README's picture: the loss curve of a finished run beside a conversation with its model."""
    figure = Figure(figsize=(11, 4.0), dpi=110)
    left = figure.add_axes((0.0, 0.0, 0.62, 1.0))
    left.imshow(imread(run / "metrics" / "figures" / "loss.png"))
    left.axis("off")
    right = figure.add_axes((0.63, 0.02, 0.36, 0.94), xlim=(0, 1), ylim=(1, 0))
    right.axis("off")
    place = 0.04
    for message in read_json(run / "chat" / "transcript.json")["messages"][:6]:
        text = textwrap.fill(message["content"], 40, max_lines=3, placeholder=" …")
        x, side, colour = (0.98, "right", "#ddf4ff") if message["role"] == "user" else (0.02, "left", "#f1f3f5")
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "none"}
        right.text(x, place, text, ha=side, va="top", fontsize=9, color="#1f2328", bbox=box)
        place += 0.085 + 0.052 * (text.count("\n") + 1)
    figure.savefig(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
