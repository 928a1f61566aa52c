"""Values of a recipe as its file, the command line and Python write them: YAML without its surprises."""

from __future__ import annotations

import math
import re
import types
import typing
from typing import Any

import yaml

from hf_oodclip.errors import RecipeError

__all__ = ["coerce", "read_value", "read_yaml", "write_yaml"]

_PATTERNS = {
    "null": r"~|null|Null|NULL|none|None|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    # Not PyYAML's own: it reads 1e-4 as a text, `no` as false and 1:30 as 90.
    yaml_implicit_resolvers: typing.ClassVar[dict[Any, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either this module or PyYAML's own rules would take for something other than a text."""


for _tag, _pattern in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds; numbers such as 1e-4 are numbers, `none` is None, `no` is a text.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(content: Any) -> str:
    """Return the text that `read_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_value(text: str) -> Any:
    """Return the value a text on the command line stands for, the text itself where it is no YAML.

    Example:
        >>> read_value("1e-4"), read_value("{} in the wild"), read_value("[a, b]"), read_value("none")
        (0.0001, '{} in the wild', ['a', 'b'], None)
    """
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Return the value of a field as its type has it, such as 1.0 for 1 and a list for a text with commas.

    Raises:
        RecipeError: It cannot be of that type.
    """
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(typing.get_origin(each) or each for each in allowed)
    if isinstance(value, str) and str not in plain:
        read = read_value(value)
        is_listing = isinstance(read, str) and list in plain
        value = [part.strip() for part in value.split(",") if part.strip()] if is_listing else read
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and float in plain:
        return float(value)
    if is_number and int in plain and value == int(value):
        return int(value)
    if is_number and str in plain:
        return str(value)
    if isinstance(value, list) and list in plain:
        return [coerce(f"An element of {name}", each, str) for each in value]
    # A bool is an int to Python; numbers have been dealt with.
    if isinstance(value, plain) and (bool in plain or not isinstance(value, bool | float)):
        return value
    names = " or ".join("none" if each is types.NoneType else each.__name__ for each in plain)
    raise RecipeError(f"{name} must be {names}, got {value!r}.")
