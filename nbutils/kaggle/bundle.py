"""What `kaggle kernels push` takes: a folder for each notebook, and one that runs the whole pipeline.

The fields of `kernel-metadata.json` follow docs/kernels_metadata.md of Kaggle/kaggle-cli, and are checked by
`KaggleApi.kernels_push` (kaggle 2.2). `machine_shape` is no documented list: "NvidiaTeslaT4" is the value that gives
two T4s, "NvidiaTeslaP100" and no value at all give one P100, for which today's torch has no kernels.
"""

from __future__ import annotations

import ast
import base64
import io
import lzma
import re
import tarfile
import textwrap
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import nbformat

from nbutils.core.errors import UserError
from nbutils.core.files import kaggle_root, resolve, sha256_of_bytes, write_json, write_text
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.key import PACKAGE
from nbutils.core.run.models import TINY
from nbutils.core.run.record import git_commit
from nbutils.core.stages import maker, spec, stages
from nbutils.data.chitchat import NAME as CHITCHAT
from nbutils.data.sources import FILE_ENDINGS
from nbutils.kaggle.environment import WHOLE
from nbutils.kaggle.packages import REQUIREMENTS, requirements
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.fetch import wanted_by
from nbutils.pipeline.parameters import Plan, Planned

BUDGET_MINUTES = 690
"""Kaggle ends a session after 12 hours; half an hour is left for the last checkpoint and the rest of the notebook."""
LARGEST = 1_000_000
"""Bytes of a notebook that Kaggle takes."""
METADATA = "kernel-metadata.json"
BUILT_IN = ("", TINY, CHITCHAT)
FILES = (*FILE_ENDINGS, ".gguf")
RESUME = """\
# What earlier sessions and notebooks made is found below /kaggle/input and continued.
session.resume(globals())"""
CLOSE = """\
# How to continue, and a last look at the size of the output.
session.close()"""
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


@dataclass(frozen=True)
class Options:
    """Who owns the notebooks, whether they may use the internet, which Kaggle datasets (`owner/slug`) are attached.

    `recipe` is the profile with its values as a command line has them. `checkpoint_mirror` is a private Hub repository
    that gets the newest checkpoint every `mirror_minutes`; empty for none. `stale` says what happens to long
    earlier work that no longer fits: accept, force, or '' to stop there.
    """

    owner: str
    profile: str
    recipe: str
    internet: bool = True
    attached: tuple[str, ...] = ()
    checkpoint_mirror: str = ""
    mirror_minutes: float = 30.0
    stale: str = ""


def write_bundles(plan: Plan, options: Options, out: Path) -> list[Path]:
    """Writes all bundles of a plan below `out`; returns their folders in the order to push.

    UserError for one that is too large, and for files that a session on Kaggle cannot reach.
    """
    check_reach(plan)
    archive = make_archive()
    books = [(planned.stage.name, _stage_book(planned, plan, options, archive)) for planned in plan.stages]
    books.append((WHOLE, _whole_book(plan, options, archive)))
    return [_write(out, name, book, options) for name, book in books]


def slug(profile: str, name: str) -> str:
    """The last part of a notebook's address on Kaggle, of at most 50 characters: what its title becomes there.

    A profile whose name is too long for that, or not in Latin letters, is told apart by a few digits of its hash.
    """
    prefix, words = re.sub(r"[^a-z0-9]+", "-", profile.lower()).strip("-"), _words(name)
    longest = 38 - len(words)
    if len(prefix) > longest or not prefix or not profile.isascii():
        digits = sha256_of_bytes(profile.encode())[:6]
        prefix = f"{prefix[: longest - 7].strip('-')}-{digits}".strip("-")
    return f"smallchat-{prefix}-{words}"


def stage_of(address: str) -> str:
    """The stage whose notebook a `slug` belongs to; WHOLE for the whole pipeline's."""
    return next((stage.name for stage in stages() if address.endswith(f"-{_words(stage.name)}")), WHOLE)


def _address(options: Options, name: str) -> str:
    return f"{options.owner}/{slug(options.profile, name)}"


def with_values(source: str, values: dict[str, Any]) -> str:
    """A parameters cell with other values; its types and lines of help stay."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in values:
            assert node.value is not None and node.value.end_lineno is not None
            first, last = node.value.lineno - 1, node.value.end_lineno - 1
            # ast counts columns in bytes
            before = lines[first].encode()[: node.value.col_offset].decode()
            after = lines[last].encode()[node.value.end_col_offset :].decode()
            lines[first : last + 1] = [f"{before}{values[node.target.id]!r}{after}"]
    return "".join(lines)


def _words(name: str) -> str:
    return "whole-pipeline" if name == WHOLE else re.sub(r"[^a-z0-9]+", "-", spec(name).file.lower()[:-6])


def _values(planned: Planned) -> dict[str, Any]:
    """What the profile gives a notebook, and the time budget where it gives none."""
    budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in type(planned.settings).model_fields else {}
    return budget | planned.injected


def _first(plan: Plan, reads: list[Planned], options: Options, name: str, archive: bytes) -> Any:
    """The first cell; `reads` are the stages whose models and data it looks for before anything else."""
    wanted = wanted_by({planned.stage.name: planned.settings for planned in reads})
    bundle = Bundle(
        stage=name,
        profile=options.profile,
        address=_address(options, name),
        processes=max(getattr(planned.settings, "processes", 0) for planned in plan.stages),
        internet=options.internet,
        recipe=options.recipe,
        needs=[astuple(item) for item in wanted],
        stale=options.stale,
        checkpoint_mirror=options.checkpoint_mirror if name in (maker("model").name, WHOLE) else "",
        mirror_minutes=options.mirror_minutes,
    )
    cell = _code("first", first_cell(archive, bundle))
    cell.metadata |= {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    return cell


def _stage_book(planned: Planned, plan: Plan, options: Options, archive: bytes) -> Any:
    book = nbformat.read(notebook_path(planned.stage), as_version=4)
    number = next(n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    cell = book.cells[number]
    cell.source = with_values(cell.source, _values(planned))
    book.cells.insert(number + 1, _code("resume", RESUME))
    book.cells.append(_code("close", CLOSE))
    # The first of the notebooks tells what all of them will lack.
    reads = plan.stages if planned is plan.stages[0] else [planned]
    only = Plan([planned], plan.run, plan.run_dir)
    book.cells.insert(1, _first(only, reads, options, planned.stage.name, archive))
    return book


def _whole_book(plan: Plan, options: Options, archive: bytes) -> Any:
    title = slug(options.profile, WHOLE).replace("-", " ")
    book = nbformat.v4.new_notebook()
    cells = [
        nbformat.v4.new_markdown_cell(INTRODUCTION.format(title=title, profile=options.profile)),
        _first(plan, plan.stages, options, WHOLE, archive),
        _code("parameters", "\n".join(_lines(plan)), tags=["parameters"]),
        _code("resume", RESUME),
        _code("run", RUN_ALL),
        _code("close", CLOSE),
    ]
    cells[0]["id"] = "smallchat-title"
    book.cells = cells
    return book


def _lines(plan: Plan) -> list[str]:
    """The whole pipeline's parameters cell: what the profile gives, each once, with its notebook's help."""
    found: dict[str, str] = {}
    for planned in plan.stages:
        cell = parameters(notebook_path(planned.stage))
        for name, value in _values(planned).items():
            found.setdefault(name, f"{name}: {cell[name].type} = {value!r}  # {cell[name].help}")
    return list(found.values())


def _code(name: str, source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, id=f"smallchat-{name}", metadata=metadata)


def _write(out: Path, name: str, book: Any, options: Options) -> Path:
    own = slug(options.profile, name)
    reads = [] if name == WHOLE else [*spec(name).reads, *spec(name).consults]
    if name == WHOLE or spec(name).pausable:
        reads.append(name)  # what can take several sessions reads its own output
    gpu = name == WHOLE or spec(name).gpu
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata["kaggle"] = {  # read when a person imports the notebook by hand
        "accelerator": "nvidiaTeslaT4" if gpu else "none",
        "dataSources": [],
        "isGpuEnabled": gpu,
        "isInternetEnabled": options.internet,
        "language": "python",
        "sourceType": "notebook",
    }
    nbformat.validate(book)
    text = nbformat.writes(book)
    if len(text.encode()) > LARGEST:
        raise UserError(
            f"The bundle of {name} is {len(text.encode()):,} bytes, and Kaggle takes {LARGEST:,}: shorten the lists in "
            "the profile, or move files that do not belong there out of nbutils/."
        )
    metadata = {
        "id": _address(options, name),
        "title": own.replace("-", " "),
        "code_file": f"{own}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": options.internet,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": list(options.attached),
        "kernel_sources": [_address(options, each) for each in reads],
    }
    write_text(out / own / f"{own}.ipynb", text + "\n")
    write_json(out / own / METADATA, metadata)
    return out / own


def first_cell(archive: bytes, bundle: Bundle) -> str:
    """The source of a bundle's first cell."""
    text = "\n".join(textwrap.wrap(base64.b64encode(archive).decode(), 120))
    digest = sha256_of_bytes(archive)[:12]
    return CELL.format(archive=text, digest=digest, commit=COMMIT, bundle=bundle)


def make_archive() -> bytes:
    """The package, the notebooks and the list of requirements, packed; the same bytes for the same files."""
    files = {
        f"nbutils/{path.relative_to(PACKAGE)}": path.read_bytes()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for stage in stages():
        files[f"notebooks/{stage.file}"] = notebook_path(stage).read_bytes()
    files[REQUIREMENTS] = "\n".join(requirements()).encode()
    files[COMMIT] = (git_commit() or "").encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        # The commit last: where it was unpacked, all else was.
        for name in sorted(files, key=lambda name: (name == COMMIT, name)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            packed.addfile(entry, io.BytesIO(files[name]))
    return lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def check_reach(plan: Plan) -> None:
    """UserError that lists what is on this machine alone: models, conversations, tasks, runs to compare with."""
    local: dict[str, None] = {}
    for planned in plan.stages:
        values = planned.settings.model_dump(mode="json")
        paths = [values.get("base_model", ""), values.get("task_path", "")]
        paths += [*values.get("peers", []), *values.get("compare_runs", [])]
        paths += [dataset["path"] for dataset in values.get("datasets", [])]
        for path in paths:
            there = path in BUILT_IN or Path(path).is_relative_to(kaggle_root())
            if not there and (resolve(path).exists() or path.endswith(FILES)):
                local[path] = None
    if local:
        raise UserError(
            f"A session on Kaggle cannot reach what is on this machine alone: {', '.join(local)}. Upload it as a "
            "Kaggle dataset, bundle with --attach OWNER/DATASET, and give the path that it has there, such as "
            f"/kaggle/input/DATASET/{Path(next(iter(local))).name}."
        )
