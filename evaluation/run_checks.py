"""Whether what a run left is what a run leaves: said before a report or a comparison is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_oodclip.errors import RunError

from .benchmark_fields import METRICS as PUBLISHED_METRICS
from .benchmark_fields import ROLES

__all__ = ["check_results", "check_samples", "check_together"]

_AGAIN = "It was changed or is not of this package's runner: run the benchmark again."
_SHARES = dict.fromkeys(("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos"), "share")
# What reports and comparisons rely on. A list holds one form for all its elements; a tuple, the values allowed.
_RESULTS: dict[str, Any] = {
    **dict.fromkeys(("benchmark", "title", "model"), "text"),
    "labels": ["text"],
    "sets": [{"name": "text", "role": ROLES, "status": ("ok", "missing", "failed")}],
    "accuracy": [{"set": "text", "role": ROLES, "value": "share", "count": "count"}],
    "detection": [{"score": "text", "set": "text", "role": (*ROLES, "all"), **_SHARES}],
    "calibration": [
        {"score": "text", "target_tpr": "share", "threshold": "number", "num_images": "count"}
        | {"tpr_interval": ["share"], "accepted": "mapping"}
    ],
    "published": [
        {**dict.fromkeys(("method", "backbone", "score", "set", "source"), "text"), "metric": PUBLISHED_METRICS}
        | {"published": "number", "ours": "number or null", "difference": "number or null"}
    ],
}
_COLUMNS = {
    **dict.fromkeys(("set", "role"), "texts"),
    **dict.fromkeys(("file", "nearest_negative"), "texts, some null"),
    **dict.fromkeys(("row", "label", "prediction"), "whole numbers"),
    "confidence": "numbers",
}


def check_results(results: Any) -> None:
    """Raise unless results hold what reports and comparisons read of them.

    Raises:
        RunError: A value is missing, of the wrong type or out of its range; the message names its place.
    """
    _check(results, _RESULTS, "results")
    names = [each["name"] for each in results["sets"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RunError(f"The results hold the set {twice[0]!r} twice. {_AGAIN}")


def _check(value: Any, form: Any, place: str) -> None:
    if isinstance(form, dict):
        _demand(isinstance(value, Mapping), place, "a mapping", value)
        for key, inner in form.items():
            if key not in value:
                raise RunError(f"{place} has no {key!r}. {_AGAIN}")
            _check(value[key], inner, f"{place}[{key!r}]")
    elif isinstance(form, list):
        _demand(isinstance(value, list), place, "a list", value)
        for number, inner in enumerate(value):
            _check(inner, form[0], f"{place}[{number}]")
    elif isinstance(form, tuple):
        _demand(value in form, place, f"one of {', '.join(form)}", value)
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        right = {
            "text": isinstance(value, str),
            "mapping": isinstance(value, Mapping),
            "number": is_number,
            "number or null": is_number or value is None,
            "share": is_number and 0 <= value <= 1,
            "count": type(value) is int and value >= 0,
        }[form]
        _demand(right, place, "a share from 0 to 1" if form == "share" else f"a {form}", value)


def _demand(right: bool, place: str, wanted: str, value: Any) -> None:
    if not right:
        raise RunError(f"{place} must be {wanted}, got {value!r:.100}. {_AGAIN}")


def check_samples(table: pa.Table) -> None:
    """Raise unless a table has the columns of samples, each of its type.

    Scores and p-values that are no finite numbers are found by `SampleTable`, with their image.

    Raises:
        RunError: A column is missing, there twice, of another type, or has values that cannot be.
    """
    for name in _COLUMNS:
        if name not in table.column_names:
            raise RunError(
                f"The samples have no column {name!r}, only {', '.join(table.column_names)}: "
                "write them with this version's runner."
            )
    if twice := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise RunError(f"The samples have two columns {twice[0]!r}. {_AGAIN}")
    for name in table.column_names:
        if name not in _COLUMNS and not name.startswith(("score:", "p_value:")):
            continue
        wanted, kind = _COLUMNS.get(name, "numbers"), _value_type(table[name].type)
        fits = {
            "texts": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "whole numbers": pa.types.is_integer(kind),
            "numbers": pa.types.is_floating(kind) or pa.types.is_integer(kind),
        }[wanted.partition(",")[0]]
        # A column of nothing but nulls has no other type.
        if not fits and not (wanted.endswith("null") and pa.types.is_null(kind)):
            raise RunError(f"Column {name!r} of the samples must hold {wanted}, got {table[name].type}. {_AGAIN}")
        if wanted in ("texts", "whole numbers") and table[name].null_count:
            where = pc.index(pc.is_null(table[name]), True).as_py()
            raise RunError(f"Column {name!r} of the samples is null in row {where}. {_AGAIN}")
    for name, low in (("row", 0), ("label", -1), ("prediction", 0)):
        if len(table) and (found := pc.min(table[name]).as_py()) < low:
            raise RunError(f"Column {name!r} of the samples must hold {low} or more, got {found}. {_AGAIN}")
    for name in table.column_names:
        if name == "confidence" or name.startswith("p_value:"):
            values = table[name].to_numpy()
            bad = ~((values >= 0) & (values <= 1.00001))
            if name != "confidence":  # SampleTable finds those with their image
                bad &= np.isfinite(values)
            if bad.any():
                raise RunError(f"Column {name!r} of the samples must hold 0 to 1, got {values[bad][0]}. {_AGAIN}")
    pairs = table.select(["set", "role"]).group_by(["set", "role"]).aggregate([]).to_pylist()
    roles = {pair["set"]: pair["role"] for pair in pairs}
    if unknown := [pair["role"] for pair in pairs if pair["role"] not in ROLES]:
        raise RunError(f"The samples have the role {unknown[0]!r}; there are {', '.join(ROLES)}. {_AGAIN}")
    if len(roles) < len(pairs):
        several = next(pair["set"] for pair in pairs if roles[pair["set"]] != pair["role"])
        raise RunError(f"Set {several!r} of the samples has several roles. {_AGAIN}")


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def check_together(results: Mapping[str, Any], table: pa.Table) -> None:
    """Raise unless results, checked before, and samples are those of one run.

    Raises:
        RunError: The samples are malformed, are not of the sets or as many as the results say, or hold a label or
            prediction that is of no class.
    """
    check_samples(table)
    one_run = "Give the results and samples of one run."
    pairs = pc.value_counts(table["set"].combine_chunks()).to_pylist()
    counts = {str(each["values"]): each["counts"] for each in pairs}
    for each in results["sets"]:
        if each["status"] == "ok" and each["name"] not in counts:
            raise RunError(
                f"Set {each['name']!r} is ok in the results but has no samples; the samples have "
                f"{', '.join(counts) or 'none'}. {one_run}"
            )
    for each in results["sets"]:
        there = counts.pop(each["name"], 0)
        if each["status"] != "ok" and there:
            raise RunError(f"Set {each['name']!r} is {each['status']} in the results, with {there} samples. {one_run}")
        if isinstance(each.get("count"), int) and there not in (0, each["count"]):
            raise RunError(f"Set {each['name']!r} has {each['count']} images, but {there} samples. {one_run}")
    if counts:
        raise RunError(f"The samples have the set {next(iter(counts))!r}, which the results do not name. {one_run}")
    for name in ("label", "prediction"):
        highest = int(np.max(table[name].to_numpy(), initial=-1))
        if highest >= len(results["labels"]):
            raise RunError(
                f"Column {name!r} of the samples holds {highest}, but there are {len(results['labels'])} labels, "
                f"numbered from 0. {one_run}"
            )
