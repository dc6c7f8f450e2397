"""Writes docs/: the executed demo notebooks as Markdown pages with their pictures. `make docs` runs it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2 * 2**20
"""Bytes that all pages and pictures may have together."""
LINE = 400
"""Characters of a printed line that are kept on a page."""


def main(arguments: list[str]) -> int:
    """Converts `<run>/notebooks/*.ipynb` (default: runs/demo) into docs/."""
    run = Path(arguments[0]) if arguments else ROOT / "runs" / "demo"
    notebooks = sorted((run / "notebooks").glob("0*.ipynb"))
    if len(notebooks) != 6:
        print(f"{run / 'notebooks'} holds {len(notebooks)} of 6 executed notebooks; run `make demo` first.")
        return 1
    docs = ROOT / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir()
    for notebook in notebooks:
        convert(notebook, docs)
    size = sum(file.stat().st_size for file in docs.rglob("*") if file.is_file())
    print(f"docs/: {len(notebooks)} pages, {size / 2**20:.2f} MiB")
    if size > LIMIT:
        print(f"docs/ is larger than {LIMIT / 2**20:.0f} MiB; show fewer or smaller pictures.")
        return 1
    return 0


def convert(path: Path, docs: Path) -> None:
    """One notebook as a page, its pictures in a folder of the same name."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs if (shown := readable(output)) is not None]
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = settled(output.data["text/markdown"], path, docs)
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


def settled(card: str, path: Path, docs: Path) -> str:
    """A model card's Markdown on a page: its figures come along, its other files are named without a link."""
    pictures = f"{path.stem}_files"
    for name in sorted(set(re.findall(r"(?:\(|\"|'|\s)(figures/[\w-]+\.png)", card))):
        target = docs / pictures / Path(name).name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path.parents[1] / "publish" / name, target)
        card = card.replace(name, f"{pictures}/{Path(name).name}")
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
            output.data = {kind: content if kind.startswith("image") else clean(content)}
            return None if kind == "text/plain" and ("View(" in content or "Widget" in content) else output
    return None


def clean(text: str) -> str:
    """Without terminal colours, and with paths relative to the project."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"/[^\s'\"<>]*/(?=(?:runs|notebooks|params)/)", "", plain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
