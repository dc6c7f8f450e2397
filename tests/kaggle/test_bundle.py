"""What `kaggle bundle` writes: form, size, metadata, values; checked by the `kaggle` package where that can be."""

from __future__ import annotations

import ast
import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.notebooks import code_cells, notebook_path, parameters
from nbutils.core.stages import STAGES
from nbutils.kaggle.bundle import BUDGET_MINUTES, check_reachable, make_archive, write_bundles
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.parameters import plan
from tests.conftest import ROOT
from tests.kaggle.simulated import bundles, bundles_in

LAPTOP = ROOT / "params" / "laptop_135m.yaml"
"""Its base model is a file of the machine that it is for."""
PROFILES = sorted({*(ROOT / "params").glob("*.yaml")} - {LAPTOP})
Made = dict[str, tuple[Path, dict[str, Any]]]
"""By the ends of their names: each bundle's notebook, and its metadata."""


@pytest.fixture(scope="module", params=PROFILES, ids=lambda path: path.stem)
def profile(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def made(profile, made_once) -> Made:
    folder = made_once(f"bundles-{profile.stem}", lambda out: bundles(profile, out))
    found = {name: (each, read_json(each / "kernel-metadata.json")) for name, each in bundles_in(folder).items()}
    return {name: (each / facts["code_file"], facts) for name, (each, facts) in found.items()}


def test_a_folder_for_each_notebook_and_one_for_all_small_valid_and_for_kaggles_papermill(made):
    assert len(made) == len(STAGES) + 1 == 7
    for path, _ in made.values():
        assert {each.name for each in path.parent.iterdir()} == {"kernel-metadata.json", path.name}
        assert path.stat().st_size < 1_000_000
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert book.metadata.kernelspec.name == "python3" and book.metadata.kaggle.isInternetEnabled
        first, *others = code_cells(path)
        assert "ARCHIVE" in first["source"] and "parameters" not in first["tags"]
        for cell in (first, *others):
            ast.parse(cell["source"])


def test_the_parameters_cell_holds_the_profiles_values(profile, made):
    planned = plan(profile, [])
    whole, _ = made[next(name for name in made if name.endswith("whole-pipeline"))]
    assert parameters(whole)["run_dir"].default == planned.stages[0].settings.run_dir
    for entry in planned.stages:
        name = entry.stage.file.removesuffix(".ipynb").replace("_", "-")
        path, _ = next(made[own] for own in made if own.endswith(name))
        untouched, cell = ({n: p.default for n, p in parameters(p).items()} for p in (notebook_path(entry.stage), path))
        budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in untouched else {}
        assert cell == untouched | budget | entry.injected
        lines = code_cells(path)[1]["source"].splitlines()
        assert len(lines) == len(cell) and all("  # " in line for line in lines)


def test_training_and_evaluation_ask_for_two_t4s_and_the_chain_leads_from_one_to_the_next(made):
    ids, on_gpu = [facts["id"] for _, facts in made.values()], 0
    for number, (path, facts) in enumerate(made.values()):
        gpu = facts["enable_gpu"]
        on_gpu += gpu
        assert facts.get("machine_shape") == ("NvidiaTeslaT4" if gpu else None)
        assert facts["is_private"] is True and facts["enable_internet"] is True
        assert read_json(path)["metadata"]["kaggle"]["accelerator"] == ("nvidiaTeslaT4" if gpu else "none")
        assert all(ids.index(source) <= number for source in facts["kernel_sources"])
    assert on_gpu == 3 and list(made.values())[1][1]["kernel_sources"] == ids[:2]


def test_the_kaggle_package_accepts_the_metadata(made, monkeypatch):
    """`KaggleApi.kernels_push` up to the request that it would send; titles become the slugs, and fit its limits."""
    api_module = pytest.importorskip("kaggle.api.kaggle_api_extended")
    slugify = pytest.importorskip("slugify").slugify

    class Sent(Exception):
        pass

    def client(self):
        raise Sent

    monkeypatch.setattr(api_module.KaggleApi, "build_kaggle_client", client)
    for path, facts in made.values():
        assert facts["id"] == f"someone/{slugify(facts['title'])}" == f"someone/{path.parent.name}"
        assert 5 <= len(facts["title"]) <= 50
        with pytest.raises(Sent):
            api_module.KaggleApi().kernels_push(str(path.parent))


def test_away_from_kaggle_a_bundle_is_an_ordinary_notebook(made_once, tmp_path):
    """Its first cells in a fresh Python where there is no /kaggle; the archive is the same for the same files."""
    folder = made_once(f"bundles-{PROFILES[0].stem}", lambda out: bundles(PROFILES[0], out))
    first, given, resume = (cell["source"] for cell in code_cells(next(folder.glob("*-01-*/*.ipynb")))[:3])
    packed = re.search(r'ARCHIVE = """\n(.*?)\n"""', first, re.DOTALL)
    assert packed and base64.b64decode(packed[1]) == make_archive()
    assert "session.resume" in resume
    code = f"{first}\n{given}\n{resume}\nimport nbutils\nprint(nbutils.__file__)\nprint(session.run.path)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ran = subprocess.run([sys.executable], input=code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *_, package, run = map(Path, ran.stdout.splitlines())
    assert "not on Kaggle" in ran.stdout and package.is_relative_to(tmp_path) and run.parents[1] == tmp_path


@pytest.mark.parametrize(
    "options,words",
    [
        (["params/demo.yaml", "--owner", "some one"], ["--owner", "user name"]),
        (["params/none.yaml", "--owner", "someone"], ["no profile", "params/"]),
        (["params/demo.yaml", "--owner", "someone", "-p", "learnig_rate=1"], ["learning_rate"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, words):
    assert main(["kaggle", "bundle", *options, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words) and len(said.splitlines()) == 1


def test_what_is_on_this_machine_alone_is_listed(tmp_path):
    bundle = Bundle("someone", "mine", "mine.yaml")
    (tmp_path / "talk").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text(f"base_model: models/my.gguf\ndatasets: [my.jsonl, {tmp_path / 'talk'}, chitchat, some/hub-data]\n")
    with pytest.raises(UserError) as raised:
        write_bundles(plan(file, []), bundle, tmp_path / "out")
    places = [f"/kaggle/input/{place}DATASET/my.gguf" for place in ("", "datasets/OWNER/")]
    listed = f"models/my.gguf, my.jsonl, {tmp_path / 'talk'}. Upload"
    assert all(word in str(raised.value) for word in (listed, "--attach OWNER/DATASET", *places))
    assert not (tmp_path / "out").exists()
    file.write_text("base_model: /kaggle/input/things/my.gguf\ndatasets: [/kaggle/input/things/my.jsonl]\n")
    check_reachable(plan(file, []))
    with pytest.raises(UserError, match=r"is on this machine alone: models/SmolLM2.*gguf"):
        check_reachable(plan(LAPTOP, []))
