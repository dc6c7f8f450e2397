"""The parts of a session on Kaggle: place, packages, earlier output, space; with real folders, processes and pip."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import KAGGLE, read_json, resolve, write_json
from nbutils.core.hardware import Gpu
from nbutils.kaggle import packages
from nbutils.kaggle.archive import requirements
from nbutils.kaggle.earlier import best, bring, run_folders
from nbutils.kaggle.forecast import forecast
from nbutils.kaggle.place import check_gpus, has_internet, look_around, take_secret
from nbutils.kaggle.space import keep_under, used
from nbutils.kaggle.start import start
from nbutils.train.checkpoints import seal
from tests.conftest import ROOT

T4, P100 = Gpu("Tesla T4", (7, 5), 15.0), Gpu("Tesla P100-PCIE-16GB", (6, 0), 16.0)


# Place


def test_kaggle_is_known_by_its_folders_and_not_by_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, "someone")
    assert look_around().root is None and resolve("runs/x") == ROOT / "runs" / "x"
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert look_around().root == tmp_path and look_around().run_type == "Interactive"
    assert resolve("runs/x") == tmp_path / "working" / "runs" / "x"


def test_a_missing_internet_is_found_out_soon(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert has_internet() is False
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # nobody ever answers there (RFC 5737)
    started = time.monotonic()
    assert has_internet() is False and time.monotonic() - started < 3


def test_a_name_server_that_stumbles_is_asked_again(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = []

    def stumble(*_, **__):
        asked.append(True)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.socket()

    monkeypatch.setattr("socket.create_connection", stumble)
    assert has_internet() is True and len(asked) == 3


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    released, answered = threading.Event(), []

    def resolve_slowly(*_, **__):
        released.wait(60)
        answered.append(True)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", resolve_slowly)
    assert has_internet() is False and not answered
    released.set()


@pytest.mark.parametrize(
    "gpus,processes,words",
    [
        ((T4, T4), 2, None),
        ((), 0, None),
        ((T4,), 2, ["processes is 2", "1 usable", "GPU T4 x2"]),
        ((), 2, ["0 usable"]),
        ((P100,), 2, ["P100", "too old"]),
    ],
)
def test_fewer_gpus_than_asked_for_name_the_setting(gpus, processes, words):
    if words is None:
        check_gpus(gpus, processes)
        return
    with pytest.raises(UserError) as raised:
        check_gpus(gpus, processes)
    assert all(word in str(raised.value) for word in words)


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
def test_a_mirror_without_its_secret_stops_the_first_cell(tmp_path, monkeypatch, capsys, internet):
    """Long before a checkpoint would be lost; without internet there is nothing to send to, which is said."""
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", None)  # no such module here
    monkeypatch.setattr("nbutils.kaggle.place.has_internet", lambda: internet)
    monkeypatch.setattr("nbutils.kaggle.place.nvidia_gpus", lambda: ())
    monkeypatch.setattr("nbutils.kaggle.start.FOLDER", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch\n")
    for folder in ("input", "working"):
        (tmp_path / folder).mkdir()
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "NBUTILS_STARTED"):  # which the first cell sets
        monkeypatch.setenv(name, "")
    facts = {"stage": "train", "profile": "mine", "recipe": "mine.yaml", "address": "me/it", "processes": 0}
    if internet:
        with pytest.raises(UserError, match=r"me/mirror.*no secret HF_TOKEN.*Add-ons → Secrets.*push again"):
            start(internet=True, checkpoint_mirror="me/mirror", **facts)
        monkeypatch.setenv("HF_TOKEN", "x")
        assert start(internet=True, checkpoint_mirror="me/mirror", **facts).mirror.repo == "me/mirror"
    else:
        assert start(internet=True, checkpoint_mirror="me/mirror", **facts).mirror is None
        assert "nothing is sent to checkpoint_mirror me/mirror: there is no internet" in capsys.readouterr().out


# Packages


def test_the_first_cell_imports_nothing_that_may_have_to_be_installed():
    code = (
        "import sys, nbutils.kaggle.start\n"
        "others = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(*sorted(name for name in others if not name.startswith('_')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["nbutils", "packaging"]


def installed(folder: Path, name: str, version: str) -> None:
    """Makes a distribution visible that is not there."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("version,words", [("4.57.0", [">=5.0", "Always use latest"]), ("6.1.0", ["6", "update"])])
def test_an_image_too_old_or_too_new_is_one_sentence(tmp_path, monkeypatch, version, words):
    installed(tmp_path, "transformers", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as raised:
        packages.inspect([Requirement("transformers>=5.0")])
    assert all(word in str(raised.value) for word in ["transformers", version, *words])


def test_what_is_there_is_kept_and_each_notebook_needs_its_own():
    for stage in ("data", "train", "evaluate", "all"):
        found = packages.inspect(packages.needed(requirements(), stage))
        assert all(package.fits for package in found)
        assert packages.install(found, {}, internet=False, wheels=[]) == found
    names = {str(r.name) for r in packages.needed(requirements(), "train")}
    assert {"torch", "trl", "chitchat-dataset"} <= names and not names & {"lm-eval", "jupyterlab", "papermill"}


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A wheel with one module, written by hand."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\n"
            packed.writestr(path, text)
        packed.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")


INSTALL = """
import sys
from pathlib import Path
from packaging.requirements import Requirement
from nbutils.core.errors import UserError
from nbutils.kaggle import packages
before, everything = packages.inspect([Requirement(line) for line in sys.argv[2:]]), packages.live_versions()
try:
    after = packages.install(before, everything, internet=False, wheels=[Path(sys.argv[1])])
    print(packages.table(before, after, everything))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> tuple[Path, Path]:
    """An environment with `helper` 1.0 and what pip needs, and a folder of wheels."""
    folder = tmp_path_factory.mktemp("live")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder / "venv")
    wheels = folder / "wheels"
    wheels.mkdir()
    for name, version, requires in [
        ("helper", "1.0", ""),
        ("helper", "2.0", ""),
        ("easygoing", "1.0", "helper"),
        ("demanding", "1.0", "helper>=2"),
        ("numpy", "2.3.5", ""),
        ("numpy", "9.0", ""),
        ("greedy", "1.0", "numpy>=9"),
    ]:
        wheel(wheels, name, version, requires)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", wheels]
    subprocess.run([*pip, "helper==1.0", "numpy==2.3.5"], check=True)
    return python, wheels


def install(live: tuple[Path, Path], tmp_path: Path, *lines: str) -> str:
    """The table, or the sentence, of an installation in the live environment."""
    python, wheels = live
    import packaging

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "packaging").symlink_to(Path(packaging.__file__).parent)
    (parts / "nbutils").symlink_to(ROOT / "nbutils")
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PIP_")} | {"PYTHONPATH": str(parts)}
    environment["PIP_CONFIG_FILE"] = os.devnull
    ran = subprocess.run(
        [python, "-c", INSTALL, wheels, *lines], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_only_what_is_lacking_is_installed_and_helpers_stay(live, tmp_path):
    said = install(live, tmp_path, "easygoing>=1", "numpy>=2")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["easygoing", ">=1", "nothing", "1.0"],
        ["numpy", ">=2", "2.3.5", "kept"],
    ]
    version = subprocess.run([live[0], "-c", "import helper; print(helper.VERSION)"], capture_output=True, text=True)
    assert version.stdout.strip() == "1.0"


def test_a_helper_is_raised_where_a_newcomer_demands_it(live, tmp_path):
    said = install(live, tmp_path, "demanding")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["demanding", "nothing", "1.0"],
        ["helper", "a", "helper", "1.0", "2.0"],
    ]
    version = subprocess.run([live[0], "-c", "import helper; print(helper.VERSION)"], capture_output=True, text=True)
    assert version.stdout.strip() == "2.0"


def test_numpy_of_the_image_is_never_replaced(live, tmp_path):
    said = install(live, tmp_path, "greedy")
    assert "pip cannot install greedy" in said and "Always use latest" in said


# Without internet


def test_what_is_not_attached_is_listed_all_at_once(tmp_path, monkeypatch):
    """By the first cell of the first notebook: packages, models and data of all notebooks in one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for folder in ("input", "working"):
        (tmp_path / folder).mkdir()
    (tmp_path / "requirements.txt").write_text("\n".join(requirements()))
    monkeypatch.setattr("nbutils.kaggle.start.FOLDER", tmp_path)
    installed(tmp_path, "plotly", "5.24.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = {"profile": "mine", "address": "me/it", "processes": 0, "internet": False}
    facts["recipe"] = "params/mine.yaml -p 'datasets=[a, b]'"
    needs = [("model", "someone/base", "", "base model"), ("dataset", "someone/data", "", "conversations")]
    with pytest.raises(UserError) as raised:
        start(stage="data", needs=needs, **facts)
    wanted = ["plotly>=6", "base model someone/base", "conversations someone/data", "--attach"]
    commands = ["nbutils fetch params/mine.yaml -p 'datasets=[a, b]' --out fetched", "nbutils kaggle wheels"]
    assert all(word in str(raised.value) for word in [*wanted, *commands])


@pytest.mark.parametrize("content", ['{"schema": 1, "ite', "[]", '{"schema": 1}', '{"schema": 1, "items": [{}]}'])
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
    from nbutils.kaggle.wheels import BROUGHT, closure, required

    found = closure(required())
    assert {"plotly", "nbclient", "ipykernel", "psutil", "trl", "lm-eval"} <= set(found)
    for stage in ("data", "train", "metrics", "evaluate", "chat", "publish", "all"):
        names = {canonicalize_name(needed.name) for needed in packages.needed(requirements(), stage)}
        assert names <= set(found) | set(packages.KEPT), stage
    assert not set(found) & set(BROUGHT) and {"torch", "transformers", "numpy"} <= set(BROUGHT)


def test_wheels_are_collected_with_what_they_need_but_not_with_what_the_image_has(tmp_path, monkeypatch):
    from nbutils.kaggle.wheels import collect_wheels

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
    names = ["helper-1.0-py3-none-any.whl", "newcomer-1.0-py3-none-any.whl", "wheels.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    installed(there, "nowhere", "3.0")
    with pytest.raises(UserError, match=r"no wheel of nowhere==3.0 for Python 3.12"):
        collect_wheels(out, "3.12", ["nowhere"])


# Earlier output


def stage_at(run: Path, status: str, started: str = "2026-01-01T10:00:00+00:00", **parameters) -> Path:
    """A training stage's folder in a run folder."""
    folder = run / "train"
    folder.mkdir(parents=True)
    write_json(run / "run.json", {"schema": 1, "name": run.name, "parameters": {}})
    record = {"schema": 1, "stage": "train", "status": status, "started": started, "outputs": {}, "facts": {}}
    write_json(folder / "stage.json", record | {"parts": {"parameters": {"seed": 0} | parameters}})
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step-{step:06d}"
    partial = path.with_name("x.partial")
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(b"w" * 100)
    seal(partial, path, {}, {"step": step})
    return path


@pytest.mark.parametrize("place", ["slug", "notebooks/owner/slug", "datasets/owner/slug/versions/3"])
def test_runs_are_found_wherever_they_are_mounted(tmp_path, place):
    stage_at(tmp_path / place / "runs" / "mine", "paused")
    stage_at(tmp_path / place / "runs" / "other", "paused")
    assert run_folders(tmp_path, "mine") == [tmp_path / place / "runs" / "mine"]


def test_of_several_versions_the_one_with_the_highest_valid_step_is_taken(tmp_path):
    for name, steps, started in [("a", [10, 20], "01"), ("b", [10, 30], "02"), ("c", [10], "03")]:
        folder = stage_at(tmp_path / name / "mine", "paused", f"2026-01-{started}T10:00:00+00:00")
        for step in steps:
            checkpoint(folder, step)
    runs = run_folders(tmp_path, "mine")
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert not remarks
    assert found is not None and found.step == 30 and found.date == "2026-01-02 10:00 UTC"
    (tmp_path / "b/mine/train/checkpoints/step-000030/weights").write_bytes(b"x" * 100)
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert found is not None and found.step == 20
    assert len(remarks) == 1 and "changed weights" in remarks[0]


def test_other_settings_come_last_and_half_written_records_are_no_records(tmp_path):
    checkpoint(stage_at(tmp_path / "a" / "mine", "paused", seed=1), 50)
    checkpoint(stage_at(tmp_path / "b" / "mine", "paused"), 10)
    broken = stage_at(tmp_path / "c" / "mine", "paused")
    (broken / "stage.json").write_text('{"schema": 1, "sta')
    runs = run_folders(tmp_path, "mine")
    found, remarks = best(runs, "train", {"parameters": {"seed": 0}})
    assert len(runs) == 3 and found is not None and found.step == 10
    assert remarks == [f"{broken / 'stage.json'} is damaged, and what lies beside it is passed over"]
    assert best(runs, "metrics", None) == (None, [])
    assert best([broken.parent], "train", None)[1] == remarks  # said where nothing else is attached, too
    for odd in ("[]", '{"schema": "x"}', '{"schema": 1, "stage": "train"}'):
        (broken / "stage.json").write_text(odd)
        assert best([broken.parent], "train", None) == (None, remarks)


def test_what_fits_comes_before_what_is_further_and_does_not(tmp_path):
    """After the code or the data has changed: the newer run is younger, and not as far."""
    done = stage_at(tmp_path / "done" / "mine", "done")
    far = checkpoint(stage_at(tmp_path / "far" / "mine", "paused"), 10_000).parents[1]
    new = checkpoint(stage_at(tmp_path / "new" / "mine", "paused"), 500).parents[1]
    for folder, upstream in ((done, "old"), (far, "old"), (new, "now")):
        record = read_json(folder / "stage.json")
        write_json(folder / "stage.json", record | {"parts": record["parts"] | {"upstream": {"data/x": upstream}}})
    asked = {"parameters": {"seed": 0}, "upstream": {"data/x": "now"}}
    found, _ = best(run_folders(tmp_path, "mine"), "train", asked)
    assert found is not None and found.fits and found.step == 500
    found, _ = best([done.parent, far.parent], "train", asked)
    assert found is not None and not found.fits and found.done


def test_work_of_a_newer_smallchat_is_not_begun_anew(tmp_path):
    newer = stage_at(tmp_path / "a" / "mine", "paused")
    write_json(newer / "stage.json", read_json(newer / "stage.json") | {"schema": 99})
    with pytest.raises(UserError, match=r"newer smallchat \(schema 99.*update smallchat"):
        best([newer.parent], "train", None)


def test_a_paused_stage_goes_on_without_the_files_that_a_mirror_leaves_out(tmp_path):
    """It sends checkpoints and records, and no base: training makes that again."""
    folder = stage_at(tmp_path / "a" / "mine", "paused")
    checkpoint(folder, 10)
    entry = {"bytes": 100, "sha256": "", "mtime_ns": 0}
    outputs = {"base/model": entry, "checkpoints/step-000010/weights": entry}
    write_json(folder / "stage.json", read_json(folder / "stage.json") | {"outputs": outputs})
    found, remarks = best([folder.parent], "train", None)
    assert found is not None and found.step == 10 and not remarks
    assert found.record["status"] == "paused" and list(found.record["outputs"]) == ["checkpoints/step-000010/weights"]


def test_a_finished_stage_that_lacks_a_file_is_not_finished(tmp_path):
    folder = stage_at(tmp_path / "a" / "mine", "done")
    record = {"schema": 1, "stage": "train", "status": "done", "started": "2026-01-01T10:00:00+00:00", "facts": {}}
    outputs = {"final/model": {"bytes": 5, "sha256": "", "mtime_ns": 0}}
    write_json(folder / "stage.json", record | {"outputs": outputs, "parts": {"parameters": {}}})
    (folder / "final").mkdir()
    (folder / "final" / "model").write_bytes(b"12345")
    found, _ = best([folder.parent], "train", None)
    assert found is not None and found.done
    (folder / "final" / "model").write_bytes(b"1")
    found, remarks = best([folder.parent], "train", None)
    assert found is not None and not found.done and "final/model" in remarks[0]
    bring(found, tmp_path / "here", with_checkpoint=True)
    record = read_json(tmp_path / "here" / "stage.json")
    assert record["status"] != "done" and not record["outputs"]


def test_what_is_brought_can_be_written_and_only_the_chosen_checkpoint_comes(tmp_path):
    folder = stage_at(tmp_path / "input" / "mine", "paused")
    checkpoint(folder, 10)
    checkpoint(folder, 20)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "metrics.jsonl").chmod(0o444)
    found, _ = best([folder.parent], "train", None)
    assert found is not None
    bring(found, tmp_path / "here", with_checkpoint=True)
    assert [path.name for path in (tmp_path / "here" / "checkpoints").iterdir()] == ["step-000020"]
    copy = tmp_path / "here" / "metrics.jsonl"
    assert copy.stat().st_mode & 0o200 and copy.stat().st_mtime_ns == (folder / "metrics.jsonl").stat().st_mtime_ns


# Space


def test_what_nobody_goes_on_from_is_dropped_first(tmp_path):
    folder = stage_at(tmp_path / "runs" / "mine", "paused")
    for step in (10, 20):
        checkpoint(folder, step)
    for name in ("checkpoints/step-000030.partial", "checkpoints/damaged-step-000005", "../../.mirror-x"):
        (folder / name).mkdir()
        (folder / name / "w").write_bytes(b"x" * 100_000)
    os.link(folder / "checkpoints/step-000020/weights", folder / "../../.mirror-x/weights")
    before = used(tmp_path)
    assert before == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - 100
    assert len(keep_under(tmp_path, folder.parent, limit=50_000)) == 3
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000010", "step-000020"]


@pytest.mark.parametrize("status,left", [("paused", ["step-000020"]), ("done", [])])
def test_the_output_is_kept_below_its_limit(tmp_path, status, left):
    folder = stage_at(tmp_path / "runs" / "mine", status)
    for step in (10, 20):
        checkpoint(folder, step)
    assert keep_under(tmp_path, folder.parent, limit=10**6) == []
    dropped = keep_under(tmp_path, folder.parent, limit=100)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == left
    assert dropped[0] == "runs/mine/train/checkpoints/step-000010" and used(tmp_path) > 0


# Failures


def test_a_kept_failure_is_red_and_costs_no_version(tmp_path):
    """Guard in a real kernel, executed by papermill."""
    import nbformat

    keep = "lambda error: 'keep' in str(error)"
    cells = [
        f"from nbutils.kaggle.guard import Guard\nguard = Guard(get_ipython())\nguard.watch({keep})",
        "'a value'",
        "raise ValueError('{}')",
        "print('never' + 'reached')",
        "# session.resume(\nprint('begun' + 'again')",
    ]
    for word, status, shown in [("keep", 0, "ValueError: keep"), ("fatal", 1, '"ename": "ValueError"')]:
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source.replace("{}", word)) for source in cells]
        )
        nbformat.write(book, tmp_path / f"{word}.ipynb")
        command = [sys.executable, "-m", "papermill", f"{word}.ipynb", "out.ipynb", "-k", "python3"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        out = (tmp_path / "out.ipynb").read_text()
        assert ran.returncode == status, ran.stderr
        assert shown in out and "neverreached" not in out and "'a value'" in out
        assert ("begunagain" in out) is (status == 0)


# Forecast


def test_the_forecast_counts_all_of_the_data_and_all_passes():
    rows = [{"kind": "train", "tokens_per_second": speed} for speed in (1, 1, 1, 20_000, 22_000, 24_000)]
    summary = {"train": {"tokens": 4_000_000}, "datasets": [{"rows": 4_600, "rows_in_source": 460_000}]}
    found = forecast([{"kind": "session"}, *rows], summary, epochs=3)
    assert found is not None and found.tokens == 4_000_000 * 100 * 3 and found.tokens_per_second == 22_000
    assert found.hours == pytest.approx(1_200_000_000 / 22_000 / 3600) and found.sessions == 2
    assert "15.4 GPU-hours in 2 session(s)" in found.sentence and "1 week(s)" in found.sentence
    assert "training steps" in found.sentence and "Evaluations on the way and notebook 04 come on top" in found.sentence
    rows.append({"kind": "eval", "seconds": 30.0})
    found = forecast(rows, summary, epochs=3, notebook_seconds=90.0)
    assert found is not None and "(here 30 s each) and notebook 04 (here 90 s) come on top" in found.sentence
    assert forecast([], summary, epochs=3) is None
