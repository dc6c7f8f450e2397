"""Writes docs/: the executed demo notebooks as Markdown pages with their pictures. `make docs` runs it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import make_picture
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

from nbutils.core.files import replaced

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2 * 2**20
"""Bytes that all pages and pictures may have together."""
LINE = 400
"""Characters of a printed line that are kept on a page."""
SCREENSHOT = "chat.png"
"""The chat window in JupyterLab, taken by a browser test (`runs/.screenshots`); it stays when pages are made anew."""


def main(arguments: list[str], docs: Path = ROOT / "docs") -> None:
    """Converts `<run>/notebooks/*.ipynb` (default: runs/demo) into `docs`, and draws README's picture there."""
    run = Path(arguments[0]) if arguments else ROOT / "runs" / "demo"
    notebooks = sorted((run / "notebooks").glob("0*.ipynb"))
    if len(notebooks) != 6:
        sys.exit(f"{run / 'notebooks'} holds {len(notebooks)} of 6 executed notebooks; run `make demo` first.")
    with replaced(docs) as partial:
        partial.mkdir()
        for notebook in notebooks:
            convert(notebook, partial)
        make_picture.draw(run, partial / "demo.png")
        if (docs / SCREENSHOT).is_file():
            shutil.copyfile(docs / SCREENSHOT, partial / SCREENSHOT)
        size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        if size > LIMIT:
            sys.exit(f"{size:,} bytes are more than the {LIMIT:,} that {docs.name}/ may have; show fewer pictures.")
    print(f"{docs.name}/: {len(notebooks)} pages, {size / 2**20:.2f} MiB")


def convert(path: Path, docs: Path) -> None:
    """One notebook as a page, its pictures in a folder of the same name."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs if (shown := readable(output)) is not None]
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = without_links_into_the_run(output.data["text/markdown"])
    pictures = f"{path.stem}_files"
    options = Config({"ExtractOutputPreprocessor": {"output_filename_template": "{cell_index}_{index}{extension}"}})
    body, resources = MarkdownExporter(config=options).from_notebook_node(
        notebook, resources={"output_files_dir": pictures, "unique_key": path.stem}
    )
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"\]\((0\d_\w+)\.ipynb\)", r"](\1.md)", body)
    body = re.sub(r"\n{3,}", "\n\n", body)
    source = f"<!-- Made by `make docs` from notebooks/{path.name}, as `make demo` executed it. -->\n\n"
    (docs / f"{path.stem}.md").write_text(source + body.strip() + "\n", encoding="utf-8")
    for name, content in resources["outputs"].items():
        target = docs / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def without_links_into_the_run(card: str) -> str:
    """A model card's Markdown on a page: the files of the run folder are named without a link."""
    return re.sub(r"\[([^\]]+)\]\(run(?:/[^)]+)?\)", r"\1", card)


def readable(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output as a page can show it: no widgets, no scripts, one picture for each figure, no machine paths."""
    if output.output_type == "stream":
        if output.name == "stderr":
            return None
        output.text = "\n".join(line[:LINE] for line in clean(output.text).split("\n"))
        return output
    data = output.get("data", {})
    for kind in ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/plain"):
        if kind in data and not (kind == "text/html" and "<script" in data[kind]):
            content = data[kind]
            if kind == "text/plain" and re.search(r"View\(|Widget|^\S.*:\s+\d+%\|", content):
                return None  # a widget, or a progress bar in words
            output.data = {kind: content if kind.startswith("image") else clean(content)}
            return output
    return None


def clean(text: str) -> str:
    """Without terminal colours, and with paths relative to the project."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"/[^\s'\"<>]*/(?=(?:runs|notebooks|params)/)", "", plain)


if __name__ == "__main__":
    main(sys.argv[1:])
