"""Rebuild the small real image sets that ship inside the package: ID, near-OOD and three far-OOD sets.

Example:
    python evaluation/build_samples.py --data DATA
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from datasets import ClassLabel, Features, Image, Value
from hf_oodclip.training.pocket.lexicon import read_classes

TINY_IMAGENET = "tiny-imagenet-200-val.parquet"
# Image set -> source file and images wanted, spread evenly over the classes.
FAR_SETS: dict[str, tuple[str, int]] = {
    "far_textures": ("textures-dtd10-128px.parquet", 160),
    "far_clothing": ("clothing-64px-test.parquet", 160),
    "far_digits": ("digits-uci-32px.parquet", 160),
}
ID_CLASSES, CALIBRATION_IMAGES, TEST_IMAGES, NEAR_IMAGES = 20, 16, 24, 8
MAXIMUM_BYTES = 4_000_000
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "hf_oodclip" / "assets" / "images"

# Seen classes that can be no ID class, because an OOD image could truly show them. Chosen from class names
# and from looking at the OOD images, before any score was computed.
# fmt: off
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "worn on the body: the clothing set shows it or its like": (
        "academic gown", "apron", "backpack", "bikini", "bow tie", "cardigan", "Christmas stocking",
        "fur coat", "gasmask", "kimono", "military uniform", "miniskirt", "neck brace", "poncho", "snorkel",
        "sombrero", "sunglasses", "swimming trunks", "vestment"),
    "seen in a texture image (cobwebbed, bubbly, braided, crosshatched, bumpy)":
        ("beer bottle", "chain", "comic book", "coral reef", "lemon", "soda bottle", "spider web", "thatch"),
    "shows large digits": ("scoreboard",),
    "scenes, the background of many OOD images": ("cliff", "lakeside", "seashore", "snowy mountain"),
    "often in an image of the held-out class 'plate of food'":
        ("dining table", "guacamole", "mashed potato", "pizza", "pot pie", "pretzel"),
}
# fmt: on

README = """# Sample images

Small real image sets for demonstrations and tests. They are no benchmark: few images, small classes.

| file | role | images | classes | bytes | source |
| --- | --- | --- | --- | --- | --- |
{rows}

`datasets.load_dataset("parquet", data_files="id.parquet", split="train")` gives `image` (decodes to RGB),
`label` (just the classes that occur), `source` (source file and row) and, in `id.parquet` only, `split`:
{calibration} "calibration" and {test} "test" images of each class, none shared. Image bytes are the source's,
untouched. The pocket CLIP was trained on other images of the ID classes and on no image of the other classes.

**ID classes** (of the 170 seen in its training, drawn with seed 0, not by results): {id_names}.

**Near-OOD classes** (the 30 held out of its training): {near_names}.

Left out of the draw:
{left_out}

Sources, commits and terms are in `NOTICE`: Tiny-ImageNet and DTD are for research, not for commercial use.
Rebuild from parquet files of those sources (the same bytes with the same versions of pyarrow and datasets):

```
python evaluation/build_samples.py --data DATA
```

Which classes that training saw is in `training/pocket/classes.json`.
"""


@dataclass(frozen=True)
class Source:
    """A source parquet file with its rows and class names."""

    name: str
    table: pa.Table
    class_names: list[str]
    labels: list[int]

    @classmethod
    def read(cls, path: Path) -> "Source":
        """Return the file's rows; raise `typer.BadParameter` if it is not there."""
        if not path.is_file():
            raise typer.BadParameter(f"{path} does not exist. Give the folder of the source files as --data.")
        table = pq.read_table(path)
        names = Features.from_arrow_schema(table.schema)["label"].names
        return cls(path.name, table, names, table.column("label").to_pylist())

    def first_rows(self, quotas: dict[int, int]) -> list[int]:
        """Return, in file order, the first `quotas[label]` rows of every label."""
        taken: Counter[int] = Counter()
        rows: list[int] = []
        for row, label in enumerate(self.labels):
            if taken[label] < quotas.get(label, 0):
                taken[label] += 1
                rows.append(row)
        return rows

    def even_quotas(self, total: int) -> dict[int, int]:
        """Return the images to take of each label, `total` spread as evenly as the classes allow."""
        available = Counter(self.labels)
        quotas: Counter[int] = Counter()
        while quotas.total() < min(total, len(self.labels)):
            for label in sorted(available):
                if quotas[label] < available[label] and quotas.total() < total:
                    quotas[label] += 1
        return quotas


def draw_id_classes(names: list[str]) -> list[str]:
    """Return the ID classes: a draw with a fixed seed from the seen classes that no OOD image can show."""
    left_out = {name for group in LEFT_OUT.values() for name in group}
    if unknown := left_out.difference(names):  # a misspelt name would leave nothing out
        raise typer.BadParameter(f"{sorted(unknown)} are no seen classes of this split.", param_hint="--split")
    eligible = [name for name in names if name not in left_out]
    chosen = np.random.default_rng(0).choice(len(eligible), size=ID_CLASSES, replace=False)
    return [eligible[index] for index in sorted(chosen)]


def write_samples(path: Path, source: Source, rows: list[int], split: list[str] | None = None) -> list[str]:
    """Write the given rows as a 🤗 datasets image parquet file and return the class names in it."""
    names = [source.class_names[label] for label in sorted({source.labels[row] for row in rows})]
    # mode="RGB" converts the few grey JPEGs on decoding, so that their bytes can stay untouched.
    features = Features({"image": Image(mode="RGB"), "label": ClassLabel(names=names)})
    labels = [names.index(source.class_names[source.labels[row]]) for row in rows]
    columns: list[object] = [source.table.column("image").take(pa.array(rows)).to_pylist(), labels]
    if split is not None:
        features["split"] = Value("string")
        columns.append(split)
    features["source"] = Value("string")
    columns.append([f"{source.name}#{row}" for row in rows])
    schema = features.arrow_schema
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")
    return names


def main(
    data: Annotated[Path, typer.Option(help="Folder with the source parquet files.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = DEFAULT_OUTPUT,
    split: Annotated[Path | None, typer.Option(help="JSON like training/pocket/classes.json.")] = None,
) -> None:
    """Write the five image sets and their README."""
    classes = read_classes(split)
    tiny = Source.read(data / TINY_IMAGENET)
    label_of_id = dict(zip(tiny.table.column("wnid").to_pylist(), tiny.labels, strict=True))
    seen_labels = sorted(label_of_id[wordnet_id] for wordnet_id in classes.seen)
    output.mkdir(parents=True, exist_ok=True)

    id_names = draw_id_classes([tiny.class_names[label] for label in seen_labels])
    id_labels = [tiny.class_names.index(name) for name in id_names]
    calibration = tiny.first_rows(dict.fromkeys(id_labels, CALIBRATION_IMAGES))
    both = tiny.first_rows(dict.fromkeys(id_labels, CALIBRATION_IMAGES + TEST_IMAGES))
    test = sorted(set(both) - set(calibration))
    split_column = ["calibration"] * len(calibration) + ["test"] * len(test)
    near_labels = [label_of_id[wordnet_id] for wordnet_id in classes.held_out]
    near_rows = tiny.first_rows(dict.fromkeys(near_labels, NEAR_IMAGES))

    near_names = write_samples(output / "near_heldout.parquet", tiny, near_rows)
    write_samples(output / "id.parquet", tiny, calibration + test, split_column)
    table = [
        ("id", "ID", len(both), len(id_names), TINY_IMAGENET),
        ("near_heldout", "near-OOD", len(near_rows), len(near_names), TINY_IMAGENET),
    ]
    for name, (file_name, total) in FAR_SETS.items():
        source = Source.read(data / file_name)
        rows = source.first_rows(source.even_quotas(total))
        class_names = write_samples(output / f"{name}.parquet", source, rows)
        table.append((name, "far-OOD", len(rows), len(class_names), file_name))

    sizes = {name: (output / f"{name}.parquet").stat().st_size for name, *_ in table}
    if sum(sizes.values()) > MAXIMUM_BYTES:
        raise RuntimeError(f"The sets take {sum(sizes.values())} bytes of {MAXIMUM_BYTES}: take fewer images.")
    lines = [f"| `{n}.parquet` | {role} | {i} | {c} | {sizes[n]} | {file} |" for n, role, i, c, file in table]
    readme = README.format(
        rows="\n".join(lines),
        calibration=CALIBRATION_IMAGES,
        test=TEST_IMAGES,
        id_names=", ".join(id_names),
        near_names=", ".join(near_names),
        left_out="\n".join(f"- {reason}: {', '.join(names)}" for reason, names in LEFT_OUT.items()),
    )
    (output / "README.md").write_text(readme, encoding="utf-8")
    typer.echo("\n".join([*lines, f"total {sum(sizes.values())} bytes"]))


if __name__ == "__main__":
    typer.run(main)
