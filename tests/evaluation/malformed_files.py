"""Parquet files and saved datasets that are wrong in one way each; see `malformed_tables` for the form of a case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from malformed_tables import NO_IMAGES, UNREADABLE, Case, Used, cells
from small_benchmarks import NAMES

Images = list[bytes]
MISSING, BROKEN = "does not exist or is empty", "cannot be loaded"
CLASSES = datasets.ClassLabel(names=list(NAMES))


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def good(images: Images) -> pa.Table:
    return pa.table({"image": cells(images[:4]), "label": NAMES})


def parquet_cases() -> list[Case]:
    """Parquet files that are broken as files, or hold other columns than one of images and one of labels."""
    cases = []

    def add(name: str, make: Callable[[Images], Any], as_id: Any, as_far: Any = None, **more: Any) -> None:
        """`make` returns the table, or the content of the file, or what to write by name."""

        def build(folder: Path, images: Images) -> None:
            made = make(images)
            for file, content in (made if isinstance(made, dict) else {"data.parquet": made}).items():
                if isinstance(content, pa.Table):
                    pq.write_table(content, folder / file)
                elif content is not None:
                    write(folder / file, content)

        cases.append(Case(f"parquet: {name}", build, as_id, as_id if as_far is None else as_far, **more))

    def file_of(images: Images) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(good(images), sink)
        return sink.getvalue().to_pybytes()

    whole = "no whole parquet file"
    add("no file", lambda images: None, MISSING)
    add("0 bytes", lambda images: b"", whole)
    add("magic number alone", lambda images: b"PAR1", whole)
    add("both magic numbers alone", lambda images: b"PAR1PAR1", whole)
    add("magic numbers around nothing", lambda images: b"PAR1" + b"\0" * 40 + b"PAR1", whole)
    add("text", lambda images: b"image,label\na.jpg,0\n", whole)
    add("JSON", lambda images: b'{"image": 1}', whole)
    add("an image", lambda images: images[0], whole)
    add("first half", lambda images: file_of(images)[: len(file_of(images)) // 2], whole)
    add("last half", lambda images: file_of(images)[len(file_of(images)) // 2 :], BROKEN)
    add("without its end", lambda images: file_of(images)[:-1], whole)
    add("damaged pages", lambda images: file_of(images)[:4] + b"\xff" * 3000 + file_of(images)[3004:], BROKEN)
    add("damaged directory", lambda images: file_of(images)[:-60] + b"\xff" * 50 + file_of(images)[-10:], whole)
    add("directory said to be huge", lambda images: file_of(images)[:-8] + b"\xff\xff\xff\x7fPAR1", whole)
    add("a folder of that name with text", lambda images: {"data.parquet/a.txt": b"a"}, NO_IMAGES)
    add("another ending", lambda images: {"data.bin": file_of(images)}, "no parquet file", source="data.bin")
    add("a table of text", lambda images: {"data.csv": b"a,b\n"}, "no parquet file", source="data.csv")
    add("a pattern without matches", lambda images: None, MISSING, source="no*.parquet")
    add("half a pattern", lambda images: None, MISSING, source="[.parquet")
    add(
        "one of two broken",
        lambda images: {"a.parquet": good(images), "b.parquet": b"PAR1"},
        r"b.parquet.*no whole parquet",
        source="*.parquet",
    )
    renamed = {"a.parquet": good, "b.parquet": lambda images: pa.table({"img": cells(images[:4])})}
    add(
        "two of other columns",
        lambda images: {file: make(images) for file, make in renamed.items()},
        BROKEN,
        source="*.parquet",
    )
    numbered = {"a.parquet": good, "b.parquet": lambda images: labelled([0, 1, 2, 3])(images)}
    add(
        "two of other labels",
        lambda images: {file: make(images) for file, make in numbered.items()},
        Used(4, (), "4 of 8 images are left out"),
        Used(8),
        source="*.parquet",
    )

    def labelled(column: Any) -> Callable[[Images], pa.Table]:
        return lambda images: pa.table({"image": cells(images[:4]), "label": column})

    def holding(column: Callable[[Images], pa.Array]) -> Callable[[Images], pa.Table]:
        return lambda images: pa.table({"image": column(images[:4]), "label": NAMES})

    def described(features: str) -> Callable[[Images], pa.Table]:
        return lambda images: good(images).replace_schema_metadata({"huggingface": features})

    def features(**columns: Any) -> str:
        return json.dumps({"info": {"features": columns}})

    def two_columns(images: Images) -> pa.Table:
        return pa.table({"image": cells(images[:4]), "img": cells(images[:4]), "label": NAMES, "class": NAMES})

    def twice(images: Images) -> pa.Table:
        return pa.Table.from_arrays(
            [cells(images[:4]), cells(images[:4]), pa.array(NAMES)], ["image", "image", "label"]
        )

    chosen = {"image_column": "img", "label_column": "class"}
    integers, hologram = {"dtype": "int64", "_type": "Value"}, {"_type": "Hologram"}
    add("no rows", lambda images: good(images).slice(0, 0), "a table without rows")
    add("no columns", lambda images: pa.table({}), "a table without rows")
    add("labels alone", lambda images: pa.table({"label": NAMES}), NO_IMAGES)
    add("images alone", lambda images: pa.table({"image": cells(images[:4])}), "has no labels, and needs them", Used())
    add("images called otherwise", lambda images: good(images).rename_columns(["pixels", "label"]), NO_IMAGES)
    add("two columns of images", two_columns, r"several columns of images: \['image', 'img'\]")
    add(
        "two, one chosen",
        two_columns,
        r"several columns of labels: \['label', 'class'\]",
        Used(),
        options={"image_column": "img"},
    )
    add("two, both chosen", two_columns, Used(), options=chosen)
    add("a column of images that is not there", good, "Unknown column.*'picture'", options={"image_column": "picture"})
    add(
        "a column of labels that is not there",
        good,
        "Unknown column.*'kind'",
        Used(),
        options={"label_column": "kind"},
    )
    add(
        "labels for both",
        good,
        "cannot hold both",
        UNREADABLE,
        options={"image_column": "label", "label_column": "label"},
    )
    add("images for labels", good, "cannot hold labels", Used(), options={"label_column": "image"})
    add("a column twice", twice, BROKEN)
    add("a split that is not there", good, "Unknown split.*'test'", options={"split": "test"})
    add("a split that cannot be", good, r"cannot be loaded .*train\[:", options={"split": "train[:"})
    add("a split beyond its end", good, Used(), options={"split": "train[:9]"})
    add("an empty split", good, "no data|no images", options={"split": "train[2:2]"})
    add(
        "label names that are too few",
        labelled([0, 1, 2, 3]),
        "3 in row 3",
        Used(),
        options={"label_names": list(NAMES[:3])},
    )
    add("a configuration it has not", good, Used(), options={"config_name": "plain"})
    add("bytes alone", holding(pa.array), Used())
    add("large bytes", holding(lambda images: pa.array(images, pa.large_binary())), Used())
    add("bytes by number", holding(lambda images: pa.array(images).dictionary_encode()), Used())
    add("bytes as a view", holding(lambda images: pa.array(images, pa.binary_view())), NO_IMAGES)
    add("names by number", labelled(pa.array(NAMES).dictionary_encode()), Used())
    add("large names", labelled(pa.array(NAMES, pa.large_string())), Used())
    add("names as a view", labelled(pa.array(NAMES, pa.string_view())), Used())
    add("features that are no JSON", described("{"), BROKEN)
    add("features of other columns", described(features(a={"_type": "Image"})), Used())
    add("features of other types", described(features(image=integers, label=integers)), Used())
    add("features unknown", described(features(image=hologram, label=integers)), r"cannot be loaded .*Hologram")
    return cases


def saved_cases() -> list[Case]:
    """Folders of `save_to_disk` that something happened to."""
    cases = []

    def add(
        name: str, damage: Callable[[Path], Any], as_id: Any, as_far: Any = None, splits: Any = None, **options: Any
    ) -> None:
        def build(folder: Path, images: Images) -> None:
            rows = {"image": [{"bytes": each, "path": None} for each in images[:4]], "label": [0, 1, 2, 3]}
            features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
            made: Any = datasets.Dataset.from_dict(rows, features=features)
            if splits:
                made = datasets.DatasetDict({key: made.select(range(count)) for key, count in splits.items()})
            made.save_to_disk(folder / "data")
            damage(folder / "data")

        far = as_id if as_far is None else as_far
        cases.append(Case(f"saved: {name}", build, as_id, far, source="data", options=options))

    def edited(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            content = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(change(content)))

        return apply

    def state(**changed: Any) -> Callable[[Path], None]:
        return edited("state.json", lambda content: {**content, **changed})

    def features(**changed: Any) -> Callable[[Path], None]:
        return edited("dataset_info.json", lambda content: {**content, "features": {**content["features"], **changed}})

    def nothing(folder: Path) -> None:
        pass

    arrow, two = "data-00000-of-00001.arrow", {"test": 4, "more": 4}
    add("nothing wrong", nothing, Used())
    # What the state says can be done without.
    add("state.json gone", lambda folder: (folder / "state.json").unlink(), Used())
    for file in ("dataset_info.json", arrow):
        add(f"{file} gone", lambda folder, file=file: (folder / file).unlink(), BROKEN)
    for file in ("state.json", "dataset_info.json", arrow):
        for what, content in {"empty": b"", "no text": b"\xff\xfe\0", "a list": b"[]", "half": b'{"a": '}.items():
            add(f"{file} {what}", lambda folder, file=file, content=content: write(folder / file, content), BROKEN)
    add("images cut off", lambda folder: write(folder / arrow, (folder / arrow).read_bytes()[:4000]), BROKEN)
    for key in ("_data_files", "_fingerprint", "_format_type", "_split", "_format_columns"):
        without = edited("state.json", lambda content, key=key: {k: v for k, v in content.items() if k != key})
        add(f"state without {key}", without, f"cannot be loaded .*{key}.*write it again")
    add("state of no files", state(_data_files=[]), BROKEN)
    add("state of other files", state(_data_files=[{"filename": "../a"}]), BROKEN)
    add("state of numbers", state(_data_files=3), BROKEN)
    add("an unknown format", state(_format_type="sculpture"), "cannot be loaded .*sculpture")
    add("columns of a format that are not there", state(_format_columns=["a"]), r"cannot be loaded .*\['a'\]")
    add("features unknown", features(image={"_type": "Hologram"}), "cannot be loaded .*Hologram")
    add("features of other columns", features(more={"dtype": "int64", "_type": "Value"}), BROKEN)
    add("features of other types", features(image={"dtype": "int64", "_type": "Value"}), BROKEN)
    add("features without types", features(image={}), BROKEN)
    add("features left out", edited("dataset_info.json", lambda content: {**content, "features": None}), Used())
    for what, names, message in (
        ("too few", ["acorn"], "3 of 4 labels .* cannot be used: 1 in row 1"),
        ("other", ["a", "b", "c", "d"], "has no class 'acorn'"),
        ("numbers as", [1, 2, 3, 4], "has no class 'acorn'"),
    ):
        add(f"{what} names", features(label={"names": names, "_type": "ClassLabel"}), message, Used())
    add(
        "names twice", features(label={"names": ["acorn"] * 4, "_type": "ClassLabel"}), "cannot be loaded .*duplicated"
    )
    add("splits, none chosen", nothing, "several splits .*'test', 'more'", splits=two)
    add("splits, a wrong one", nothing, "Unknown split .*Allowed: more, test", splits=two, split="train")
    add("splits, one chosen", nothing, Used(), splits=two, split="more")
    # Datasets writes an empty split, but cannot read it.
    add("splits, one empty", nothing, "a split of it is empty", splits={"test": 4, "none": 0}, split="test")
    add("splits, one gone", lambda folder: shutil.rmtree(folder / "more"), BROKEN, splits=two, split="test")
    for listed in ({"splits": 3}, {}, [], 3, {"splits": ["test", "other"]}):
        changed = edited("dataset_dict.json", lambda content, listed=listed: listed)
        add(f"splits listed as {listed}", changed, BROKEN, splits=two, split="test")
    none = edited("dataset_dict.json", lambda content: {"splits": []})
    add("splits of nothing", none, "has no splits", splits=two, split="test")
    add("one dataset, a split asked", nothing, "without splits", split="test")
    return cases
