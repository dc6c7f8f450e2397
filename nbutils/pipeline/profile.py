"""A profile: one flat YAML mapping of parameters, and what the command line gives beside it.

Plain values follow the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3). YAML 1.1, which PyYAML and so
papermill read, takes `1e-5` for text, `yes` for true and `2024-01-01` for a date.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nbutils.core.errors import UserError
from nbutils.core.files import resolve, shown


@dataclass(frozen=True)
class Given:
    """One value that a person gave, and where."""

    value: Any
    where: str


def add_profile(parser: argparse.ArgumentParser, default: str | None = None, run_dir: bool = True) -> None:
    """The arguments that every command on a profile takes: PROFILE, `-p NAME=VALUE`, and mostly `--run-dir DIR`."""
    how = f"default: {default}" if default else "for example params/demo.yaml"
    parser.add_argument(
        "profile",
        metavar="PROFILE",
        nargs="?" if default else None,
        default=default,
        help=f"a YAML file of parameters ({how})",
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


def profile_path(given: str) -> Path:
    """A profile's path: as the shell means it, or else from the project root."""
    path = Path(given).expanduser()
    return path.absolute() if os.path.exists(path) else resolve(given)


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
        raise UserError(f"{_place(node.start_mark)}: 'name: value' lines are expected, one for each parameter.")
    places = [_place(value.start_mark) for _, value in node.value]
    return {str(key): Given(value, place) for (key, value), place in zip(values.items(), places, strict=True)}


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
                raise UserError(f"{_place(key.start_mark)}: '{key.value}' is here a second time.")
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
        place = _place(error.problem_mark or error.context_mark)
        raise UserError(f"{place}: {problem}; put text that contains : {{ }} [ ] # & * or ! in quotes.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}, line {line}: a control character; remove it.") from None


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
