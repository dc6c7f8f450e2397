"""From a profile to each notebook's own parameters, checked before anything starts; and `python -m nbutils settings`.

A profile is one flat YAML mapping. Plain values follow the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3):
YAML 1.1, which PyYAML and so papermill read, takes `1e-5` for text, `yes` for true and `2024-01-01` for a date.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve, shown, write_json
from nbutils.core.notebooks import code_cells, notebook_path, notebooks_folder, parameters
from nbutils.core.run.decide import StageState, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD
from nbutils.core.settings import Settings, nearest
from nbutils.core.stages import StageSpec, maker, stages
from nbutils.core.text import first_line

OF_BUNDLES = ("checkpoint_mirror", "internet", "mirror_minutes", "tune_minutes")
"""Names in a profile that no notebook has: `kaggle bundle` reads them, other commands pass over them."""


@dataclass(frozen=True)
class Given:
    """One value that a person gave, and where."""

    value: Any
    where: str


@dataclass(frozen=True)
class Planned:
    """One stage of a run: its validated settings, and the parameters to inject into its notebook."""

    stage: StageSpec
    settings: Settings
    injected: Json

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    def state(self) -> StageState:
        """The state of its folder in the run."""
        return inspect(self.stage, self.settings)


@dataclass(frozen=True)
class Plan:
    """The stages that a profile makes of a run, in order, and the one run folder that they share."""

    profile: Path
    stages: list[Planned]
    run: Path

    def maker(self, role: str) -> Planned:
        """The stage that makes the `model`, the `rows`, …"""
        return next(planned for planned in self.stages if planned.stage == maker(role))


# ---- the command line


def add_profile(parser: argparse.ArgumentParser, default: str | None = None, run_dir: bool = True) -> None:
    """The arguments of a command on a profile: PROFILE, `-p NAME=VALUE`, and `--run-dir DIR` where it has an effect."""
    parser.add_argument(
        "profile",
        metavar="PROFILE",
        nargs="?" if default else None,
        default=default,
        help="a YAML file of parameters, such as params/demo.yaml",
    )
    parser.add_argument(
        "-p",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="set one parameter; VALUE is YAML",
    )
    if run_dir:
        parser.add_argument("--run-dir", metavar="DIR", help="the run folder, instead of the profile's run_dir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `settings`."""
    add_profile(parser)
    parser.add_argument("--out", metavar="FILE", help="where to write (default: train/settings.json in the run folder)")


def main(arguments: argparse.Namespace) -> int:
    """Writes the training worker's SETTINGS.json without a kernel, and prints the command that trains with it."""
    planned = planned_by(arguments)
    settings = planned.maker("model").settings
    training = Run(planned.run).training
    path = Path(arguments.out).absolute() if arguments.out else training / "settings.json"
    if (training / RECORD).exists() and path.parent == training:
        raise UserError(f"{shown(path)} belongs to what notebook 02 has trained there: give --out, or another run_dir.")
    write_json(path, {"schema": 1, "settings": settings.model_dump(mode="json")})
    program = f"-m nbutils.train.worker {shown(path)}"
    print(f"Wrote {shown(path)}. On one machine:\n  torchrun --standalone --nproc-per-node=2 {program}")
    print(
        "On several that share the run folder, on each of them:\n  torchrun --nnodes=2 --nproc-per-node=2 "
        f"--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-id=run {program}"
    )
    return 0


def planned_by(arguments: argparse.Namespace) -> Plan:
    """The plan of a command that has the arguments of `add_profile`."""
    return plan(profile_path(arguments.profile), arguments.overrides, arguments.run_dir)


def profile_path(given: str) -> Path:
    """A profile's path: as the shell means it, or else from the project root."""
    path = Path(given).expanduser()
    return path.absolute() if os.path.exists(path) else resolve(given)


# ---- the plan


def plan(profile: Path, overrides: list[str], run_dir: str | None = None) -> Plan:
    """What a run of a profile would execute. UserError for an unknown name or a value out of range, with its place."""
    given = read_profile(profile)
    given |= dict(read_override(text) for text in overrides)
    if run_dir is not None:
        given["run_dir"] = Given(run_dir, "--run-dir")
    return plan_of(profile, given)


def plan_of(profile: Path, given: Mapping[str, Given]) -> Plan:
    """The same for values that are read already."""
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
    planned = [_planned(stage, {name: given[name] for name in cells[stage.name] if name in given}) for stage in present]
    return Plan(profile, planned, planned[0].settings.run_path)


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


def _planned(stage: StageSpec, given: dict[str, Given]) -> Planned:
    values = {name: entry.value for name, entry in given.items()}
    try:
        settings = settings_of(stage, values)
    except UserError as error:
        positions = [given[name].where for name in error.fields if name in given]
        raise UserError(f"{positions[0] if positions else stage.file}: {error}") from None
    checked = settings.model_dump(mode="json")
    # A list or mapping is handed on as it was written; a number or text as the settings have read it.
    injected = {n: value if isinstance(value, list | dict) else checked.get(n, value) for n, value in values.items()}
    return Planned(stage, settings, injected)


def settings_of(stage: StageSpec, names: Mapping[str, Any]) -> Settings:
    """A stage's settings out of a notebook's names; what these do not give has the notebook's own default."""
    cell, kind = parameters(notebook_path(stage)), stage.settings_class()
    return kind.checked({n: names.get(n, p.default) for n, p in cell.items() if n in kind.model_fields})


# ---- the profile


def read_profile(path: Path) -> dict[str, Given]:
    """The values of a profile by name. UserError with line and column for what is no such mapping."""
    name = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(shown(file) for file in sorted(resolve("params").glob("*.yaml")))
        raise UserError(f"There is no profile {name} ({error.strerror}); there are {known}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, byte {error.start + 1}: not UTF-8 text; save the profile as UTF-8.") from None
    values, node = _read(text, name)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{_position(node.start_mark)}: 'name: value' lines are expected, one for each parameter.")
    positions = [_position(value.start_mark) for _, value in node.value]
    return {str(key): Given(value, position) for (key, value), position in zip(values.items(), positions, strict=True)}


def read_override(text: str) -> tuple[str, Given]:
    """Name and value of a `-p NAME=VALUE`; the value is YAML."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name.isidentifier():
        raise UserError(f"-p {text!r} is not NAME=VALUE; write for example -p learning_rate=1e-3.")
    return name, Given(_read(value, f"-p {name}")[0], f"-p {name}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, and no name twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: list[Any] = []
        for key, _ in node.value:
            if key.value in found:
                raise UserError(f"{_position(key.start_mark)}: '{key.value}' is here a second time.")
            found.append(key.value)
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in {
    "null": "|~|null|Null|NULL",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?",
}.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"({_pattern})\Z"), None)
_Loader.add_constructor(
    _TAG + "int", lambda loader, node: int(node.value.replace("_", ""), 16 if "x" in node.value else 10)
)


def _read(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its node. UserError with line and column for what cannot be read."""
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        position = _position(error.problem_mark or error.context_mark)
        raise UserError(
            f"{position}: {problem}; use spaces, no tabs, and put text that contains : {{ }} [ ] # & * or ! in quotes."
        ) from None
    except (ValueError, LookupError, AttributeError) as error:  # an explicit tag, such as !!int, before something else
        raise UserError(f"{name}: {first_line(error)}; leave tags such as !!int out.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}, line {line}: a control character; remove it.") from None


def _position(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
