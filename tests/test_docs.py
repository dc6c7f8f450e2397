"""`make docs`: pages, pictures and README's picture out of a run; and the committed pages against the notebooks."""

import base64
import re

import nbformat
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nbutils.core.files import write_json
from nbutils.core.notebooks import notebook_path
from nbutils.core.stages import STAGES
from tests.conftest import ROOT
from tests.test_setup import load

PATH = "/srv/ada-lovelace/smallchat/runs/demo/data"


@pytest.fixture
def run(tmp_path):
    """A run folder of six executed notebooks, each with a link to another and a few outputs."""
    folder = tmp_path / "run"
    for name in ("notebooks", "metrics/figures"):
        (folder / name).mkdir(parents=True)
    picture = folder / "metrics" / "figures" / "loss.png"
    Figure(figsize=(3, 2)).savefig(picture)
    outputs = [
        new_output("stream", text=f"\x1b[1mdata: done in 3 s → {PATH}\x1b[0m\n"),
        new_output("stream", name="stderr", text="a warning of a library\n"),
        new_output("display_data", {"text/plain": "Loading weights:   0%|          | 0/38"}),
        new_output("display_data", {"text/plain": "ChatWidget(children=())"}),
        new_output("display_data", {"image/png": base64.b64encode(picture.read_bytes()).decode()}),
        new_output("display_data", {"text/markdown": "See [the results](run/evaluate-results.json)."}),
    ]
    cells = [new_markdown_cell("[Next](02_train_sft.ipynb)"), new_code_cell("show()", outputs=outputs)]
    for stage in STAGES:
        nbformat.write(new_notebook(cells=cells), folder / "notebooks" / stage.file)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello $5 <b>there</b>"}]
    write_json(folder / "chat" / "transcript.json", {"messages": talk})
    return folder


def test_pages_pictures_and_nothing_that_a_reader_cannot_use(run, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("chat.png", "devices.md", "old_page.md"):  # what no notebook makes stays, a page of before goes
        (docs / name).touch()
    load("make_docs").main(run, docs)
    names = {str(path.relative_to(docs)) for path in docs.rglob("*.*")}
    pages = {f"{notebook_path(stage).stem}.md" for stage in STAGES}
    pictures = {name for name in names if "_files/" in name}
    assert names == pages | pictures | {"demo.png", "chat.png", "devices.md"} and len(pictures) == len(STAGES)
    for page in pages:
        text = (docs / page).read_text()
        assert all(shown in text for shown in ("done in 3 s → runs/demo/data", "See the results.", "(02_train_sft.md)"))
        assert not re.search(r"\x1b|ada-lovelace|a warning of|0%\||ChatWidget|\.ipynb\)", text)
        assert all((docs / link).is_file() for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))


def test_an_unfinished_run_is_one_sentence(run, tmp_path):
    (run / "notebooks" / STAGES[-1].file).unlink()
    with pytest.raises(SystemExit, match=r"5 of 6 executed notebooks; run `make demo` first\."):
        load("make_docs").main(run, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_the_committed_pages_show_the_notebooks_as_they_are(stage):
    page = (ROOT / "docs" / f"{notebook_path(stage).stem}.md").read_text()
    for cell in nbformat.read(notebook_path(stage), as_version=4).cells:
        source = re.sub(r"\]\((0\d_\w+)\.ipynb\)", r"](\1.md)", cell.source)
        assert source.strip() in page, f"{stage.file} has changed since its page was made: run `make demo docs`"
