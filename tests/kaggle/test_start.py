"""Where a session is: folders, internet, GPUs, secrets, what is attached; and what the first cell makes of them."""

import os
import shutil
import sys

import pytest

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import resolve, write_json, write_text
from nbutils.core.torchrun import PEER_TO_PEER
from nbutils.kaggle.start import Bundle, check_attached, check_gpus, look_around, start, take_secret
from tests.conftest import ROOT
from tests.kaggle.made_packages import installed
from tests.train.runs import P100, T4


def test_kaggle_is_known_by_its_folders_and_not_by_variables(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, "someone")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    found = look_around()
    assert (found.root, found.run_type) == (place, "Interactive")
    assert resolve("runs/x") == place / "working" / "runs" / "x"
    (place / "working").rmdir()
    assert look_around().root is None and resolve("runs/x") == ROOT / "runs" / "x"


@pytest.mark.parametrize("mounted", ["talk", "datasets/me/talk"])
@pytest.mark.parametrize("asked", ["talk", "datasets/me/talk"])
def test_a_data_set_is_found_wherever_kaggle_mounts_it(place, mounted, asked):
    """By the path at either place; and where it is attached, the first cell does not ask for it without internet."""
    there, root = place / "input" / mounted / "data" / "train.jsonl", place / "input" / asked
    write_text(there, "")
    assert resolve(root / "data" / "train.jsonl") == there and resolve(root) == place / "input" / mounted
    for elsewhere in (root / "data" / "none", place / "input" / "data" / "train.jsonl"):
        assert resolve(elsewhere) == elsewhere
    needs = [("dataset", str(root / "data"), "", "conversations"), ("model", str(root / "model"), "", "base model")]
    with pytest.raises(UserError, match=r"not attached are: base model \S+/model\. Switch"):
        check_attached(Bundle("me", "mine", "mine.yaml", needs=needs), [])


def test_what_is_not_attached_is_listed_all_at_once(place, monkeypatch):
    """By the first cell of the first notebook: packages, models and data of all notebooks in one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    installed(place, "plotly", "5.24.1")
    needs = [("model", "someone/base", "", "base model"), ("dataset", "someone/data", "", "conversations")]
    recipe = "params/mine.yaml -p 'datasets=[a, b]'"
    with pytest.raises(UserError) as raised:
        start(Bundle("me", "mine", recipe, "data", internet=False, needs=needs))
    wanted = ["plotly>=6", "base model someone/base", "conversations someone/data", "--attach"]
    wanted += [f"nbutils fetch {recipe} --out fetched", "nbutils kaggle wheels"]
    assert all(word in str(raised.value) for word in wanted)


@pytest.mark.parametrize("content", ['{"schema": 1, "ite', "[]", '{"schema": 1}'])
def test_a_damaged_list_of_what_is_attached_is_named(place, content):
    (place / "input" / "fetched.json").write_text(content)
    with pytest.raises(UserError, match=r"input/fetched.json is damaged, or not smallchat's.*nbutils fetch"):
        local_copy("model", "a/b")


def test_of_two_attached_copies_the_whole_one_counts(place):
    for name, size in (("a-cut", 9), ("b-whole", 3)):
        folder = place / "input" / name
        write_text(folder / "w", "abc")
        item = {"kind": "model", "name": "a/b", "revision": "", "commit": "c", "folder": ".",
                "files": {"w": {"bytes": size}}}  # fmt: skip
        write_json(folder / "fetched.json", {"schema": 1, "items": [item]})
    assert local_copy("model", "a/b") == folder
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="damaged"):
        local_copy("model", "a/b")


@pytest.mark.parametrize(
    "gpus,words", {(T4,): "processes is 2.*1 usable.*GPU T4 x2", (): "0 usable", (P100,): "P100.*too old"}.items()
)
def test_fewer_gpus_than_asked_for_name_the_setting(gpus, words):
    check_gpus((T4, T4), 2)  # these are enough
    with pytest.raises(UserError, match=words):
        check_gpus(gpus, 2)


def test_the_token_comes_from_kaggles_secrets(tmp_path, monkeypatch):
    secrets = "class UserSecretsClient:\n    def get_secret(self, name):\n        return f'{name} of Kaggle'\n"
    (tmp_path / "kaggle_secrets.py").write_text(secrets)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kaggle_secrets", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    assert take_secret() and os.environ["HF_TOKEN"] == "HF_TOKEN of Kaggle"


@pytest.mark.parametrize("internet", [True, False])
def test_a_mirror_without_its_secret_stops_the_first_cell(place, monkeypatch, capsys, internet):
    """Long before a checkpoint would be lost; without internet there is nothing to send to, which is said."""
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setitem(sys.modules, "kaggle_secrets", None)  # no such module here
    monkeypatch.setattr("nbutils.kaggle.start.hub_answers", lambda: internet)
    bundle = Bundle("me", "mine", "mine.yaml", "train", checkpoint_mirror="me/mirror")
    if internet:
        with pytest.raises(UserError, match=r"me/mirror.*no secret HF_TOKEN.*Add-ons → Secrets.*push again"):
            start(bundle)
    monkeypatch.setenv("HF_TOKEN", "x")
    mirror, said = start(bundle).mirror, capsys.readouterr().out
    assert (mirror is not None) is internet
    assert ("nothing is sent to checkpoint_mirror me/mirror: there is no internet" in said) is not internet


@pytest.mark.parametrize("gpus,expected", [((T4,), None), ((T4, T4), "1")])
def test_two_t4s_exchange_through_the_hosts_memory(place, monkeypatch, gpus, expected):
    """Nothing else connects them, and NCCL could hang while it tries."""
    monkeypatch.setenv(PEER_TO_PEER, "")
    monkeypatch.delenv(PEER_TO_PEER)
    monkeypatch.setattr("nbutils.kaggle.start.hub_answers", lambda: False)
    monkeypatch.setattr("nbutils.kaggle.start.nvidia_gpus", lambda: gpus)
    start(Bundle("me", "mine", "mine.yaml", "train"))
    assert os.environ.get(PEER_TO_PEER) == expected
