"""What `kaggle kernels push` takes: a folder for each notebook, and one that runs the whole pipeline.

The fields of `kernel-metadata.json` follow docs/kernels_metadata.md of Kaggle/kaggle-cli, and are checked by
`KaggleApi.kernels_push` (kaggle 2.2). `machine_shape` is no documented list: "NvidiaTeslaT4" is the value that gives
two T4s, "NvidiaTeslaP100" and no value at all give one P100, for which today's torch has no kernels.
"""

from __future__ import annotations

import base64
import io
import lzma
import tarfile
import textwrap
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import nbformat

from nbutils.core import notebooks
from nbutils.core.errors import UserError
from nbutils.core.files import PLACE, Json, files_below, kaggle_root, resolve, sha256_of_bytes, write_json, write_text
from nbutils.core.notebooks import Parameter, notebook_path, notebooks_folder, parameters
from nbutils.core.run.key import PACKAGE
from nbutils.core.run.record import git_commit
from nbutils.core.stages import maker, spec, stages
from nbutils.data.splits import FILE_SUFFIXES
from nbutils.kaggle.packages import PROJECT, SWEEP, WHOLE
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.fetch import wanted_by
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.sweep.guard import guarded
from nbutils.sweep.settings import SweepSettings

BUDGET_MINUTES = 690
"""Kaggle ends a session after 12 hours; half an hour is left for the last checkpoint and the rest of the notebook."""
METADATA = "kernel-metadata.json"
FILES = (*FILE_SUFFIXES, ".gguf")
RESUME = """\
# What earlier sessions and notebooks made is found below /kaggle/input and continued.
session.resume(globals())"""
CLOSE = """\
# How to continue, and a last look at the size of the output.
session.close()"""
HIDDEN = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
"""Metadata of a cell that Kaggle and Jupyter fold."""
RUN_ALL = """\
# All six notebooks in order; what is done is skipped. As executed they are in runs/<run>/notebooks/.
session.run_all(globals())"""
INTRODUCTION = """\
# {title}

> The six notebooks of smallchat, one after the other, in one session.

The first cell unpacks the program; the parameters below are those of the profile *{profile}*.
"""
COMMIT = "commit.txt"
"""In the archive: the commit that it was made from."""
CELL = '''\
# smallchat as it was bundled. This cell unpacks it, looks at the machine and installs what the image lacks.
ARCHIVE = """
{archive}
"""

import base64, io, pathlib, sys, tarfile, tempfile

folder = pathlib.Path(tempfile.gettempdir()) / "smallchat-{digest}"
if not (folder / "{commit}").is_file():
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(ARCHIVE)), mode="r:xz") as packed:
        packed.extractall(folder)
sys.path.insert(0, str(folder))

from nbutils.kaggle.start import Bundle, start

session = start({bundle!r})
'''


def write_bundles(plan: Plan, bundle: Bundle, out: Path) -> list[Path]:
    """Writes all bundles of a plan below `out`; returns their folders in the order to push.

    UserError for files that a session on Kaggle cannot reach.
    """
    check_reachable(plan)
    archive, folders = make_archive(), list[Path]()
    for planned in plan.stages:
        # The first of the notebooks tells what all of them will lack.
        needed = plan.stages if planned is plan.stages[0] else [planned]
        own = _filled(bundle, planned.name, [planned], needed)
        book = _book(notebook_path(planned.stage), _parameters(planned, given=False))
        folders.append(_write(out, own, book, archive))
    whole = _filled(bundle, WHOLE, plan.stages, plan.stages)
    introduction = INTRODUCTION.format(title=whole.slug.replace("-", " "), profile=bundle.profile)
    lines = {name: line for planned in plan.stages for name, line in _parameters(planned, given=True).items()}
    cells = [
        nbformat.v4.new_markdown_cell(introduction, id="smallchat-title"),
        _code("parameters", "\n".join(lines.values()), tags=["parameters"]),
        _code("resume", RESUME),
        _code("run", RUN_ALL),
    ]
    return [*folders, _write(out, whole, nbformat.v4.new_notebook(cells=cells), archive)]


def write_sweep(settings: SweepSettings, bundle: Bundle, out: Path) -> Path:
    """Writes the bundle of a sweep below `out`; returns its folder. UserError as by `write_bundles`."""
    sweep = settings.plan()
    plans = [trial.plan for trial in sweep.rows.values()]
    for plan in plans:
        check_reachable(plan)
    runs = [plan.maker(role) for plan in plans for role in ("rows", "model")]
    needed = runs + [guarded(plan, list(sweep.guard)) for plan in plans[: len(sweep.guard)]]
    carried = {"profile": "", "values": sweep.common, "minutes": BUDGET_MINUTES}
    path = notebooks_folder() / notebooks.SWEEP
    lines = _lines(parameters(path), settings.model_dump() | carried)
    return _write(out, _filled(bundle, SWEEP, runs, needed), _book(path, lines), make_archive())


def _filled(bundle: Bundle, name: str, runs: list[Planned], needed: list[Planned]) -> Bundle:
    """The bundle of one notebook: what it asks of the machine, and what `needed` stages take from the hub."""
    return replace(
        bundle,
        stage=name,
        processes=max(getattr(planned.settings, "processes", 0) for planned in runs),
        needs=[astuple(item) for item in wanted_by(planned.settings for planned in needed)],
        checkpoint_mirror=bundle.checkpoint_mirror if name in (maker("model").name, WHOLE) else "",
    )


def _parameters(planned: Planned, given: bool) -> dict[str, str]:
    """The lines of a parameters cell by name, with the profile's values; of those alone that are `given`, if so."""
    budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in type(planned.settings).model_fields else {}
    values, cell = budget | planned.injected, parameters(notebook_path(planned.stage))
    return _lines({name: each for name, each in cell.items() if name in values or not given}, values)


def _lines(cell: Mapping[str, Parameter], values: Json) -> dict[str, str]:
    """The lines of a parameters cell by name, with these values in place of its own."""
    return {
        name: f"{name}: {each.type} = {values.get(name, each.default)!r}  # {each.help}" for name, each in cell.items()
    }


def _book(path: Path, lines: Mapping[str, str]) -> Any:
    """A notebook with these lines in its parameters cell."""
    book = nbformat.read(path, as_version=4)
    number = next(n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    book.cells[number].source = "\n".join(lines.values())
    book.cells.insert(number + 1, _code("resume", RESUME))
    return book


def _code(name: str, source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, id=f"smallchat-{name}", metadata=metadata)


def _write(out: Path, bundle: Bundle, book: Any, archive: bytes) -> Path:
    """Writes a bundle: around the cells of a book those that begin and end its session."""
    text = "\n".join(textwrap.wrap(base64.b64encode(archive).decode(), 120))
    first = CELL.format(archive=text, digest=sha256_of_bytes(archive)[:12], commit=COMMIT, bundle=bundle)
    book.cells.insert(1, _code("first", first, **HIDDEN))
    book.cells.append(_code("close", CLOSE))
    own, gpu = bundle.slug, bundle.stage in (WHOLE, SWEEP) or spec(bundle.stage).gpu
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata["kaggle"] = {  # read when a person imports the notebook by hand
        "accelerator": "nvidiaTeslaT4" if gpu else "none",
        "isGpuEnabled": gpu,
        "isInternetEnabled": bundle.internet,
    }
    metadata = {
        "id": bundle.address,
        "title": own.replace("-", " "),
        "code_file": f"{own}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": bundle.internet,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": list(bundle.attached),
        "kernel_sources": [replace(bundle, stage=each).address for each in bundle.reads],
    }
    write_text(out / own / f"{own}.ipynb", nbformat.writes(book) + "\n")
    write_json(out / own / METADATA, metadata)
    return out / own


def make_archive() -> bytes:
    """The package, the notebooks and the project's file, packed; the same bytes for the same files."""
    files = {
        f"nbutils/{path.relative_to(PACKAGE)}": path.read_bytes()
        for path in files_below(PACKAGE)
        if "__pycache__" not in path.parts
    }
    for stage in stages():
        files[f"notebooks/{stage.file}"] = notebook_path(stage).read_bytes()
    files["project.toml"] = next(PLACE.glob(PROJECT)).read_bytes()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        # The commit last: where it was unpacked, all else was.
        for name, data in [*sorted(files.items()), (COMMIT, (git_commit() or "").encode())]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            packed.addfile(entry, io.BytesIO(data))
    return lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def check_reachable(plan: Plan) -> None:
    """UserError that lists what is on this machine alone: models, conversations, tasks, runs to compare with."""
    values: Json = {name: value for planned in plan.stages for name, value in planned.settings}
    paths = [values["base_model"], values["task_path"], *values["peers"], *values["compare_runs"]]
    paths += [dataset.path for dataset in values["datasets"]]
    local = [
        path
        for path in filter(None, dict.fromkeys(paths))
        if not Path(path).is_relative_to(kaggle_root()) and (resolve(path).exists() or path.endswith(FILES))
    ]
    if local:
        name = Path(local[0]).name
        raise UserError(
            f"A session on Kaggle cannot reach what is on this machine alone: {', '.join(local)}. Upload it as a "
            "Kaggle dataset, bundle with --attach OWNER/DATASET, and give the path that it has there, such as "
            f"/kaggle/input/DATASET/{name} (or /kaggle/input/datasets/OWNER/DATASET/{name}: either "
            "is found)."
        )
