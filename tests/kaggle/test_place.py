"""Where a session is: folders, internet, GPUs, secrets, and what the first cell makes of them."""

from __future__ import annotations

import os
import sys

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.hardware import Gpu
from nbutils.kaggle.start import Bundle, check_attached, check_gpus, look_around, start, take_secret
from tests.conftest import ROOT

T4, P100 = Gpu("Tesla T4", (7, 5), 15.0), Gpu("Tesla P100-PCIE-16GB", (6, 0), 16.0)


def test_kaggle_is_known_by_its_folders_and_not_by_variables(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, "someone")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert look_around().root == place and look_around().run_type == "Interactive"
    assert resolve("runs/x") == place / "working" / "runs" / "x"
    (place / "working").rmdir()
    assert look_around().root is None and resolve("runs/x") == ROOT / "runs" / "x"


@pytest.mark.parametrize("mounted", ["talk", "datasets/me/talk"])
@pytest.mark.parametrize("asked", ["talk", "datasets/me/talk"])
def test_a_data_set_is_found_wherever_kaggle_mounts_it(place, mounted, asked):
    """By the path at either place; and where it is attached, the first cell does not ask for it without internet."""
    there, root = place / "input" / mounted / "data" / "train.jsonl", place / "input" / asked
    there.parent.mkdir(parents=True)
    there.touch()
    (there.parent / "a").touch()
    assert resolve(root / "data" / "train.jsonl") == there and resolve(root) == place / "input" / mounted
    for elsewhere in (root / "data" / "none", place / "input" / "data" / "train.jsonl"):
        assert resolve(elsewhere) == elsewhere
    needs = [("dataset", str(root / "data"), "", "conversations"), ("model", str(root / "model"), "", "base model")]
    with pytest.raises(UserError, match=r"not attached are: base model \S+/model\. Switch"):
        check_attached(Bundle("me", "mine", "mine.yaml", needs=needs), [])


@pytest.mark.parametrize("gpus,processes", [((T4, T4), 2), ((), 0)])
def test_as_many_gpus_as_asked_for_are_enough(gpus, processes):
    check_gpus(gpus, processes)


@pytest.mark.parametrize(
    "gpus,words", [((T4,), "processes is 2.*1 usable.*GPU T4 x2"), ((), "0 usable"), ((P100,), "P100.*too old")]
)
def test_fewer_gpus_than_asked_for_name_the_setting(gpus, words):
    with pytest.raises(UserError, match=words):
        check_gpus(gpus, 2)


@pytest.mark.parametrize("attached", [True, False])
def test_the_token_comes_from_kaggles_secrets_where_it_is_attached(tmp_path, monkeypatch, attached):
    answer = "return 'from-kaggle' if name == 'HF_TOKEN' else None" if attached else "raise KeyError(name)"
    (tmp_path / "kaggle_secrets.py").write_text(
        f"class UserSecretsClient:\n    def get_secret(self, name):\n        {answer}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kaggle_secrets", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    assert take_secret() is attached
    assert os.environ["HF_TOKEN"] == ("from-kaggle" if attached else "")


@pytest.mark.parametrize("internet", [True, False])
def test_a_mirror_without_its_secret_stops_the_first_cell(place, monkeypatch, capsys, internet):
    """Long before a checkpoint would be lost; without internet there is nothing to send to, which is said."""
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setitem(sys.modules, "kaggle_secrets", None)  # no such module here
    monkeypatch.setattr("nbutils.kaggle.start.hub_answers", lambda: internet)
    monkeypatch.setattr("nbutils.kaggle.start.nvidia_gpus", lambda: ())
    bundle = Bundle("me", "mine", "mine.yaml", "train", checkpoint_mirror="me/mirror")
    if not internet:
        assert start(bundle).mirror is None
        assert "nothing is sent to checkpoint_mirror me/mirror: there is no internet" in capsys.readouterr().out
        return
    with pytest.raises(UserError, match=r"me/mirror.*no secret HF_TOKEN.*Add-ons → Secrets.*push again"):
        start(bundle)
    monkeypatch.setenv("HF_TOKEN", "x")
    assert start(bundle).mirror.repo == "me/mirror"
