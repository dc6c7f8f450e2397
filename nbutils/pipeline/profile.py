"""Reading a profile: one flat YAML mapping, every value read as it looks, or refused with its line and column.

YAML 1.1 (PyYAML, and so papermill) reads `1e-5` as text, `yes` as true, `010` as eight, `1:30` as ninety and
`2024-01-01` as a date. Here plain values follow the YAML 1.2 core schema (yaml.org/spec/1.2.2, chapter 10.3), and what
the two versions would read as different numbers is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nbutils.core.errors import UserError
from nbutils.core.files import shown

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_OTHER_BASE = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+|0[ob][0-7]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Given:
    """One value that a person gave, and the place where it stands."""

    value: Any
    where: str


def read_profile(path: Path) -> dict[str, Given]:
    """The values of a profile by name. UserError with line and column for anything that could be misread."""
    name = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no profile {name}; profiles lie in params/.{_others(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder; give a profile, a YAML file.{_others(path / 'x')}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); give a profile, a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, byte {error.start + 1}: not UTF-8 text; save the profile as UTF-8.") from None
    root = _compose(text, name)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise _refused(name, root, f"{kind} where 'name: value' lines are expected; write one parameter a line")
    return _pairs(root, name)


def read_override(text: str) -> tuple[str, Given]:
    """Name and value of a `-p NAME=VALUE`; the value is YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise UserError(f"-p {text!r} is not NAME=VALUE; write for example -p learning_rate=1e-3.")
    source = f"-p {name.strip()}"
    node = _compose(value, source)
    if node is None:
        raise UserError(f"{source} has no value; write '' for an empty text.")
    return name.strip(), Given(_value(node, source, top=True), source)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise _refused(name, token, "'*' repeats an anchored value, which is not supported; write it out")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or error.context or "not YAML").strip()
        if "'\\t'" in problem:
            problem = "a tab; indent and separate with spaces"
        elif "expected a single document" in (error.context or ""):
            problem = "a second document begins; a profile is one"
        else:
            problem += "; put text that contains : { } [ ] # & * or ! in quotes"
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{place}: {problem}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise UserError(f"{name}, line {line}, column {column}: a control character; remove it.") from None


def _pairs(node: yaml.MappingNode, name: str) -> dict[str, Given]:
    found: dict[str, Given] = {}
    for key, value in node.value:
        parameter = _key(key, name)
        if not parameter.isidentifier():
            raise _refused(name, key, f"'{parameter}' cannot be a parameter's name")
        if parameter in found:
            raise _refused(name, key, f"'{parameter}' stands here a second time (first {found[parameter].where})")
        found[parameter] = Given(_value(value, name, top=True), _place(name, value))
    return found


def _key(node: yaml.Node, name: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _refused(name, node, "a name is expected before the colon; put a path with braces in quotes")
    if node.tag == _TAG + "merge":
        raise _refused(name, node, "'<<' is not supported; write every parameter out")
    return str(node.value)


def _value(node: yaml.Node, name: str, top: bool = False) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, name) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            word = _key(key, name)
            if word in found:
                raise _refused(name, key, f"'{word}' stands here a second time")
            found[word] = _value(value, name)
        return found
    assert isinstance(node, yaml.ScalarNode)
    value = _scalar(node, name)
    if value is None and top:
        raise _refused(name, node, "no value; remove the line to take the notebook's default")
    return value


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    text: str = node.value
    quoted = node.style is not None
    if quoted and node.tag in (_TAG + "str", "!"):
        return text
    mark = node.start_mark
    if mark.buffer is not None and mark.buffer[mark.pointer] == "!":  # a tag written out: `!!str 08`
        if node.tag == _TAG + "str":
            return text
        raise _refused(name, node, f"the tag {node.tag.replace(_TAG, '!!')} is not supported; remove it")
    return _plain(text, node, name)


def _plain(text: str, node: yaml.ScalarNode, name: str) -> Any:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _LEADING_ZERO.fullmatch(text):
        raise _refused(
            name, node, f"{text} begins with a zero, which some read as octal; write it without, or in quotes"
        )
    if _SEXAGESIMAL.fullmatch(text):
        raise _refused(name, node, f"{text} is a number to base 60 in YAML; write a plain number, or put it in quotes")
    if _NOT_FINITE.fullmatch(text):
        raise _refused(name, node, f"{text} is no finite number; write one, or put the text in quotes")
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if _OTHER_BASE.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if math.isinf(number):
            raise _refused(
                name, node, f"{text} is larger than any number here; write a smaller one, or put it in quotes"
            )
        return number
    return text


def _place(name: str, node: yaml.Node | yaml.Token) -> str:
    return f"{name}, line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _refused(name: str, node: yaml.Node | yaml.Token, problem: str) -> UserError:
    return UserError(f"{_place(name, node)}: {problem}.")


def _others(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("params")
    names = sorted(file.name for file in folder.glob("*.y*ml")) if folder.is_dir() else []
    return f" There are: {', '.join(names)}." if names else ""
