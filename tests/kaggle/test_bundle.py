"""What `kaggle bundle` writes: form, size, metadata, values (`test_push` hands it to the `kaggle` package)."""

import argparse
import ast
import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbutils.core.files import read_json
from nbutils.core.notebooks import code_cells, notebook_path, parameters
from nbutils.core.stages import STAGES
from nbutils.kaggle.bundle import BUDGET_MINUTES, check_reachable, make_archive
from nbutils.kaggle.command import add_arguments, bundle_of
from nbutils.kaggle.packages import WHOLE
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.parameters import plan
from nbutils.sweep.settings import SweepSettings
from tests.conftest import ROOT
from tests.kaggle.simulated import SMALL, bundles

PROFILES = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "laptop_135m")
"""All but the one whose base model is a file of the machine that it is for."""


@pytest.fixture(scope="module", params=PROFILES)
def profile(request):
    return request.param


@pytest.fixture(scope="module")
def made(profile, bundled):
    """Of each bundle in order, that of the whole pipeline last: its notebook, and its metadata."""
    found = [read_json(path) for path in sorted(bundled(profile).glob("*/kernel-metadata.json"))]
    return [(bundled(profile) / facts["id"].partition("/")[2] / facts["code_file"], facts) for facts in found]


def test_a_folder_for_each_notebook_and_one_for_all_small_valid_and_for_kaggles_papermill(made):
    assert len(made) == len(STAGES) + 1 == 7
    for path, facts in made:
        assert {each.name for each in path.parent.iterdir()} == {"kernel-metadata.json", path.name}
        assert path.stem == facts["title"].replace(" ", "-") and path.stat().st_size < 1_000_000
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert book.metadata.kernelspec.name == "python3" and book.metadata.kaggle.isInternetEnabled
        cells = code_cells(path)
        assert "ARCHIVE" in cells[0]["source"] and "parameters" not in cells[0]["tags"]
        for cell in cells:
            ast.parse(cell["source"])


def test_the_parameters_cell_holds_the_profiles_values(profile, made):
    planned = plan(profile, []).stages
    assert parameters(made[-1][0])["run_dir"].default == planned[0].settings.run_dir
    for entry, (path, _) in zip(planned, made, strict=False):
        untouched, cell = ({n: p.default for n, p in parameters(p).items()} for p in (notebook_path(entry.stage), path))
        budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in untouched else {}
        assert cell == untouched | budget | entry.injected
        lines = code_cells(path)[1]["source"].splitlines()
        assert len(lines) == len(cell) and all("  # " in line for line in lines)


def test_training_and_evaluation_ask_for_two_t4s_and_the_chain_leads_from_one_to_the_next(made):
    ids, on_gpu = [facts["id"] for _, facts in made], [facts["enable_gpu"] for _, facts in made]
    assert on_gpu == [False, True, False, True, False, False, True]
    for number, (path, facts) in enumerate(made):
        shape = "NvidiaTeslaT4" if on_gpu[number] else None
        assert facts.get("machine_shape") == shape and facts["is_private"] is facts["enable_internet"] is True
        assert read_json(path)["metadata"]["kaggle"]["accelerator"] == ("nvidiaTeslaT4" if shape else "none")
        assert all(ids.index(source) <= number for source in facts["kernel_sources"])
    assert made[1][1]["kernel_sources"] == ids[:2]


def test_away_from_kaggle_a_bundle_is_an_ordinary_notebook(bundled, tmp_path):
    """Its first cells in a fresh Python where there is no /kaggle; the archive is the same for the same files."""
    book = next(bundled(PROFILES[0]).glob("*-01-*/*.ipynb"))
    first, given, resume = (cell["source"] for cell in code_cells(book)[:3])
    packed = re.search(r'ARCHIVE = """\n(.*?)\n"""', first, re.DOTALL)
    assert base64.b64decode(packed[1]) == make_archive()
    code = f"{first}\n{given}\n{resume}\nimport nbutils\nprint(nbutils.__file__)\nprint(session.run.path)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ran = subprocess.run([sys.executable], input=code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *_, package, run = map(Path, ran.stdout.splitlines())
    assert "not on Kaggle" in ran.stdout and package.is_relative_to(tmp_path) and run.parents[1] == tmp_path


@pytest.mark.parametrize(
    "options,words",
    {
        "--owner no@one": "--owner user name",
        "-p learnig_rate=1": "learning_rate",
        "--attach foo": "--attach 'foo' OWNER/DATASET",
        "--mirror foo": "mirror 'foo' owner/name",
        "-p internet=2": "internet true or false",
        **{f"-p mirror_minutes={each}": "mirror_minutes more than 0" for each in ("soon", "true", "0")},
        "-p tune_minutes=true": "tune_minutes or 0 for none",
    }.items(),
)
def test_what_kaggle_would_refuse_is_one_sentence(tmp_path, refused, options, words):
    said = refused("kaggle", "bundle", "params/demo.yaml", "--owner=someone", f"--out={tmp_path}", *options.split())
    assert all(word in said for word in words.split())


def test_what_is_on_this_machine_alone_is_listed(tmp_path, refused):
    talk, file, out = tmp_path / "talk", tmp_path / "mine.yaml", tmp_path / "out"
    talk.mkdir()
    file.write_text(f"base_model: models/my.gguf\ndatasets: [my.jsonl, {talk}, chitchat, some/hub-data]\n")
    said = refused("kaggle", "bundle", file, "--owner=someone", "--out", out)
    for words in (f"models/my.gguf, my.jsonl, {talk}. Upload", "--attach OWNER/DATASET",
                  "/kaggle/input/DATASET/my.gguf", "/kaggle/input/datasets/OWNER/DATASET/my.gguf"):  # fmt: skip
        assert words in said
    assert not out.exists()
    file.write_text("base_model: /kaggle/input/things/my.gguf\ndatasets: [/kaggle/input/things/my.jsonl]\n")
    check_reachable(plan(file, []))


def test_a_profile_says_what_its_bundles_may_use_and_the_command_line_overrides_it(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(SMALL.read_text() + "internet: false\ncheckpoint_mirror: me/mirror\nmirror_minutes: 5\n")

    def given(*words):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return bundle_of(parser.parse_args(["bundle", "--out", "x", "--owner", "someone", *map(str, words)]))

    overridden = ["--mirror=", "-p", "mirror_minutes=7", "-p", "internet=true", "--force"]
    for words, expected in [
        ([profile], (False, "me/mirror", 5.0, "")),
        ([profile, *overridden], (True, "", 7.0, "force")),
        ([SMALL], (True, "", 30.0, "")),
        ([SMALL, "--offline", "--accept"], (False, "", 30.0, "accept")),
    ]:
        found = given(*words)
        assert (found.internet, found.checkpoint_mirror, found.mirror_minutes, found.stale) == expected
    assert given(SMALL, "-p", "datasets=[a b]").recipe == "tests/kaggle/small.yaml -p 'datasets=[a b]'"
    assert given(profile).recipe == "mine.yaml", "no place on this machine goes into a notebook"
    assert len(plan(profile, []).stages) == 6  # `run` knows the names and passes over them


def test_profiles_that_kaggle_would_take_for_one_have_addresses_of_their_own():
    long = "a-profile-of-a-very-long-name-"
    alike = [f"{long}1", f"{long}2", "модель", "модели", "modell-ä", "modell-"]
    for name in ("data", "evaluate", WHOLE):
        addresses = [Bundle("me", profile, "", name).slug for profile in alike]
        assert len(set(addresses)) == len(alike)
        for address in addresses:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", address) and len(address) <= 50
    assert Bundle("me", "kaggle_t4x2", "", "train").address == "me/smallchat-kaggle-t4x2-02-train-sft"


SWEEP = ["--sweep=learning_rate=1e-3,1e-2", "--seeds=2", "--guard=hellaswag:5", "-p", "epochs=2"]


def test_a_sweep_is_one_bundle_that_carries_the_profiles_values_and_plans_itself(tmp_path):
    (folder,) = bundles(SMALL, tmp_path, *SWEEP)
    facts, book = read_json(folder / "kernel-metadata.json"), folder / f"{folder.name}.ipynb"
    assert folder.name == "smallchat-small-07-sweep" and facts["kernel_sources"] == [facts["id"]]
    assert facts["machine_shape"] == "NvidiaTeslaT4" and book.stat().st_size < 1_000_000
    cell = {name: each.default for name, each in parameters(book).items()}
    assert cell["profile"] == "" and cell["run_dir"] == "runs/small-sweep" and cell["minutes"] == BUDGET_MINUTES
    planned = SweepSettings.checked(cell).plan()
    assert [trial.label for trial in planned.trials] == [
        f"learning_rate {rate}, seed {seed}" for rate in (0.001, 0.01) for seed in (0, 1)
    ]
    assert planned.trials[0].plan.maker("model").settings.epochs == 2 and planned.guard == {"hellaswag": 5}


@pytest.mark.parametrize(
    "options,words",
    [
        (["--sweep=learning_rat=1,2"], "Did you mean 'learning_rate'?"),
        (["--sweep=datasets=[chitchat],[my.jsonl]"], "on this machine alone: my.jsonl"),
        ([*SWEEP, "--accept"], "no --accept, --force or checkpoint_mirror"),
        ([*SWEEP, "--mirror=someone/else"], "no --accept, --force or checkpoint_mirror"),
    ],
)
def test_what_a_swept_bundle_would_stop_over_is_said_where_it_is_made(tmp_path, refused, options, words):
    assert words in refused("kaggle", "bundle", SMALL, "--owner=someone", f"--out={tmp_path}", *options)
    assert not [*tmp_path.iterdir()]
