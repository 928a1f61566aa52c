"""What a benchmark is made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Benchmark", "Published", "SetSpec"]


@dataclass(frozen=True)
class SetSpec:
    """Images of one kind: where they are, what they show, how many there should be.

    Args:
        name: What tables call it.
        role: `id`, `near` and `far` (OOD), `shifted` (ID classes in another style) or `calibration` (further ID).
        source: Folder, parquet file or dataset saved to disk, below the root; `embedded`, `embedded:<name>`; or,
            with a `revision`, a dataset id on the Hub.
        image_list: Instead of it an OpenOOD list of images, lines "path label".
        image_root: What the paths in that list begin from, below the root.
        parts: Sub-folders of the source that are put together.
        split: Split of the source. `config_name`, `image_column` and `label_column`: as in `load_image_set`.
        revision: Branch, tag or commit on the Hub.
        label_names: The class of each label number of the data, by id; None if the data have names, or number the
            benchmark's own labels.
        classes: The classes taken, by id (of a class without an id: its name); None takes all. Images of a part of
            the ID classes are still scored against all labels.
        per_class: Slice `start:stop` of the images of each class, in a random order that is always the same.
        limit: At most so many images, drawn likewise.
        count: How many images there should be.
        licence: Terms of use.
        where: What to fetch, and how to lay it out.
        label_ids: The ids of the benchmark's labels, in their order; None where labels come from the ID images.
    """

    name: str
    role: str
    source: str | None = None
    image_list: str | None = None
    image_root: str | None = None
    parts: tuple[str, ...] = ()
    split: str | None = None
    revision: str | None = None
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_names: list[str] | None = None
    classes: list[str] | None = None
    per_class: str | None = None
    limit: int | None = None
    count: int | None = None
    licence: str = ""
    where: str = ""
    label_ids: list[str] | None = None


@dataclass(frozen=True)
class Published:
    """A figure somebody printed.

    Args:
        score: Name of the score.
        set: Name of the set, or `near`, `far` or `all` for the mean over those.
        metric: One of `METRICS`.
        value: In percent.
        method: What its authors call it.
        backbone: The CLIP it was measured with.
        source: Where it is printed.
        adapter: What was trained for it; empty if nothing was, so that zero-shot results can be held against it.
    """

    score: str
    set: str
    metric: str
    value: float
    method: str
    backbone: str
    source: str
    adapter: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One ID set, and the sets it is told from.

    Args:
        name: Name, with its variant if the file has several.
        title: One line for people.
        description: What it is, and what to know before comparing.
        labels: Names of the ID classes; None takes those of the ID images.
        templates: Prompt templates; None leaves them to the model.
        sets: All image sets.
        published: Figures of others.

    Example:
        >>> from hf_oodclip.evaluation.benchmark import load_benchmark
        >>> benchmark = load_benchmark("pocket")
        >>> benchmark.id_set.count, [each.name for each in benchmark.ood_sets]
        (480, ['held-out classes', 'textures', 'clothing', 'digits'])
    """

    name: str
    title: str
    description: str
    labels: list[str] | None
    templates: str | list[str] | None
    sets: tuple[SetSpec, ...]
    published: tuple[Published, ...] = ()

    @property
    def id_set(self) -> SetSpec:
        """The images that are in distribution."""
        return next(each for each in self.sets if each.role == "id")

    @property
    def ood_sets(self) -> tuple[SetSpec, ...]:
        """The near and far OOD sets."""
        return tuple(each for each in self.sets if each.role in ("near", "far"))

    @property
    def shifted_sets(self) -> tuple[SetSpec, ...]:
        """Sets of the ID classes in other styles."""
        return tuple(each for each in self.sets if each.role == "shifted")

    @property
    def calibration_set(self) -> SetSpec | None:
        """ID images to calibrate on, if there are any."""
        return next((each for each in self.sets if each.role == "calibration"), None)
