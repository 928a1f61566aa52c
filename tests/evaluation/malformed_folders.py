"""Folders and lists of images that are wrong in one way each; see `malformed_tables` for the form of a case."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malformed_files import BROKEN, MISSING, Images, write
from malformed_tables import NO_IMAGES, Case, Used
from small_benchmarks import NAMES

Build = Callable[[Path, Images], Any]
NO_LABELS, UNREADABLE = "sort the images into class folders", "None of its . images can be read, the first for this: "
# Shells, URLs, patterns and regular expressions know them; file systems do not mind.
ODD_NAMES = [
    "a\nb",
    "a*b",
    "[a]",
    "a?b",
    "a#b",
    "a%20b",
    "zip:",
    "ä",
    "\U0001f431",
    "a b",
    "'\"",
    "-rf",
    "~",
    "{a}",
    "$a",
]


def classes(folder: Path, images: Images, name: str = "{}.jpg") -> None:
    for row, label in enumerate(NAMES):
        write(folder / label / name.format(row), images[row])


def flat(folder: Path, images: Images) -> None:
    for row in range(4):
        write(folder / f"{row}.jpg", images[row])


def with_file(path: str, content: Any = None) -> Build:
    """Class folders, and a file; another image if it has no content."""

    def build(folder: Path, images: Images) -> None:
        classes(folder, images)
        write(folder / path, images[5] if content is None else content)

    return build


def with_link(place: str, target: str) -> Build:
    def build(folder: Path, images: Images) -> None:
        classes(folder, images)
        (folder / place).symlink_to(target)

    return build


def nothing(folder: Path, images: Images) -> None:
    pass


def folder_cases() -> list[Case]:
    """Folders of images that are not laid out as they should be, or hold other things."""
    cases = []

    def add(name: str, build: Build, as_id: Any, as_far: Any = None, source: str = "data", **options: Any) -> None:
        def make(folder: Path, images: Images) -> None:
            (folder / "data").mkdir()
            build(folder / "data", images)

        far = as_id if as_far is None else as_far
        cases.append(Case(f"folder: {name}", make, as_id, far, source=source, options=options))

    def left_out(count: int = 4) -> Used:
        return Used(count, (), "1 of 5 images are left out")

    text, image = with_file("a.txt", "a"), with_file("0.jpg")
    add("nothing", nothing, MISSING)
    add("not there", nothing, MISSING, source="other")
    add("a blank for a name", nothing, MISSING, source="data/ ")
    add("a name with a null character", nothing, MISSING, source="da\0ta")
    add("a name too long", nothing, "cannot be looked into", source="d" * 300)
    add("below a file", text, MISSING, source="data/a.txt/b")
    add("a file", text, "no parquet file", source="data/a.txt")
    add("an image", image, "no parquet file", source="data/0.jpg")
    add("texts", lambda folder, images: write(folder / "a.txt", "a"), NO_IMAGES)
    add("a script", lambda folder, images: write(folder / "data.py", "raise SystemExit"), BROKEN)
    add("hidden files", lambda folder, images: write(folder / ".a.jpg", images[0]), "no data")
    add("hidden folders", lambda folder, images: write(folder / ".a" / "0.jpg", images[0]), "no data")
    add("empty class folders", lambda folder, images: [(folder / name).mkdir() for name in NAMES], "any data files")
    add("no endings", lambda folder, images: classes(folder, images, "{}"), "No .supported. data files")
    add("other endings", lambda folder, images: classes(folder, images, "{}.dat"), "No .supported. data files")
    archive = lambda folder, images: zipfile.ZipFile(folder / "a.zip", "w").writestr("0.jpg", images[0])  # noqa: E731
    add("an archive", archive, NO_LABELS, UNREADABLE)
    add("large endings", lambda folder, images: classes(folder, images, "{}.JPG"), Used())
    add("wrong endings", lambda folder, images: classes(folder, images, "{}.png"), Used())
    add("no class folders", flat, NO_LABELS, Used())
    add("one class folder", lambda folder, images: flat(folder / "acorn", images), NO_LABELS, Used())
    add("class folders of several depths", with_file("deep/er/0.jpg"), NO_LABELS, Used(5))
    add("an image beside class folders", image, NO_LABELS, Used(5))
    add("another class", with_file("other/0.jpg"), left_out(), Used(5))
    add("a class without images", lambda folder, images: [classes(folder, images), (folder / "e").mkdir()], Used())
    gone = lambda folder, images: [classes(folder, images), shutil.rmtree(folder / "desk")]  # noqa: E731
    add("a class missing", gone, "no class 'desk'", Used(3))
    add("a class in two spellings", with_file("Acorn/0.jpg"), Used(5))
    add("an empty image", with_file("acorn/1.jpg", b""), Used(4, (1,)))
    add("no image", with_file("acorn/1.jpg", "not an image"), Used(4, (1,)))
    add("all damaged", lambda folder, images: classes(folder, [b"damaged"] * 4), UNREADABLE)
    for name, content in {"notes.txt": "notes", ".DS_Store": b"\0\0\0\1Bud1", "._1.jpg": b"\0\5\26\7"}.items():
        add(f"a file {name} beside", with_file(f"acorn/{name}", content), Used())
    add("a folder named as an image", with_file("acorn/1.jpg/readme.txt", "a"), Used())
    add("a folder with images named as an image", with_file("acorn/1.jpg/1.jpg"), NO_LABELS, Used(5))
    loops = lambda folder, images: [write(folder / "a.txt", "a"), *((folder / name).symlink_to(".") for name in "bcd")]  # noqa: E731
    add("links that lead in circles, and no image", loops, NO_IMAGES)
    add("a link to its folder", with_link("acorn/again", "."), Used())
    add("a link to a folder above", with_link("acorn/up", ".."), Used())
    add("a link to itself", with_link("self", "self"), Used())
    add("an image linked to itself", with_link("acorn/1.jpg", "1.jpg"), left_out())
    add("a link to nothing", with_link("acorn/1.jpg", "/nowhere/at/all.jpg"), left_out())
    add("a link to a device", with_link("acorn/1.jpg", "/dev/null"), left_out())
    pipe = lambda folder, images: [classes(folder, images), os.mkfifo(folder / "acorn" / "1.jpg")]  # noqa: E731
    add("a pipe", pipe, left_out())
    for name in ODD_NAMES:
        add(f"a name {name!r}", with_file(f"acorn/{name}.jpg"), Used(5))
    add("a long name", with_file(f"acorn/{'x' * 250}.jpg"), Used(5))
    add("a backslash", with_file("acorn/a\\b.jpg"), NO_LABELS, Used(5))
    add("two colons", with_file("acorn/a::b.jpg"), "a::b.jpg' has a name that Datasets cannot open")
    add("a name that is no text", with_file("acorn/\udcff.jpg"), r"udcff.jpg' has a name that Datasets cannot open")
    add("a class that is no text", with_file("\udcff/0.jpg"), r"udcff/0.jpg' has a name that Datasets cannot open")
    for name, content, as_id, as_far in (
        ("empty", b"", BROKEN, None),
        ("no text", b"\xff\xfe\0\1", BROKEN, None),
        ("without files", b"a,b\n1,2\n", "cannot be loaded .*file_name", None),
        ("of files above", b"file_name,label\n../../a.jpg,acorn\n", "cannot be loaded .*a.jpg", None),
        (
            "of numbers for images",
            b"file_name,image\nacorn/0.jpg,1\n",
            r"no column of images.*'image' \(int64\)",
            None,
        ),
        ("of files not there", b"file_name,label\nno.jpg,acorn\n", "has no class 'desk'", UNREADABLE),
        # What it leaves out is left out, as Datasets has it; that is said.
        ("of one file", b"file_name,label\nacorn/0.jpg,acorn\n", "has no class 'desk'", Used(1, (), "only those")),
    ):
        add(f"metadata, {name}", with_file("metadata.csv", content), as_id, as_far)
    add("metadata, no JSON", with_file("metadata.jsonl", b"{"), BROKEN)
    splits = lambda folder, images: [classes(folder / split, images) for split in ("test", "val")]  # noqa: E731
    half = lambda folder, images: [classes(folder / "test", images), (folder / "val").mkdir()]  # noqa: E731
    add("splits, none chosen", splits, "several splits")
    add("splits, a wrong one", splits, "Unknown split", split="dev")
    add("splits, one empty", half, "no data", split="val")
    add("splits, the other", half, Used(), split="test")
    add("a split asked of a folder without", classes, "Unknown split", split="test")
    add("a card of another dataset", with_file("README.md", "---\nconfigs:\n- data_files: no.csv\n---\n"), Used())
    add("a broken card", with_file("README.md", "---\n{[\n---\n"), Used())
    return cases


def list_cases() -> list[Case]:
    """Lists of images, lines "path label", with lines that cannot be meant so."""
    cases = []

    def add(name: str, content: Any, as_id: Any, as_far: Any = None, **options: Any) -> None:
        def make(folder: Path, images: Images) -> None:
            place = folder / "images"
            flat(place, images)
            write(place / "damaged.jpg", "damaged")
            for path in ("a b.jpg", "ä.jpg", "folder/0.jpg", "../above.jpg"):
                write(place / path, images[4])
            (place / "loop.jpg").symlink_to("loop.jpg")
            os.mkfifo(place / "pipe.jpg")
            if content is not None:
                write(folder / "list.txt", content(folder) if callable(content) else content)

        options = {"image_list": "list.txt", "image_root": "images", **options}
        far = as_id if as_far is None else as_far
        cases.append(Case(f"list: {name}", make, as_id, far, options=options))

    good, lost, line = "0.jpg 0\n1.jpg 1\n2.jpg 2\n3.jpg 3\n", Used(4, (4,)), r"Line 5 of .*list.txt is "
    add("nothing wrong", good, Used())
    for name, path in {
        "absent": "none.txt",
        "above": "../none.txt",
        "long": "x" * 300,
        "null character": "a\0b",
    }.items():
        add(f"not there, {name}", None, "does not exist or is no file", image_list=path)
    add("a folder", None, "does not exist or is no file", image_list="images")
    add("a pattern", good, "does not exist or is no file", image_list="*.txt")
    add("empty", "", "has no lines")
    add("blank lines alone", "\n \n\t\n", "has no lines")
    add("not UTF-8", good.encode() + b"\xff.jpg 0\n", "cannot be read as UTF-8")
    add("UTF-16", good.encode("utf-16"), "cannot be read as UTF-8")
    add("binary", bytes(range(256)), "cannot be read as UTF-8")
    add("a byte order mark", b"\xef\xbb\xbf" + good.encode(), Used())
    for name, end in {"Windows": "\r\n", "an old Mac": "\r", "blank lines between": "\n\n  \n"}.items():
        add(f"line ends of {name}", good.replace("\n", end), Used())
    add("tabs", good.replace(" ", "\t"), Used())
    add("no last line end", good.strip(), Used())
    add("names alone", "0.jpg\n1.jpg\n", "Line 1 of")
    add("labels alone", "0\n1\n", "Line 1 of")
    add("commas", good.replace(" ", ","), "Line 1 of")
    add("semicolons", good.replace(" ", "; "), "none of the 4 images")
    add("quotation marks", '"0.jpg" 0\n', "none of the 1 images")
    add("a heading", "path label\n" + good, "Line 1 of")
    add("a comment", "# mine\n" + good, "Line 1 of")
    for label in ("0.jpg", "1.5", "acorn", "0x1", "+1", "1e0", "٣", "nan", "None", "9" * 20, "0,", "[0]"):
        add(f"label {label}", f"{good}0.jpg {label}\n", line)
    for part in ("0\0.jpg 0", "a\x0cb.jpg 0", "a\u2028b.jpg 0"):
        add(f"line {part!r}", f"{good}{part}\n", line)
    add("a label too large", good + "0.jpg 4\n", "both the label 0 and 4|not in 0 to 3", Used(5))
    add("a label too large alone", good + "ä.jpg 4\n", "not in 0 to 3, such as 4 of 'ä.jpg'", Used(5))
    add("a negative label", good + "ä.jpg -1\n", "not in 0 to 3, such as -1 of 'ä.jpg'", Used(5))
    add("an image twice", good + "0.jpg 0\n", Used(5, (), "lists 1 images more than once"))
    add("an image with two labels", good + "0.jpg 1\n", "gives '0.jpg' both the label 0 and 1", Used(5))
    for name, path in {
        "missing": "9.jpg",
        "damaged": "damaged.jpg",
        "with two labels in its line": "0.jpg 0",
        "that is a folder": "folder",
        "that is a loop": "loop.jpg",
        "that is a pipe": "pipe.jpg",
        "with a name too long": "x" * 5000,
        "at an address": "https://localhost:9/0.jpg",
        "with a backslash": "folder\\0.jpg",
        "at home": "~/0.jpg",
        "of the system": "../" * 40 + "etc/passwd",
    }.items():
        add(f"an image {name}", f"{good}{path} 0\n", lost)
    for name, path in {"above": "../above.jpg", "with a detour": "folder/../a b.jpg", "of letters": "ä.jpg"}.items():
        add(f"an image {name}", f"{good}{path} 0\n", Used(5))
    add("an absolute path", lambda folder: f"{good}{folder}/above.jpg 0\n", Used(5))
    add("all images missing", good.replace(".jpg", ".png"), "none of the 4 images")
    add("all images damaged", "damaged.jpg 0\n" * 2, UNREADABLE)
    add("a root that is not there", good, "none of the 4 images", image_root="none")
    add("a root that is a file", good, "none of the 4 images", image_root="images/0.jpg")
    add("label names that are too few", good, "not in 0 to 1, such as 2", Used(), label_names=["acorn", "desk"])
    return cases
