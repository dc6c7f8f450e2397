"""What `kaggle bundle` writes: form, size, metadata, values; checked by the `kaggle` package where that can be."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbutils.core.errors import UserError
from nbutils.core.notebooks import code_cells, notebook_path, parameters
from nbutils.core.stages import STAGES
from nbutils.kaggle.bundle import BUDGET_MINUTES, make_archive, write_bundles
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.parameters import plan
from tests.conftest import ROOT
from tests.kaggle.simulated import bundles, text_of

LAPTOP = ROOT / "params" / "laptop_135m.yaml"
"""Its base model is a file of the machine that it is for."""
PROFILES = sorted({*(ROOT / "params").glob("*.yaml")} - {LAPTOP})


@pytest.fixture(scope="module", params=PROFILES, ids=lambda path: path.stem)
def profile(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def made(profile, tmp_path_factory) -> dict[str, Path]:
    return bundles(profile, tmp_path_factory.mktemp("out"))


def metadata(folder: Path) -> dict:
    return json.loads((folder / "kernel-metadata.json").read_text())


def test_a_folder_for_each_notebook_and_one_for_all(made):
    assert len(made) == len(STAGES) + 1 == 7
    for folder in made.values():
        facts = metadata(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(["kernel-metadata.json", facts["code_file"]])


def test_notebooks_are_small_valid_and_run_by_kaggles_papermill(made):
    for folder in made.values():
        path = folder / metadata(folder)["code_file"]
        assert path.stat().st_size < 1_000_000
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert book.metadata.kernelspec.name == "python3" and book.metadata.kaggle.isInternetEnabled
        for cell in code_cells(path):
            ast.parse(cell["source"])
        first = code_cells(path)[0]["source"]
        assert "ARCHIVE" in first and "parameters" not in code_cells(path)[0]["tags"]


def test_the_parameters_cell_holds_the_profiles_values(profile, made):
    planned = {entry.stage.file.removesuffix(".ipynb").replace("_", "-"): entry for entry in plan(profile, []).stages}
    for name, folder in made.items():
        cell = {n: p.default for n, p in parameters(folder / metadata(folder)["code_file"]).items()}
        entry = next((entry for part, entry in planned.items() if name.endswith(part)), None)
        if entry is None:
            assert name.endswith("whole-pipeline") and cell["run_dir"] == plan(profile, []).run_dir
            continue
        untouched = {n: p.default for n, p in parameters(notebook_path(entry.stage)).items()}
        budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in untouched else {}
        assert cell == untouched | budget | entry.injected
        lines = code_cells(folder / metadata(folder)["code_file"])[1]["source"].splitlines()
        assert len(lines) == len(cell) and all("  # " in line for line in lines)


def test_training_and_evaluation_ask_for_two_t4s_and_the_chain_leads_from_one_to_the_next(made):
    on_gpu = {name for name, folder in made.items() if metadata(folder)["enable_gpu"]}
    assert len(on_gpu) == 3
    for folder in made.values():
        facts = metadata(folder)
        assert facts.get("machine_shape") == ("NvidiaTeslaT4" if facts["enable_gpu"] else None)
        assert facts["is_private"] is True and facts["enable_internet"] is True
        book = json.loads((folder / facts["code_file"]).read_text())
        assert book["metadata"]["kaggle"]["accelerator"] == ("nvidiaTeslaT4" if facts["enable_gpu"] else "none")
    names = list(made)
    train = metadata(made[names[1]])
    assert train["kernel_sources"] == [metadata(made[names[0]])["id"], train["id"]]
    ids = [metadata(folder)["id"] for folder in made.values()]
    for number, folder in enumerate(made.values()):
        assert all(ids.index(source) <= number for source in metadata(folder)["kernel_sources"])


def test_titles_become_the_slugs_and_fit_kaggles_limits(made):
    slugify = pytest.importorskip("slugify").slugify
    for folder in made.values():
        facts = metadata(folder)
        assert facts["id"] == f"someone/{slugify(facts['title'])}" == f"someone/{folder.name}"
        assert 5 <= len(facts["title"]) <= 50


def test_the_kaggle_package_accepts_the_metadata(made, monkeypatch):
    """`KaggleApi.kernels_push` up to the request that it would send."""
    api_module = pytest.importorskip("kaggle.api.kaggle_api_extended")

    class Sent(Exception):
        pass

    class Client:
        def __enter__(self):
            raise Sent

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(api_module.KaggleApi, "build_kaggle_client", lambda self: Client())
    for folder in made.values():
        with pytest.raises(Sent):
            api_module.KaggleApi().kernels_push(str(folder))


def test_the_archive_is_the_same_for_the_same_files():
    assert make_archive() == make_archive()


def test_away_from_kaggle_a_bundle_is_an_ordinary_notebook(made, tmp_path):
    """Its first cells, executed by papermill where there is no /kaggle."""
    folder = next(iter(made.values()))
    book = nbformat.read(folder / metadata(folder)["code_file"], as_version=4)
    last = next(n for n, cell in enumerate(book.cells) if cell["id"] == "smallchat-resume")
    book.cells = book.cells[: last + 1]
    book.cells.append(nbformat.v4.new_code_cell("print(session.run.path)"))
    nbformat.write(book, tmp_path / "start.ipynb")
    command = [sys.executable, "-m", "papermill", "start.ipynb", "out.ipynb", "-k", "python3", "--no-progress-bar"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = text_of(tmp_path / "out.ipynb")
    assert "not on Kaggle" in said and Path(said.splitlines()[-1]).parents[1] == tmp_path


@pytest.mark.parametrize(
    "options,words",
    [
        (["params/demo.yaml", "--owner", "some one"], ["--owner", "user name"]),
        (["params/none.yaml", "--owner", "someone"], ["no profile", "params/"]),
        (["params/demo.yaml", "--owner", "someone", "-p", "learnig_rate=1"], ["learning_rate"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, options, words):
    command = [sys.executable, "-m", "nbutils", "kaggle", "bundle", *options, "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 1 and all(word in ran.stderr for word in words), ran.stderr
    assert len(re.findall(r"\n", ran.stderr.strip())) == 0


def test_what_is_on_this_machine_alone_is_listed(tmp_path):
    bundle = Bundle("someone", "mine", "mine.yaml")
    (tmp_path / "talk").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text(f"base_model: models/my.gguf\ndatasets: [my.jsonl, {tmp_path / 'talk'}, chitchat, some/hub-data]\n")
    with pytest.raises(UserError) as raised:
        write_bundles(plan(file, []), bundle, tmp_path / "out")
    said = str(raised.value)
    assert f"models/my.gguf, my.jsonl, {tmp_path / 'talk'}. Upload" in said and "--attach OWNER/DATASET" in said
    assert (
        all(f"/kaggle/input/{place}DATASET/my.gguf" in said for place in ("", "datasets/OWNER/"))
        and not (tmp_path / "out").exists()
    )
    file.write_text("base_model: /kaggle/input/things/my.gguf\ndatasets: [/kaggle/input/things/my.jsonl]\n")
    assert len(write_bundles(plan(file, []), bundle, tmp_path / "out")) == 7
    with pytest.raises(UserError, match=r"is on this machine alone: models/SmolLM2.*gguf"):
        write_bundles(plan(LAPTOP, []), bundle, tmp_path / "laptop")
