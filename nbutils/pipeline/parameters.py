"""From a profile to each notebook's own parameters, checked before anything starts."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.notebooks import Parameter, code_cells, notebook_path, notebooks_folder, parameters
from nbutils.core.settings import Settings, nearest
from nbutils.core.stages import StageSpec, stages
from nbutils.pipeline.profile import Given, read_override, read_profile

OF_BUNDLES = ("checkpoint_mirror", "internet", "mirror_minutes")
"""Names in a profile that no notebook has: `kaggle bundle` reads them, other commands pass over them."""


@dataclass(frozen=True)
class Planned:
    """One stage of a run: its validated settings, and the parameters to inject into its notebook."""

    stage: StageSpec
    settings: Settings
    injected: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The stages that a profile makes of a run, in order, and the one run folder that they share."""

    profile: Path
    stages: list[Planned]
    run: Path
    run_dir: str


def plan(profile: Path, overrides: list[str], run_dir: str | None = None) -> Plan:
    """What a run of a profile would execute. UserError for an unknown name or a value out of range, with its place."""
    given = read_profile(profile)
    given |= dict(read_override(text) for text in overrides)
    if run_dir is not None:
        given["run_dir"] = Given(run_dir, "--run-dir")
    present = [stage for stage in stages() if notebook_path(stage).is_file()]
    if not present:
        raise UserError(
            f"There are no notebooks in {notebooks_folder()}; set NBUTILS_NOTEBOOKS to the folder of yours."
        )
    for stage in present:
        _check_code(notebook_path(stage))
    cells = {stage.name: parameters(notebook_path(stage)) for stage in present}
    known = sorted({name for cell in cells.values() for name in cell} | set(OF_BUNDLES))
    for name, entry in given.items():
        if name not in known:
            raise UserError(f"{entry.where}: no notebook has a parameter '{name}'.{nearest(name, known)}")
    planned = [_planned(stage, cells[stage.name], given) for stage in present]
    folders = {entry.settings.run_path: entry.settings.run_dir for entry in planned}
    if len(folders) > 1:
        raise UserError(f"The notebooks have different run folders ({', '.join(folders.values())}): give one run_dir.")
    run, name = next(iter(folders.items()))
    return Plan(profile, planned, run, name)


def _check_code(notebook: Path) -> None:
    """UserError for a cell with a typo. IPython's magics are for the kernel, but not in the parameters cell."""
    for number, cell in enumerate(code_cells(notebook), 1):
        try:
            ast.parse(cell["source"])
        except SyntaxError as error:
            line = (error.text or "").strip()
            magic = cell["source"].startswith("%%") or set("%!?") & set(line)
            if "parameters" in cell["tags"] or not magic:
                where = f"{notebook.name}, code cell {number}, line {error.lineno}"
                raise UserError(f"{where}: {error.msg} in `{line}`.") from None


def _planned(stage: StageSpec, cell: dict[str, Parameter], given: dict[str, Given]) -> Planned:
    own = {name: entry for name, entry in given.items() if name in cell}
    settings_type = stage.settings_class()
    values = {name: parameter.default for name, parameter in cell.items()} | {n: e.value for n, e in own.items()}
    try:
        settings = settings_type.checked({name: values[name] for name in settings_type.model_fields if name in values})
    except UserError as error:
        places = [own[name].where for name in error.fields if name in own]
        raise UserError(f"{places[0] if places else stage.file}: {error}") from None
    checked = settings.model_dump(mode="json")
    # A list or mapping is handed on as it was written; a number or text as the settings have read it.
    injected = {n: e.value if isinstance(e.value, list | dict) else checked.get(n, e.value) for n, e in own.items()}
    return Planned(stage, settings, injected)
