"""Sessions without internet: what has to be attached, and how it is collected."""

from __future__ import annotations

import shutil

import pytest

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import write_json
from nbutils.kaggle import packages
from nbutils.kaggle.packages import BROUGHT, NEWEST, closure, collect_wheels, required
from nbutils.kaggle.start import Bundle, start
from tests.kaggle.made_packages import installed, wheel


def test_what_is_not_attached_is_listed_all_at_once(place, monkeypatch):
    """By the first cell of the first notebook: packages, models and data of all notebooks in one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    installed(place, "plotly", "5.24.1")
    needs = [("model", "someone/base", "", "base model"), ("dataset", "someone/data", "", "conversations")]
    recipe = "params/mine.yaml -p 'datasets=[a, b]'"
    with pytest.raises(UserError) as raised:
        start(Bundle("me", "mine", recipe, "data", internet=False, needs=needs))
    wanted = ["plotly>=6", "base model someone/base", "conversations someone/data", "--attach"]
    commands = [f"nbutils fetch {recipe} --out fetched", "nbutils kaggle wheels"]
    assert all(word in str(raised.value) for word in [*wanted, *commands])


@pytest.mark.parametrize("content", ['{"schema": 1, "ite', "[]", '{"schema": 1}'])
def test_a_damaged_list_of_what_is_attached_is_named(place, content):
    (place / "input" / "things").mkdir()
    (place / "input" / "things" / "fetched.json").write_text(content)
    with pytest.raises(UserError, match=r"things/fetched.json is damaged, or not smallchat's.*nbutils fetch"):
        local_copy("model", "a/b")


def test_of_two_attached_copies_the_whole_one_counts(place):
    for name, size in (("a-cut", 9), ("b-whole", 3)):
        folder = place / "input" / name / "models" / "m"
        folder.mkdir(parents=True)
        (folder / "w").write_text("abc")
        item = {"kind": "model", "name": "a/b", "revision": "", "commit": "c", "folder": "models/m"}
        item |= {"files": {"w": {"sha256": "", "bytes": size}}}
        write_json(place / "input" / name / "fetched.json", {"schema": 1, "items": [item]})
    assert local_copy("model", "a/b") == folder
    shutil.rmtree(folder.parents[1])
    with pytest.raises(UserError, match="damaged"):
        local_copy("model", "a/b")


def test_all_that_the_notebooks_need_is_collected_or_never_replaced():
    found = closure(required())
    assert {"plotly", "nbclient", "ipykernel", "psutil", "trl", "lm-eval"} <= set(found)
    for stage in ("data", "train", "metrics", "evaluate", "chat", "publish", "all"):
        assert set(packages.needed(stage)) <= set(found) | set(NEWEST), stage
    assert not set(found) & set(BROUGHT) and {"torch", "transformers", "numpy"} <= set(BROUGHT)


def test_wheels_are_collected_with_what_they_need_but_not_with_what_the_image_has(tmp_path, monkeypatch):
    there, index = tmp_path / "there", tmp_path / "index"
    for folder in (there, index):
        folder.mkdir()
    for name, requires in [("newcomer", ["torch", "helper", "other; extra == 'x'"]), ("helper", [])]:
        installed(there, name, "1.0", *requires)
        wheel(index, name, "1.0")
    monkeypatch.syspath_prepend(str(there))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    found = collect_wheels(tmp_path / "out", "3.12", ["newcomer"])
    assert [path.name for path in found] == ["helper-1.0-py3-none-any.whl", "newcomer-1.0-py3-none-any.whl"]
    assert sorted((tmp_path / "out").iterdir()) == found
    installed(there, "nowhere", "3.0")
    with pytest.raises(UserError, match=r"for Python 3.12 .*nowhere==3.0"):
        collect_wheels(tmp_path / "out", "3.12", ["nowhere"])
