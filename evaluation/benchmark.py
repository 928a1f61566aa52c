"""Benchmarks: which images are in distribution, which are not, and what others have measured on them.

Each is a YAML file in `evaluation/benchmarks`, found by its name: to add one, add a file. `benchmarks/README.md`
describes the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_oodclip.training.data_sources import source_and_split

from hf_oodclip.errors import unknown_name
from hf_oodclip.scores import list_scores
from hf_oodclip.templates import resolve_templates

from .benchmark_errors import BenchmarkError, MissingSet
from .benchmark_fields import METRICS, ROLES, check_fields, choose_variant, parse_benchmark, variants_of
from .benchmark_specs import Benchmark, Published, SetSpec
from .class_lists import ClassList, read_class_file, resolve_classes
from .image_sets import class_slice, open_set

__all__ = [
    "Benchmark",
    "BenchmarkError",
    "MissingSet",
    "Published",
    "SetSpec",
    "benchmark_from_sources",
    "list_benchmarks",
    "load_benchmark",
    "open_set",
]

MEANS = ("near", "far", "all")


def _files() -> list[Path]:
    return sorted(Path(str(files("hf_oodclip.evaluation") / "benchmarks")).glob("*.yaml"))


def _names_in(path: Path) -> dict[str, str | None]:
    """Return the variant behind the full name of each benchmark of a file, None if it has no variants."""
    variants = variants_of(parse_benchmark(path.read_text(encoding="utf-8"), path.name), path.name)
    return {f"{path.stem}-{each}": each for each in variants} or {path.stem: None}


def _find(name: str) -> tuple[Path, str | None]:
    """Return the file of a shipped benchmark, and its variant if the name says one."""
    for path in _files():
        if name == path.stem:
            return path, None
        if name.startswith(f"{path.stem}-") and name in (names := _names_in(path)):
            return path, names[name]
    raise unknown_name("benchmark", name, list_benchmarks(), "Or give the path of a YAML file.")


def list_benchmarks() -> list[str]:
    """Return the names that `load_benchmark` and `--benchmark` accept.

    Example:
        >>> "imagenet1k-four" in list_benchmarks()
        True
    """
    return sorted(name for path in _files() for name in _names_in(path))


def load_benchmark(
    name_or_path: str | Path, root: Path | None = None, *, variant: str | None = None, seed: int | None = None
) -> Benchmark:
    """Return a benchmark by name, or from a YAML file of your own.

    Args:
        name_or_path: A name from `list_benchmarks()`; one without its variant takes the first; or a YAML file.
        root: Where else to look for files of classes, after those shipped and the YAML file's folder.
        variant: Which variant of a file that has several.
        seed: Replaces the seed with which classes are drawn, where they are.

    Raises:
        UnknownNameError: No such benchmark, field, role, metric, score, template or class list.
        BenchmarkError: The file is malformed.
        TemplateError: A template cannot be used.

    Example:
        >>> benchmark = load_benchmark("hard-pairs-imagenet10")
        >>> len(benchmark.labels), [each.name for each in benchmark.ood_sets]
        (10, ['imagenet20', 'imagenet100'])
    """
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise BenchmarkError(f"seed must be a whole number from 0, got {seed!r:.200}.")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        path, named = _find(str(name_or_path))
        if variant is not None and named not in (None, variant):
            raise BenchmarkError(f"{name_or_path} is its variant {named!r}, got variant={variant!r}. Leave that out.")
        variant = named or variant
    content = parse_benchmark(path.read_text(encoding="utf-8", errors="replace"), path.name)
    variants = variants_of(content, path.name)
    if variant is not None and variant not in variants:
        raise unknown_name(f"variant of {path.name}", variant, variants)
    variant = variant or (variants[0] if variants else None)
    chosen = choose_variant(content, variant, variants, path.name)
    folders = [path.parent, *([Path(root)] if root else [])]
    return _build(chosen, f"{path.stem}-{variant}" if variant else path.stem, folders, seed)


def _build(content: dict[str, Any], name: str, folders: list[Path], seed: int | None) -> Benchmark:
    where = f"benchmark {name!r}"
    fields = check_fields(content, "benchmark", where)
    labels = fields.get("labels", "id")
    classes = None if labels == "id" else resolve_classes(labels, f"{where}, labels", folders, seed)
    if (templates := fields.get("templates")) is not None:
        if not isinstance(templates, str | list):
            raise BenchmarkError(f"{where}: templates must be a name, a template or a list, got {templates!r:.200}.")
        resolve_templates(templates)
    sets = tuple(
        _set_spec(each, number, where, classes, folders, seed) for number, each in enumerate(fields["sets"], 1)
    )
    _check_sets(sets, where)
    published = tuple(
        _published(each, f"{where}, published figure {number}", [spec.name for spec in sets])
        for number, each in enumerate(fields.get("published", []), 1)
    )
    names = list(classes.names) if classes else None
    return Benchmark(name, fields["title"], fields.get("description", ""), names, templates, sets, published)


def _set_spec(
    content: Any, number: int, where: str, labels: ClassList | None, folders: list[Path], seed: int | None
) -> SetSpec:
    name = content.get("name") if isinstance(content, dict) else None
    where = f"{where}, set {name if isinstance(name, str) else number!r}"
    fields = check_fields(content, "set", where)
    if fields["role"] not in ROLES:
        raise unknown_name(f"role of {where}", fields["role"], ROLES)
    if ("source" in fields) == ("image_list" in fields):
        given = "both" if "source" in fields else "neither"
        raise BenchmarkError(f"{where} needs one of source and image_list, got {given}.")
    other = "source" if "image_list" in fields else "image_list"
    needs_source = ("split", "revision", "config_name", "image_column", "label_column", "parts")
    for key in ("image_root",) if other == "image_list" else needs_source:
        if key in fields:
            raise BenchmarkError(f"{where}: {key} goes with {other}, which this set has not. Leave it out.")
    if "per_class" in fields:
        class_slice(fields["per_class"], where)
    for key in ("label_names", "classes"):
        if key in fields:
            fields[key] = list(resolve_classes(fields[key], f"{where}, {key}", folders, seed).ids)
    known = labels.ids if labels is not None and fields["role"] in ("id", "shifted", "calibration") else None
    if known is not None and (outside := [each for each in fields.get("classes", []) if each not in known]):
        raise BenchmarkError(f"{where}: {len(outside)} of its classes are no labels, such as {outside[0]!r}.")
    fields["parts"] = tuple(fields.get("parts", ()))
    return SetSpec(**fields, label_ids=list(labels.ids) if labels else None)


def _check_sets(sets: tuple[SetSpec, ...], where: str) -> None:
    names = [each.name for each in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BenchmarkError(f"{where} has several sets named {twice[0]!r}. Give each a name of its own.")
    if taken := [name for name in names if name in MEANS or name.startswith("mean of ")]:
        raise BenchmarkError(f"{where}: a set cannot be named {taken[0]!r}, which stands for a mean over sets.")
    roles = [each.role for each in sets]
    if roles.count("id") != 1:
        raise BenchmarkError(f"{where} needs exactly one set with role: id, got {roles.count('id')}.")
    if roles.count("calibration") > 1:
        raise BenchmarkError(f"{where} can have one set with role: calibration, got {roles.count('calibration')}.")
    if not {"near", "far", "shifted"} & set(roles):
        raise BenchmarkError(
            f"{where} has nothing to compare the ID set with. Add a set with role: near, far or shifted."
        )


def _published(content: Any, where: str, set_names: list[str]) -> Published:
    fields = check_fields(content, "published", where)
    if fields["metric"] not in METRICS:
        raise unknown_name(f"metric of {where}", fields["metric"], METRICS)
    if fields["set"] not in (*set_names, *MEANS):
        raise unknown_name(f"set of {where}", fields["set"], (*set_names, *MEANS))
    if "adapter" not in fields and fields["score"].partition("(")[0] not in list_scores():
        raise unknown_name(f"score of {where}", fields["score"], list_scores(), "Say what was trained: adapter:.")
    return Published(**{**fields, "value": float(fields["value"])})


def benchmark_from_sources(
    id_source: str,
    ood_sources: Sequence[str],
    labels_from: str | Path = "id",
    *,
    shifted_sources: Sequence[str] = (),
    calibration_source: str | None = None,
    templates: str | list[str] | None = None,
    limit: int | None = None,
    name: str = "custom",
) -> Benchmark:
    """Return the benchmark of your own images.

    Args:
        id_source: The ID images, labelled: a folder, a parquet file, a folder written by `save_to_disk`, or what
            is none of these, a dataset id on the Hub. `source#split` names a split.
        ood_sources: The OOD images; they need no labels.
        labels_from: `id` takes the class names of the ID images; else a file of classes, one a line.
        shifted_sources: ID classes in another style, labelled.
        calibration_source: ID images to calibrate on, others than those of `id_source`.
        templates: Prompt templates.
        limit: At most so many images of each set, drawn at random.
        name: Its name.

    Raises:
        BenchmarkError: No OOD or shifted images, or a class list that cannot be read.

    Example:
        >>> benchmark = benchmark_from_sources("embedded#test", ["embedded:far_digits", "embedded:far_textures"])
        >>> [(each.name, each.role) for each in benchmark.sets]
        [('embedded#test', 'id'), ('embedded:far_digits', 'far'), ('embedded:far_textures', 'far')]
    """
    labels = None if str(labels_from) == "id" else read_class_file(Path(labels_from))
    wanted = [
        ("id", id_source),
        *(("far", each) for each in ood_sources),
        *(("shifted", each) for each in shifted_sources),
    ]
    wanted += [("calibration", calibration_source)] if calibration_source else []
    sets = tuple(_spec_of(role, source, limit, labels) for role, source in wanted)
    _check_sets(sets, f"benchmark {name!r}")
    if templates is not None:
        resolve_templates(templates)
    title = f"{id_source} against {len(ood_sources)} OOD sets"
    return Benchmark(name, title, "", list(labels.names) if labels else None, templates, sets)


def _spec_of(role: str, source: str, limit: int | None, labels: ClassList | None) -> SetSpec:
    if not isinstance(source, str) or not source.strip():
        raise BenchmarkError(f"A source of images must be a non-empty string, got {source!r:.200}.")
    path, split = source_and_split(source)
    embedded = path.partition(":")[0] == "embedded"
    try:
        local = not embedded and ("*" in path or Path(path).expanduser().exists())
        place = str(Path(path).expanduser().absolute()) if local else path
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(f"A source of images cannot be {source!r:.200}: {error!s:.100}.") from error
    return SetSpec(
        f"{source}/" if source in MEANS else source,
        role,
        place,
        split=split,
        revision=None if local or embedded else "main",
        limit=limit,
        label_ids=list(labels.ids) if labels else None,
    )
