"""Sessions without internet: what has to be attached, and how it is collected."""

from __future__ import annotations

import shutil

import pytest

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import KAGGLE, write_json
from nbutils.kaggle import packages
from nbutils.kaggle.packages import BROUGHT, NEWEST, closure, collect_wheels, required
from nbutils.kaggle.start import Bundle, start
from tests.kaggle.made_packages import installed, wheel


def test_what_is_not_attached_is_listed_all_at_once(tmp_path, monkeypatch):
    """By the first cell of the first notebook: packages, models and data of all notebooks in one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for folder in ("input", "working"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text(f"project.dependencies = {packages.requirements()}")
    monkeypatch.setattr("nbutils.kaggle.packages.FOLDER", tmp_path)
    installed(tmp_path, "plotly", "5.24.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = {"profile": "mine", "owner": "me", "internet": False}
    facts["recipe"] = "params/mine.yaml -p 'datasets=[a, b]'"
    needs = [("model", "someone/base", "", "base model"), ("dataset", "someone/data", "", "conversations")]
    with pytest.raises(UserError) as raised:
        start(Bundle(stage="data", needs=needs, **facts))
    wanted = ["plotly>=6", "base model someone/base", "conversations someone/data", "--attach"]
    commands = ["nbutils fetch params/mine.yaml -p 'datasets=[a, b]' --out fetched", "nbutils kaggle wheels"]
    assert all(word in str(raised.value) for word in [*wanted, *commands])


@pytest.mark.parametrize("content", ['{"schema": 1, "ite', "[]", '{"schema": 1}'])
def test_a_damaged_list_of_what_is_attached_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    (tmp_path / "input" / "things").mkdir(parents=True)
    (tmp_path / "input" / "things" / "fetched.json").write_text(content)
    with pytest.raises(UserError, match=r"things/fetched.json is damaged, or not smallchat's.*nbutils fetch"):
        local_copy("model", "a/b")


def test_of_two_attached_copies_the_whole_one_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for name, size in (("a-cut", 9), ("b-whole", 3)):
        folder = tmp_path / "input" / name / "models" / "m"
        folder.mkdir(parents=True)
        (folder / "w").write_text("abc")
        item = {"kind": "model", "name": "a/b", "revision": "", "commit": "c", "folder": "models/m"}
        files = {"files": {"w": {"sha256": "", "bytes": size}}}
        write_json(folder.parents[1] / "fetched.json", {"schema": 1, "items": [item | files]})
    assert local_copy("model", "a/b") == tmp_path / "input" / "b-whole" / "models" / "m"
    shutil.rmtree(tmp_path / "input" / "b-whole")
    with pytest.raises(UserError, match="damaged"):
        local_copy("model", "a/b")


def test_all_that_the_notebooks_need_is_collected_or_never_replaced():
    found = closure(required())
    assert {"plotly", "nbclient", "ipykernel", "psutil", "trl", "lm-eval"} <= set(found)
    for stage in ("data", "train", "metrics", "evaluate", "chat", "publish", "all"):
        assert set(packages.needed(stage)) <= set(found) | set(NEWEST), stage
    assert not set(found) & set(BROUGHT) and {"torch", "transformers", "numpy"} <= set(BROUGHT)


def test_wheels_are_collected_with_what_they_need_but_not_with_what_the_image_has(tmp_path, monkeypatch):
    there, index, out = tmp_path / "there", tmp_path / "index", tmp_path / "out"
    for folder in (there, index):
        folder.mkdir()
    for name, requires in [("newcomer", ["torch", "helper", "other; extra == 'x'"]), ("helper", [])]:
        installed(there, name, "1.0")
        lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
        with (there / f"{name}-1.0.dist-info" / "METADATA").open("a") as file:
            file.write(lines)
        wheel(index, name, "1.0")
    monkeypatch.syspath_prepend(str(there))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert len(collect_wheels(out, "3.12", ["newcomer"])) == 2
    names = ["helper-1.0-py3-none-any.whl", "newcomer-1.0-py3-none-any.whl"]
    assert sorted(path.name for path in out.iterdir()) == names
    installed(there, "nowhere", "3.0")
    with pytest.raises(UserError, match=r"no wheel of nowhere==3.0 for Python 3.12"):
        collect_wheels(out, "3.12", ["nowhere"])
