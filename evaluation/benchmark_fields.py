"""The YAML of a benchmark, checked field by field before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from hf_oodclip.training.recipe_values import read_yaml

from hf_oodclip.errors import unknown_name

from .benchmark_errors import BenchmarkError

__all__ = ["METRICS", "ROLES", "check_fields", "choose_variant", "parse_benchmark", "variants_of"]

ROLES = ("id", "near", "far", "shifted", "calibration")
METRICS = ("auroc", "fpr95_id_pos", "fpr95_ood_pos", "id_accuracy")

# Name of a field: what it holds. "any" is checked by whoever reads it; a trailing "!" says that it must be there.
_TOP = {
    "title": "text!",
    "description": "text",
    "variants": "texts",
    "labels": "any",
    "templates": "any",
    "sets": "mappings!",
    "published": "mappings",
}
_SET = {
    "name": "text!",
    "role": "text!",
    **dict.fromkeys(("source", "image_list", "image_root", "split", "revision", "config_name"), "text"),
    **dict.fromkeys(("image_column", "licence", "where", "per_class"), "text"),
    "label_column": "text or empty",
    "label_names": "any",
    "classes": "any",
    "parts": "texts",
    "limit": "count",
    "count": "count",
}
_PUBLISHED = {
    **dict.fromkeys(("score", "set", "metric", "method", "backbone", "source"), "text!"),
    "value": "percentage!",
    "adapter": "text",
}
FIELDS = {"benchmark": _TOP, "set": _SET, "published": _PUBLISHED}


def parse_benchmark(text: str, title: str) -> dict[str, Any]:
    """Return the fields of a YAML text.

    Raises:
        BenchmarkError: It is no YAML, no mapping, holds a field twice, or itself.
    """
    try:
        _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader), title, [])
        content = read_yaml(text)
    except BenchmarkError:
        raise
    except yaml.YAMLError as error:
        raise BenchmarkError(f"{title} is not YAML: {error}.") from error
    except (RecursionError, ValueError) as error:
        raise BenchmarkError(f"{title} cannot be read as YAML: {error}.") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{title}: a value does not fit its tag (!!). Leave tags out: {error}.") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise BenchmarkError(f"{title} must hold fields and values, got {found}.")
    return content


def _check_nodes(node: Any, title: str, above: list[Any]) -> None:
    """Refuse what YAML readers let pass: a key given twice, of which one is lost, and a value inside itself."""
    if any(node is each for each in above):
        raise BenchmarkError(f"{title} holds a value inside itself (an alias of what contains it). Write it out.")
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            line = node.start_mark.line + 1
            raise BenchmarkError(f"{title} gives {twice[0]!r} twice in the mapping that begins in line {line}.")
    if isinstance(node, yaml.CollectionNode):
        for each in node.value:
            for child in each if isinstance(each, tuple) else (each,):
                _check_nodes(child, title, [*above, node])


def variants_of(content: Mapping[str, Any], title: str) -> list[str]:
    """Return the variants a benchmark file declares; none means that it holds one benchmark."""
    variants = content.get("variants", [])
    if not isinstance(variants, list) or not all(isinstance(name, str) and name.strip() for name in variants):
        raise BenchmarkError(f"{title}: variants must be a list of names, got {variants!r:.200}.")
    if len(set(variants)) < len(variants):
        raise BenchmarkError(f"{title}: variants must differ, got {variants}.")
    return variants


def choose_variant(value: Any, variant: str | None, variants: Sequence[str], title: str) -> Any:
    """Return the value with each `by_variant: {a: x, b: y}` in it replaced by what it holds for one variant.

    An entry of a list that is null for this variant is left out.

    Raises:
        BenchmarkError: A `by_variant` does not give exactly the variants declared.
    """
    if isinstance(value, list):
        chosen = [choose_variant(each, variant, variants, title) for each in value]
        return [new for old, new in zip(value, chosen, strict=True) if new is not None or old is None]
    if not isinstance(value, dict):
        return value
    if "by_variant" not in value:
        return {key: choose_variant(each, variant, variants, title) for key, each in value.items()}
    options = value["by_variant"]
    if len(value) > 1 or not isinstance(options, dict) or set(options) != set(variants) or not variants:
        raise BenchmarkError(
            f"{title}: by_variant must stand alone and give a value for each of the variants {list(variants)}, "
            f"got {value!r:.200}."
        )
    return choose_variant(options[variant], variant, variants, title)


def check_fields(content: Any, kind: str, where: str) -> dict[str, Any]:
    """Return the fields of a benchmark, a set or a published figure, once each is known and of its type.

    A null counts as not given.

    Raises:
        UnknownNameError: There is no such field.
        BenchmarkError: A field is missing or of the wrong type.
    """
    fields = FIELDS[kind]
    if not isinstance(content, dict):
        raise BenchmarkError(f"{where} must hold fields and values, got {content!r:.200}.")
    for key in content:
        if key not in fields:
            raise unknown_name(f"field of {where}", key, fields)
    given = {key: value for key, value in content.items() if value is not None}
    for key, expected in fields.items():
        if key in given:
            _check_type(given[key], expected.rstrip("!"), f"{where}: {key}")
        elif expected.endswith("!"):
            raise BenchmarkError(f"{where} has no field {key!r}. It needs {_needed(fields)}.")
    return given


def _needed(fields: Mapping[str, str]) -> str:
    return ", ".join(key for key, expected in fields.items() if expected.endswith("!"))


def _check_type(value: Any, expected: str, where: str) -> None:
    is_text = isinstance(value, str) and (value.strip() != "" or expected == "text or empty")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    right, wanted = {
        "any": (True, ""),
        "text": (is_text, "a text; put quotes around a number"),
        "text or empty": (is_text, "a text"),
        "count": (type(value) is int and value > 0, "a positive whole number"),
        "percentage": (is_number and 0 <= value <= 100, "a number from 0 to 100, in percent"),
        "texts": (
            isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value),
            "a list of texts",
        ),
        "mappings": (isinstance(value, list) and bool(value), "a list of mappings"),
    }[expected]
    if not right:
        raise BenchmarkError(f"{where} must be {wanted}, got {value!r:.200}.")
