"""What `kaggle kernels push` takes: a folder for each notebook, and one that runs the whole pipeline.

The fields of `kernel-metadata.json` follow docs/kernels_metadata.md of Kaggle/kaggle-cli, and are checked by
`KaggleApi.kernels_push` (kaggle 2.2). `machine_shape` is no documented list: "NvidiaTeslaT4" is the value that gives
two T4s, "NvidiaTeslaP100" and no value at all give one P100, for which today's torch has no kernels.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from nbutils.core.errors import UserError
from nbutils.core.files import kaggle_root, resolve, sha256_of_bytes, shown, write_json, write_text
from nbutils.core.notebooks import code_cells, notebook_path, parameters
from nbutils.core.run.models import TINY
from nbutils.core.stages import maker, spec, stages
from nbutils.data.chitchat import NAME as CHITCHAT
from nbutils.data.sources import FILE_ENDINGS
from nbutils.kaggle.archive import first_cell, make_archive
from nbutils.kaggle.environment import WHOLE
from nbutils.kaggle.start import Need
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
# What earlier sessions and notebooks made is found below /kaggle/input and goes on from here.
session.resume(globals())"""
CLOSE = """\
# How to go on, and a last look at the size of the output.
session.close()"""
RUN_ALL = """\
# All six notebooks in order; what is done is skipped. They stand in runs/<run>/notebooks/ as executed.
session.run_all(globals())"""
INTRODUCTION = """\
# {title}

> The six notebooks of smallchat, one after the other, in one session.

The first cell unpacks the program; the parameters below are those of the profile *{profile}*.
"""

MIRROR_MINUTES = 30.0


@dataclass(frozen=True)
class Options:
    """Who owns the notebooks, whether they may use the internet, which Kaggle datasets (`owner/slug`) are attached.

    `recipe` is the profile with its values as a command line has them. `mirror` is a private Hub repository that gets
    the newest checkpoint every `mirror_minutes`; empty for none. `stale` says what happens to long earlier work that no
    longer fits: accept, force, or '' to stop there.
    """

    owner: str
    profile: str
    recipe: str
    internet: bool = True
    attached: tuple[str, ...] = ()
    mirror: str = ""
    mirror_minutes: float = MIRROR_MINUTES
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


def sources(options: Options, name: str) -> list[str]:
    """The notebooks whose output a bundle reads; of what can take several sessions, itself too."""
    upstream = [] if name == WHOLE else [*spec(name).reads, *spec(name).consults]
    own = [name] if name == WHOLE or spec(name).pausable else []
    return [f"{options.owner}/{slug(options.profile, each)}" for each in (*upstream, *own)]


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


def _on_gpu(name: str) -> bool:
    return name == WHOLE or spec(name).gpu


def _words(name: str) -> str:
    return "whole-pipeline" if name == WHOLE else re.sub(r"[^a-z0-9]+", "-", spec(name).file.lower()[:-6])


def _values(planned: Planned) -> dict[str, Any]:
    """What the profile gives a notebook, and the time budget where it gives none."""
    budget = {"budget_minutes": BUDGET_MINUTES} if "budget_minutes" in type(planned.settings).model_fields else {}
    return budget | planned.injected


def _facts(plan: Plan, needs: list[Need], options: Options, name: str) -> str:
    """The fields of `Bundle`: stage, profile, address, and what the first cell checks before anything else."""
    facts = {
        "stage": name,
        "profile": options.profile,
        "address": f"{options.owner}/{slug(options.profile, name)}",
        "processes": max(getattr(planned.settings, "processes", 0) for planned in plan.stages),
        "internet": options.internet,
        "recipe": options.recipe,
        "needs": needs,
    }
    if options.stale:
        facts["stale"] = options.stale
    if options.mirror and name in (maker("model").name, WHOLE):
        facts |= {"checkpoint_mirror": options.mirror, "mirror_minutes": options.mirror_minutes}
    return ",\n    ".join(f"{key}={value!r}" for key, value in facts.items())


def _stage_book(planned: Planned, plan: Plan, options: Options, archive: bytes) -> Any:
    book = nbformat.read(notebook_path(planned.stage), as_version=4)
    number = next(n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    cell = book.cells[number]
    cell.source = with_values(cell.source, _values(planned))
    book.cells.insert(number + 1, _code("resume", RESUME))
    book.cells.append(_code("close", CLOSE))
    own = Plan([planned], plan.run, plan.run_dir)
    # The first of the notebooks tells what all of them will lack.
    needs = hub_needs(plan if planned is plan.stages[0] else own)
    book.cells.insert(1, _first(_facts(own, needs, options, planned.stage.name), archive))
    return book


def _whole_book(plan: Plan, options: Options, archive: bytes) -> Any:
    title = slug(options.profile, WHOLE).replace("-", " ")
    book = nbformat.v4.new_notebook()
    cells = [
        nbformat.v4.new_markdown_cell(INTRODUCTION.format(title=title, profile=options.profile)),
        _first(_facts(plan, hub_needs(plan), options, WHOLE), archive),
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


def _first(facts: str, archive: bytes) -> Any:
    cell = _code("first", first_cell(archive, facts))
    cell.metadata |= {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    return cell


def _code(name: str, source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, id=f"smallchat-{name}", metadata=metadata)


def _write(out: Path, name: str, book: Any, options: Options) -> Path:
    own = slug(options.profile, name)
    gpu = _on_gpu(name)
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
    write_text(out / own / f"{own}.ipynb", text + "\n")
    write_json(out / own / METADATA, _metadata(name, options))
    return out / own


def _metadata(name: str, options: Options) -> dict[str, Any]:
    own = slug(options.profile, name)
    shape = {"machine_shape": "NvidiaTeslaT4"} if _on_gpu(name) else {}
    return {
        "id": f"{options.owner}/{own}",
        "title": own.replace("-", " "),
        "code_file": f"{own}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": _on_gpu(name),
        "enable_tpu": False,
        "enable_internet": options.internet,
        **shape,
        "keywords": [],
        "dataset_sources": list(options.attached),
        "competition_sources": [],
        "kernel_sources": sources(options, name),
        "model_sources": [],
    }


def describe(folder: Path) -> str:
    """One line about a bundle: its folder, its size, and what it runs on."""
    facts = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    size = (folder / facts["code_file"]).stat().st_size
    cells = len(code_cells(folder / facts["code_file"]))
    machine = "2×T4" if facts["enable_gpu"] else "CPU"
    return f"{shown(folder)}: {cells} code cells, {size / 1000:,.0f} kB, {machine}"


def hub_needs(plan: Plan) -> list[Need]:
    """What the notebooks of a plan take from the hub."""
    settings = {planned.stage.name: planned.settings for planned in plan.stages}
    return [(item.kind, item.name, item.revision, item.purpose) for item in wanted_by(settings)]


def check_reach(plan: Plan) -> None:
    """UserError that lists what lies on this machine alone: models, conversations, tasks, runs to compare with."""
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
            f"A session on Kaggle cannot reach what lies on this machine: {', '.join(local)}. Upload it as a Kaggle "
            "dataset, bundle with --attach OWNER/DATASET, and give the path that it has there, such as "
            f"/kaggle/input/DATASET/{Path(next(iter(local))).name}."
        )
