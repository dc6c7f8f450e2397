"""What README.md and docs/ say holds: links, table, commands, sizes."""

import re

import pytest

from nbutils.core.files import resolve
from nbutils.core.notebooks import notebook_path
from nbutils.core.stages import STAGES
from nbutils.core.tasks import load_tasks, own_tasks
from nbutils.pipeline.parameters import plan
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES])
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    for link in re.findall(r"\[[^\]\n]*\]\((?![a-z]+:)([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        assert (page.parent / target).exists() if target else anchor in anchors, f"{page.name}: {link}"


ROWS = re.findall(r"^\| 0\d \| \[[^\]]+\]\((\S+?)\) \| (.*?) \| (.*?) \| \[page\]\((\S+?)\) \|$", README, re.MULTILINE)
"""The README's table: notebook, what it reads, what it writes, page."""


@pytest.mark.parametrize("stage,row", [*zip(STAGES, ROWS, strict=True)])
def test_the_table_says_what_each_notebook_reads_and_writes(stage, row):
    notebook, reads, writes, page = row
    assert (notebook, page) == (f"notebooks/{stage.file}", f"docs/{notebook_path(stage).stem}.md")
    read = {f"{name}/{pattern}".removesuffix("*") for name, patterns in stage.reads.items() for pattern in patterns}
    assert not stage.reads or set(re.findall("`([^`]+)`", reads)) == read
    listing = (ROOT / "tests" / "notebooks" / "listing.txt").read_text().splitlines()
    for path in re.findall("`([^`]+)`", writes):
        assert path.startswith(f"{stage.name}/")
        assert path in listing or (path.endswith("/") and any(line.startswith(path) for line in listing)), path


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)(?:$|`)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for profile in {*re.findall(r"params/(\w+)\.yaml", README)} - {"mine"}:
        assert (ROOT / "params" / f"{profile}.yaml").is_file()


def test_the_example_profile_is_one(tmp_path):
    (example,) = re.findall(r"```yaml\n(# params/mine\.yaml\n.*?)```", README, re.S)
    (tmp_path / "mine.yaml").write_text(example)
    planned = plan(tmp_path / "mine.yaml", [])
    assert [entry.stage for entry in planned.stages] == list(STAGES) and planned.run == resolve("runs/mine")


def test_the_replies_that_are_quoted_stand_on_the_page():
    page = (ROOT / "docs" / "02_train_sft.md").read_text()
    quoted = re.findall(r'Asked "([^"]+)", .*?:\s"([^"]+)"', README, re.S)
    assert len(quoted) == 2
    for prompt, reply in (tuple(" ".join(text.split()) for text in pair) for pair in quoted):
        assert re.search(rf"<th>{re.escape(prompt)}</th>\s*<td>[^<]*</td>\s*<td>{re.escape(reply)}</td>", page), prompt


def test_the_example_task_is_one_and_its_fields_are_those_of_the_guide(tmp_path):
    """The task and the row of CONTRIBUTING.md, loaded by the stage's own loader."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "capitals.yaml").write_text(example)
    (row,) = re.findall(r'`({"question": .*})`', text)
    (tmp_path / "capitals.jsonl").write_text(row)
    loaded = load_tasks(["capitals"], own_tasks(str(tmp_path)))
    assert len(loaded["capitals"].task_docs) == 1


def test_pages_and_pictures_take_less_than_two_megabytes():
    assert sum(file.stat().st_size for file in (ROOT / "docs").rglob("*.*")) < 2 * 2**20
