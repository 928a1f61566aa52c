"""Images and labels come out of every kind of source unchanged, or with an error that says what to do."""

import os
import shutil
from pathlib import Path

import datasets
import pytest
from hf_oodclip.training.data import ImageSet, load_image_set
from hf_oodclip.training.data_sources import open_source, source_and_split

from hf_oodclip.errors import DataError, UnknownNameError

CLASSES = ["acorn", "desk", "freight train car", "tabby cat"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))  # for other interpreters
    return folder


@pytest.fixture(scope="module")
def rows(id_dataset, id_labels):
    """24 rows of the ID images, 6 of each class of `CLASSES`, in turns: their bytes and class names."""
    undecoded = id_dataset.cast_column("image", datasets.Image(decode=False))
    labels = [id_labels[label] for label in id_dataset["label"][:]]
    numbers = {name: [row for row, label in enumerate(labels) if label == name] for name in CLASSES}
    chosen = [numbers[name][place] for place in range(6) for name in CLASSES]
    return [(undecoded[row]["image"]["bytes"], name) for row, name in zip(chosen, CLASSES * 6, strict=True)]


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """The rows as a folder of images, a sub-folder a class, with other files between them."""
    root = tmp_path_factory.mktemp("with [brackets]") / "images"
    for row, (content, name) in enumerate(rows):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{row:02}.png").write_bytes(content)
    (root / "README.txt").write_text("no image")
    (root / "desk" / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def dataset(rows):
    """The rows as a dataset: typed columns, with two that are not wanted."""
    return dataset_with(rows, [CLASSES.index(name) for _, name in rows], datasets.ClassLabel(names=CLASSES))


def dataset_with(rows, labels, feature, **more):
    content = {"image": [{"bytes": content, "path": None} for content, _ in rows], "label": labels}
    features = {"image": datasets.Image(), "label": feature, "size": datasets.Value("int64")}
    content = {**content, "size": [len(content) for content, _ in rows], **more}
    features |= {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def saved(dataset, path):
    """Save a dataset, or a dict of them, and return the source that names it."""
    dataset = datasets.DatasetDict(dataset) if isinstance(dataset, dict) else dataset
    dataset.save_to_disk(path)
    return str(path)


def contents(image_set: ImageSet):
    """Bytes and class name of each image, as `rows` has them."""
    read = [image["bytes"] or Path(image["path"]).read_bytes() for image in image_set.images["image"][:]]
    return list(zip(read, [image_set.label_names[label] for label in image_set.labels], strict=True))


def test_every_source_gives_the_same_bytes_and_labels(rows, folder, dataset, tmp_path):
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.select(range(10)).to_parquet(tmp_path / "part-[0].parquet")
    dataset.select(range(10, 24)).to_parquet(tmp_path / "part-[1].parquet")
    clone = tmp_path / "clone" / "data"
    clone.mkdir(parents=True)
    shutil.copy(tmp_path / "rows.parquet", clone / "test-00000-of-00001.parquet")
    sources = ["rows.parquet", "part-*.parquet", "saved", "clone"]
    saved(dataset, tmp_path / "saved")
    for source in sources:
        whole = load_image_set(str(tmp_path / source))
        assert contents(whole) == rows, source
        streamed = load_image_set(str(tmp_path / source), streaming=True, limit=100)
        assert contents(streamed) == rows, source
        for image_set in (whole, streamed):
            assert image_set.label_names == CLASSES and image_set.images.column_names == ["image", "label"]
            assert image_set.images.features["image"] == datasets.Image(decode=False)
            assert image_set.images.features["label"] == datasets.Value("int64")
    by_class = sorted(rows, key=lambda row: row[1])
    for options in ({}, {"streaming": True, "limit": 100}):
        assert contents(load_image_set(str(folder), **options)) == by_class


def test_embedded_images(id_dataset, id_labels):
    calibration, test = (load_image_set("embedded", split=split) for split in ("calibration", "test"))
    parts = [row for row, split in enumerate(id_dataset["split"][:]) if split == "test"]
    undecoded = id_dataset.cast_column("image", datasets.Image(decode=False)).select(parts)
    assert contents(test) == [(row["image"]["bytes"], id_labels[row["label"]]) for row in undecoded]
    assert (len(calibration), len(test), len(load_image_set("embedded:id", split="all"))) == (320, 480, 800)
    assert not {content for content, _ in contents(calibration)} & {content for content, _ in contents(test)}
    assert calibration.source == "embedded, split calibration"
    sizes = {"near_heldout": 240, "far_textures": 160, "far_digits": 160, "far_clothing": 160}
    for name, size in sizes.items():
        assert len(load_image_set(f"embedded:{name}")) == size
    streamed = load_image_set("embedded", split="test", streaming=True, rows=slice(7, 9))
    assert contents(streamed) == contents(test)[7:9]
    with pytest.raises(DataError, match=r"calibration.*test.*all"):
        load_image_set("embedded")
    with pytest.raises(DataError, match="no splits"):
        load_image_set("embedded:far_digits", split="test")
    with pytest.raises(UnknownNameError, match="Did you mean 'far_textures'"):
        load_image_set("embedded:far_texture")
    with pytest.raises(UnknownNameError, match="Did you mean 'calibration'"):
        load_image_set("embedded", split="calibrate")


@pytest.mark.parametrize("streaming", [False, True])
def test_splits(folder, dataset, tmp_path, streaming):
    for split, names in (("train", CLASSES), ("val", CLASSES[:2]), ("test", CLASSES[1:])):
        for name in names:
            shutil.copytree(folder / name, tmp_path / "images" / split / name)
    saved({"validation": dataset, "test": dataset.select(range(8))}, tmp_path / "saved")
    options = {"streaming": True, "limit": 100} if streaming else {}
    train = load_image_set(str(tmp_path / "images"), **options)
    assert (len(train), train.label_names) == (24, CLASSES)
    test = load_image_set(str(tmp_path / "images"), split="test", **options)
    assert (sorted(set(test.labels)), test.label_names) == ([1, 2, 3], CLASSES)
    assert len(load_image_set(str(tmp_path / "saved"), split="test", **options)) == 8
    with pytest.raises(DataError, match="'validation', 'test'"):
        load_image_set(str(tmp_path / "saved"), **options)
    for source, wrong, nearest in (("images", "valid", "val"), ("saved", "tset", "test")):
        with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
            load_image_set(str(tmp_path / source), split=wrong, **options)
    shutil.rmtree(tmp_path / "images" / "train")
    with pytest.raises(DataError, match="'test', 'val'"):
        load_image_set(str(tmp_path / "images"), **options)


def test_split_expressions(dataset, tmp_path):
    dataset.to_parquet(tmp_path / "rows.parquet")
    whole = load_image_set(str(tmp_path / "rows.parquet"))
    assert contents(load_image_set(str(tmp_path / "rows.parquet"), split="train[4:12]")) == contents(whole)[4:12]
    with pytest.raises(UnknownNameError, match="Allowed: train"):
        load_image_set(str(tmp_path / "rows.parquet"), split="test")
    saved(dataset, tmp_path / "one")
    with pytest.raises(DataError, match="without splits"):
        load_image_set(str(tmp_path / "one"), split="test")


def test_folders_without_labels(folder, tmp_path, warned):
    shutil.copytree(folder / "desk", tmp_path / "flat")
    flat = load_image_set(str(tmp_path / "flat"))
    assert (len(flat), flat.label_names, flat.labels) == (6, None, None)
    assert flat.images.column_names == ["image"]
    shutil.copytree(folder / "desk", tmp_path / "splits" / "train")
    shutil.copytree(folder / "acorn", tmp_path / "splits" / "test")
    assert load_image_set(str(tmp_path / "splits"), split="test").label_names is None
    assert not warned
    shutil.copytree(folder / "desk", tmp_path / "uneven" / "desk")
    shutil.copytree(folder / "acorn", tmp_path / "uneven" / "nuts" / "acorn")
    assert load_image_set(str(tmp_path / "uneven")).label_names is None
    assert len(warned) == 1 and "equally deep" in warned[0]
    with pytest.raises(DataError, match="no labels"):
        flat.of_classes(["desk"])
    with pytest.raises(DataError, match="label_names"):
        load_image_set(str(tmp_path / "flat"), label_names=["desk"])


def test_linked_class_folders_are_followed(folder, tmp_path):
    for name in ("desk", "acorn"):
        (tmp_path / name).symlink_to(folder / name)
    linked = load_image_set(str(tmp_path))
    assert linked.label_names == ["acorn", "desk"] and linked.labels == [0] * 6 + [1] * 6


def test_corrupt_images_do_no_harm_until_used(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    first = sorted((tmp_path / "copy" / "acorn").iterdir())[0]
    first.write_bytes(first.read_bytes()[:40])
    assert len(load_image_set(str(tmp_path / "copy"))) == 24
    assert len(load_image_set(str(tmp_path / "copy"), streaming=True, limit=24)) == 24
    named = datasets.Dataset.from_dict({"photo": [str(first)] * 2}).cast_column("photo", datasets.Image())
    source = saved(named, tmp_path / "saved")
    for options in ({}, {"streaming": True, "limit": 24}):
        damaged = load_image_set(source, **options).images["image"][:]
        assert [image["bytes"] or Path(image["path"]).read_bytes() for image in damaged] == [first.read_bytes()] * 2


def test_rows_and_limit(dataset, tmp_path, warned):
    source = saved(dataset, tmp_path / "saved")
    whole = contents(load_image_set(source))
    for streaming in (False, True):
        taken = load_image_set(source, rows=slice(4, 20), limit=8, streaming=streaming)
        assert contents(taken) == whole[4:12]
        assert taken.source == f"{source}, rows 4:20, first 8"
    assert contents(load_image_set(source, rows=slice(None, None, 5))) == whole[::5]
    assert not warned
    load_image_set(source, limit=2)
    assert len(warned) == 1 and "2 of 4 classes have no image: ['freight train car', 'tabby cat']" in warned[0]
    with pytest.raises(DataError, match="no images"):
        load_image_set(source, rows=slice(100, 200))
    with pytest.raises(DataError, match="at least 1"):
        load_image_set(source, limit=0)
    with pytest.raises(DataError, match="limit="):
        load_image_set(source, streaming=True)
    with pytest.raises(DataError, match="from its start"):
        load_image_set(source, streaming=True, rows=slice(-4, None))


def test_a_stream_is_read_no_further_than_needed(dataset, monkeypatch):
    read = []

    def endless():
        for row in range(1_000_000):
            read.append(row)
            yield dataset.cast_column("image", datasets.Image(decode=False))[row % 24]

    stream = datasets.IterableDataset.from_generator(endless, features=dataset.features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDatasetDict({"train": stream}))
    assert len(load_image_set("owner/name", streaming=True, rows=slice(2, 12))) == 10
    assert len(read) < 30


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_found_or_asked_for(rows, dataset, folder, tmp_path, streaming):
    options = {"streaming": True, "limit": 24} if streaming else {}

    def load(changed, **more):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        return load_image_set(saved(changed, tmp_path / "saved"), **options, **more)

    path = str(folder / "desk" / "01.png")
    two = dataset_with(rows, dataset["label"][:], dataset.features["label"], mask=[path] * 24)
    two = two.cast_column("mask", datasets.Image())
    with pytest.raises(DataError, match=r"'image', 'mask'.*image_column="):
        load(two)
    assert contents(load(two, image_column="image")) == rows
    kinds = datasets.ClassLabel(names=["thing", "animal"])
    two = dataset.add_column("kind", [int(name == "tabby cat") for _, name in rows]).cast_column("kind", kinds)
    with pytest.raises(DataError, match=r"'label', 'kind'.*label_column="):
        load(two)
    assert load(two, label_column="kind").label_names == ["thing", "animal"]
    assert load(two, label_column="").labels is None
    with pytest.raises(UnknownNameError, match="Did you mean 'label'"):
        load(two, label_column="lable")
    with pytest.raises(DataError, match="cannot hold images"):
        load(dataset, image_column="size")
    with pytest.raises(DataError, match="both images and labels"):
        load(datasets.Dataset.from_dict({"path": [path]}), image_column="path", label_column="path")
    with pytest.raises(DataError, match=r"no column of images.*'label' \(int64\), 'size' \(int64\)"):
        load(dataset.remove_columns("image"))
    renamed = dataset.rename_columns({"image": "photo", "label": "kind"})
    assert contents(load(renamed)) == rows
    unformatted = dataset.with_format("numpy")
    assert contents(load(unformatted)) == rows


def test_untyped_columns(rows, folder, tmp_path):
    paths = [str(folder / name / f"{row:02}.png") for row, (_, name) in enumerate(rows)]
    for column, values in {
        "img": [content for content, _ in rows],
        "file_name": paths,
        "image": [{"bytes": content, "path": None} for content, _ in rows],
    }.items():
        untyped = datasets.Dataset.from_dict({column: values, "category": [name for _, name in rows]})
        source = saved(untyped, tmp_path / column)
        for options in ({}, {"streaming": True, "limit": 24}):
            loaded = load_image_set(source, **options)
            assert contents(loaded) == rows and loaded.label_names == CLASSES


def test_number_labels_need_names(rows, tmp_path):
    numbers = [CLASSES.index(name) for _, name in rows]
    source = saved(dataset_with(rows, numbers, datasets.Value("uint8")), tmp_path / "numbers")
    with pytest.raises(DataError, match=r"numbers without names.*label_names="):
        load_image_set(source)
    assert contents(load_image_set(source, label_names=CLASSES)) == rows
    with pytest.raises(DataError, match=r"6 of 24 labels .* 3 in row 3, 3 in row 7, .*\.\.\.\. Labels must be 0 to 2"):
        load_image_set(source, label_names=CLASSES[:3])
    with pytest.raises(DataError, match="list of class names"):
        load_image_set(source, label_names="acorn")


def test_names_given_rename(rows, dataset, tmp_path):
    texts = dataset_with(rows, [f"n{CLASSES.index(name)}" for _, name in rows], datasets.Value("string"))
    for source in (saved(dataset, tmp_path / "typed"), saved(texts, tmp_path / "texts")):
        for options in ({}, {"streaming": True, "limit": 24}):
            assert contents(load_image_set(source, label_names=CLASSES, **options)) == rows
            with pytest.raises(DataError, match="4 classes, but label_names holds 3"):
                load_image_set(source, label_names=CLASSES[:3], **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_that_cannot_be_used(rows, tmp_path, streaming):
    options = {"streaming": True, "limit": 24} if streaming else {}
    for name, feature, good, bad in (
        ("typed", datasets.ClassLabel(names=CLASSES), 1, [-1, None]),
        ("texts", datasets.Value("string"), "desk", [None]),
        ("numbers", datasets.Value("int64"), 1, [-1, 4, None]),
    ):
        names = {"label_names": CLASSES} if name == "numbers" else {}
        source = saved(dataset_with(rows, [good] * (24 - len(bad)) + bad, feature), tmp_path / name)
        listed = ", ".join(f"{label} in row {24 - len(bad) + place}" for place, label in enumerate(bad))
        with pytest.raises(DataError, match=f"{len(bad)} of 24 labels .* cannot be used: {listed}"):
            load_image_set(source, **names, **options)
        assert len(load_image_set(source, label_column="", **options)) == 24
        assert len(load_image_set(source, rows=slice(0, 20), **names, **options)) == 20


def test_sources_that_do_not_exist_or_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    datasets.Dataset.from_dict({"image": [], "label": []}).to_parquet(tmp_path / "no_rows.parquet")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.json").write_text("{")
    for source, message in {
        "nothing.parquet": "does not exist",
        "nothing/deeper/folder": "does not exist",
        "no*.png": "does not exist",
        "empty": "cannot be loaded",
        "bad.parquet": "cannot be loaded",
        "table.csv": "no parquet file",
        "no_rows.parquet": "a table without rows",
        "half": "cannot be loaded",
    }.items():
        with pytest.raises(DataError, match=message):
            load_image_set(str(tmp_path / source))
    monkeypatch.chdir(tmp_path)
    for source in ("owner/nothing", "nothing"):
        with pytest.raises(DataError, match=r"on the Hub.*no local file or folder either"):
            load_image_set(source)
    with pytest.raises(DataError, match="non-empty"):
        load_image_set("")


def test_what_is_asked_of_the_hub(dataset, monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return dataset.select(range(8))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    images = load_image_set("owner/name", split="test", config_name="large", token="secret", revision="v1")
    options = {"split": "test", "name": "large", "token": "secret", "revision": "v1", "streaming": False}
    assert asked == [(("owner/name",), options)]
    assert images.source == "owner/name, split test, revision v1"


def test_classes_are_chosen_in_the_order_given(rows, dataset, tmp_path):
    whole = load_image_set(saved(dataset, tmp_path / "saved"))
    chosen = whole.select(range(2, 24)).of_classes(["tabby cat", "desk"])
    assert chosen.label_names == ["tabby cat", "desk"]
    assert contents(chosen) == [row for row in rows[2:] if row[1] in ("tabby cat", "desk")]
    assert contents(chosen.of_classes(["desk"])) == [row for row in rows[2:] if row[1] == "desk"]
    assert contents(whole.select([5, 5, 0])) == [rows[5], rows[5], rows[0]]
    assert contents(whole.select([5, 5, 0]).of_classes(["desk"])) == [rows[5], rows[5]]
    with pytest.raises(UnknownNameError, match="Did you mean 'acorn'"):
        whole.of_classes(["acorns"])
    for names in ([], "desk", ["desk", "desk"]):
        with pytest.raises(DataError, match="list of different names"):
            whole.of_classes(names)
    with pytest.raises(DataError, match="no row 24"):
        whole.select([3, 24])
    same = ImageSet(whole.images, ["missile", "crane", "missile", "desk"], "ImageNet")
    assert len(same.of_classes(["crane"])) == 6
    with pytest.raises(DataError, match="2 classes named 'missile'"):
        same.of_classes(["missile"])


@pytest.mark.slow
def test_fingerprints_agree_between_processes_and_follow_the_files(folder, dataset, tmp_path, run_python, monkeypatch):
    dataset.to_parquet(tmp_path / "rows.parquet")
    saved(dataset, tmp_path / "saved")
    shutil.copytree(folder, tmp_path / "images")
    code = f"""
import datasets, sys
datasets.disable_progress_bars()
from hf_oodclip.training.data import load_image_set
from hf_oodclip.training.data_sources import open_source, source_and_split
from hf_oodclip.training.few_shot import few_shot, few_shot_from_stream
for source in {[str(tmp_path / name) for name in ("rows.parquet", "saved", "images")]} + ["embedded"]:
    split = "calibration" if source == "embedded" else None
    images = load_image_set(source, split=split)
    streamed = load_image_set(source, split=split, streaming=True, rows=slice(1, None), limit=99)
    shots, rest = few_shot(images, 2, seed=1)
    drawn = few_shot_from_stream(open_source(source, split=split, streaming=True), 2, seed=1)
    sets = [images, streamed, shots, rest, drawn, images.of_classes(["desk"]), shots.of_classes(["desk", "acorn"])]
    sets += [few_shot(images, 2, seed=2)[0], load_image_set(source, split=split, label_column="")]
    print(*(image_set.images._fingerprint for image_set in sets))
"""
    first = run_python(code)
    for line in first.splitlines():
        assert len(set(line.split())) == 9, "different images or labels, different fingerprints"
    assert run_python(code) == first
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "another cache"))
    assert run_python(code) == first
    changed = next((tmp_path / "images" / "desk").glob("[0-9]*.png"))
    changed.write_bytes(b"other content")
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1_000_000))
    old, new = first.splitlines(), run_python(code).splitlines()
    assert [new[0], new[1], new[3]] == [old[0], old[1], old[3]]
    assert not set(new[2].split()[:2]) & set(old[2].split())


def test_streams_of_remote_files_are_read(rows, tmp_path, server):
    for row, (content, _) in enumerate(rows[:4]):
        (tmp_path / f"{row}.png").write_bytes(content)
    addresses = [f"{server}/{row}.png" for row in range(4)]
    remote = datasets.Dataset.from_dict({"image": addresses, "label": CLASSES})
    loaded = load_image_set(saved(remote, tmp_path / "saved"), streaming=True, limit=4)
    assert contents(loaded) == rows[:4]
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png.* cannot be read"):
        load_image_set(str(tmp_path / "saved"), streaming=True, limit=4)
    local = datasets.Dataset.from_dict({"image": [str(tmp_path / "1.png"), str(tmp_path / "2.png")]})
    streamed = load_image_set(saved(local, tmp_path / "local"), streaming=True, limit=4)
    assert streamed.images["image"][1] == {"bytes": None, "path": str(tmp_path / "2.png")}


def test_opened_streams_can_be_read_again(folder):
    stream = open_source(str(folder), streaming=True)
    labels = [row["label"] for row in stream]
    assert labels == [row["label"] for row in stream] == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6


def test_a_source_can_name_its_split(folder, tmp_path):
    (tmp_path / "a#b").mkdir()
    assert source_and_split(str(tmp_path / "a#b")) == (str(tmp_path / "a#b"), None)
    assert source_and_split(str(tmp_path / "a#b#test")) == (str(tmp_path / "a#b"), "test")
    assert source_and_split(f"{folder}#") == (str(folder), None)
    assert source_and_split("embedded:far_digits#all") == ("embedded:far_digits", "all")
    assert source_and_split("me/images#train[:10%]") == ("me/images", "train[:10%]")
    assert source_and_split("x" * 5000 + "#test") == ("x" * 5000, "test")
