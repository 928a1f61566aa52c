"""Which column of a dataset holds the images, which the labels, and what its labels mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets

from hf_oodclip.errors import DataError, unknown_name

__all__ = ["check_labels", "describe_columns", "find_columns", "known_label_names", "number_labels"]

# For columns whose type leaves it open.
IMAGE_NAMES = re.compile(r"(image|img|picture|photo|file)s?(_?(bytes|path|name))?|jpe?g|png|webp|bytes|path")
LABEL_NAMES = re.compile(r"(fine_)?(label|class|category|target)(e?s)?(_(name|label))?|cls")


def find_columns(dataset: Any, image_column: str | None, label_column: str | None, title: str) -> tuple[Any, Any]:
    """Return the dataset with just `image`, undecoded, and `label` if it has labels, and their feature or None.

    Raises:
        DataError: No column, or several, can be meant; or the one given holds no images or labels.
        UnknownNameError: There is no column of the given name.
    """
    dataset = dataset.with_format(None)
    if dataset.features is None:
        first = next(iter(dataset), None)
        if first is None:
            raise DataError(f"{title} has no images.")
        dataset = dataset.cast(datasets.Dataset.from_list([first]).features)
    features = dataset.features
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [
        name for name, feature in features.items() if IMAGE_NAMES.fullmatch(name.lower()) and _may_be_image(feature)
    ]
    image = _choose("image", image_column, typed or named, features, title)
    if image is None:
        raise DataError(
            f"{title} has no column of images. Its columns: {describe_columns(features)}. Name one: image_column=."
        )
    if not _may_be_image(features[image]):
        raise DataError(f"Column {image!r} of {title} cannot hold images: it is {features[image]}.")
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [
        name for name, feature in features.items() if LABEL_NAMES.fullmatch(name.lower()) and _may_be_label(feature)
    ]
    label = None if label_column == "" else _choose("label", label_column, typed or named, features, title)
    if label is not None and not _may_be_label(features[label]):
        raise DataError(f"Column {label!r} of {title} cannot hold labels: it is {features[label]}.")
    if label == image:
        raise DataError(f"{title}: column {label!r} cannot hold both images and labels.")
    kept = {image: "image"} if label is None else {image: "image", label: "label"}
    # First of all, as what comes after would decode the images of a stream.
    dataset = dataset.cast_column(image, datasets.Image(decode=False)).select_columns(list(kept))
    if renamed := {old: new for old, new in kept.items() if old != new}:
        dataset = dataset.rename_columns(renamed)
    return dataset, None if label is None else features[label]


def describe_columns(features: Any) -> str:
    """Return the columns with their types, for messages."""
    kinds = {name: getattr(each, "dtype", "struct") for name, each in features.items()}
    return ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items()) or "none"


def _may_be_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        kinds = [getattr(feature.get(name), "dtype", "") for name in ("bytes", "path")]
        return all(kind.endswith(("string", "binary", "null")) for kind in kinds)
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "").endswith(("string", "binary"))


def _may_be_label(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
    )


def _choose(kind: str, given: str | None, candidates: list[str], columns: Any, title: str) -> str | None:
    if given is not None:
        if given not in columns:
            raise unknown_name(f"column of {title}", given, columns)
        return given
    if len(candidates) > 1:
        none = ' (or label_column="" for none)' if kind == "label" else ""
        raise DataError(f"{title} has several columns of {kind}s: {candidates}. Choose one with {kind}_column={none}.")
    return candidates[0] if candidates else None


def known_label_names(feature: Any, label_names: Sequence[str] | None, title: str) -> list[str] | None:
    """Return the class names as far as known before labels are read: None for text labels.

    Raises:
        DataError: The labels are bare numbers without names, or the names given do not fit.
    """
    if label_names is not None:
        if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names) or not label_names:
            raise DataError(f"label_names must be a list of class names, got {label_names!r}.")
        label_names = list(label_names)
    if isinstance(feature, datasets.ClassLabel):
        _check_count(feature.names, label_names, title)
        return label_names or [str(name) for name in feature.names]
    if "string" in feature.dtype:
        return None
    if label_names is None:
        raise DataError(
            f"The labels of {title} are numbers without names, which CLIP needs. Give label_names=, the name of "
            'each class in order, or label_column="" for no labels.'
        )
    return label_names


def _check_count(names: Sequence[str], given: Sequence[str] | None, title: str) -> None:
    if given is not None and len(given) != len(names):
        raise DataError(f"{title} has {len(names)} classes, but label_names holds {len(given)}.")


def number_labels(
    raw: Sequence[Any], known: list[str] | None, label_names: Sequence[str] | None, title: str
) -> tuple[list[int], list[str]]:
    """Return labels as indices into class names, -1 for those that cannot be used, and these names."""
    if known is not None:
        return [label if isinstance(label, int) and 0 <= label < len(known) else -1 for label in raw], known
    names = sorted({label for label in raw if label is not None})
    _check_count(names, label_names, title)
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers.get(label, -1) for label in raw], list(label_names or names)


def check_labels(raw: Sequence[Any], labels: Sequence[int], names: Sequence[str], title: str) -> None:
    """Say how many labels cannot be used, and which.

    Raises:
        DataError: A label is missing, or not in the range of the classes.
    """
    bad = [row for row, label in enumerate(labels) if label < 0]
    if bad:
        allowed = "texts" if any(isinstance(label, str) for label in raw) else f"0 to {len(names) - 1}"
        examples = ", ".join(f"{raw[row]} in row {row}" for row in bad[:5])
        raise DataError(
            f"{len(bad)} of {len(labels)} labels of {title} cannot be used: {examples}{', ...' if bad[5:] else ''}. "
            f'Labels must be {allowed}. Leave those rows out, or all labels: label_column="".'
        )
