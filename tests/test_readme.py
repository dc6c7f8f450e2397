"""What README.md and docs/ say holds: links, table, commands, sizes."""

from __future__ import annotations

import re

import pytest
import yaml

from nbutils.core.notebooks import STAGES, notebook_path, parameters
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    links = re.findall(r"!?\[[^\]\n]*\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S))
    assert links or page.name == "CONTRIBUTING.md"
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert not target or (page.parent / target).exists(), f"{page.name}: {link}"
        assert target or anchor in anchors, f"{page.name}: {link}"


def test_the_table_names_every_notebook_and_what_it_writes():
    rows = re.findall(
        r"^\| 0\d \| \[[^\]]+\]\((notebooks/\S+?)\) \| .*? \| (.*?) \| \[page\]\((\S+?)\) \|$", README, re.M
    )
    assert [notebook for notebook, _, _ in rows] == [f"notebooks/{stage.file}" for stage in STAGES]
    for (_, writes, page), stage in zip(rows, STAGES, strict=True):
        assert page == f"docs/{notebook_path(stage).stem}.md"
        assert all(path.startswith(f"{stage.name}/") for path in re.findall(r"`([^`]+)`", writes))


def test_the_table_tells_the_truth_about_a_run():
    """Against the newest complete run on this machine, where there is one."""
    runs = [path.parent.parent for path in (ROOT / "runs").glob("*/publish/stage.json")]
    if not runs:
        pytest.skip("no complete run in runs/: `make demo` makes one")
    newest = max(runs, key=lambda run: (run / "publish" / "stage.json").stat().st_mtime)
    for path in re.findall(r"`((?:data|train|metrics|evaluate|chat|publish)/[\w./]+)`", README):
        assert (newest / path).exists(), path


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`|^make (\w+)$", README, re.M):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.M), target
    for profile in re.findall(r"params/(\w+)\.yaml", README):
        assert profile == "mine" or (ROOT / "params" / f"{profile}.yaml").is_file()
    known = {name for stage in STAGES for name in parameters(notebook_path(stage))}
    example = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert example and set(yaml.safe_load(example.group(1))) <= known


def test_docs_are_six_pages_with_pictures_under_two_megabytes():
    assert [page.stem for page in PAGES] == [notebook_path(stage).stem for stage in STAGES]
    files = [file for file in (ROOT / "docs").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    assert any(file.suffix == ".png" for file in files)
