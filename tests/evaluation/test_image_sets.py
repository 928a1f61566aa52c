"""Sets are opened from any layout, with labels that mean what they should, or an error that says what to do."""

import shutil
from pathlib import Path

import datasets
import pytest
from hf_oodclip.evaluation.benchmark import (
    BenchmarkError,
    MissingSet,
    SetSpec,
    benchmark_from_sources,
    list_benchmarks,
    load_benchmark,
    open_set,
)

from hf_oodclip.dataset_images import image_reader, read_images
from hf_oodclip.errors import DataError, OODCLIPError, UnknownNameError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def jpegs(id_dataset):
    return [each["bytes"] for each in id_dataset.cast_column("image", datasets.Image(decode=False))[:6]["image"]]


def folder(root, content):
    """Write images; a text as content makes a damaged file."""
    for name, image in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image if isinstance(image, bytes) else image.encode())
    return root


def shown(image_set):
    """The file name and the label of each image."""
    paths = [Path(cell["path"]) for cell in image_set.images["image"][:]]
    names = image_set.label_names
    labels = [None] * len(paths) if image_set.labels is None else [names[label] for label in image_set.labels]
    return [("/".join(path.parts[-2:]), label) for path, label in zip(paths, labels, strict=True)]


def test_folders_are_matched_to_labels_by_id_name_or_number(tmp_path, jpegs):
    folder(tmp_path, {f"own/{name}/0.jpg": jpegs[0] for name in ("001.Black_footed_Albatross", "002.Wren", "003.Eel")})
    labels = ["eel", "Black-footed albatross"]
    assert shown(open_set(SetSpec("own", "id", "own"), labels, tmp_path)) == [
        ("001.Black_footed_Albatross/0.jpg", "Black-footed albatross"),
        ("003.Eel/0.jpg", "eel"),
    ]
    # Folders called by number sort as 0, 1, 10, 2.
    names = [f"class {row}" for row in range(11)]
    folder(tmp_path, {f"numbered/{row}/{row}.jpg": jpegs[row % 6] for row in range(11)})
    found = shown(open_set(SetSpec("v2", "shifted", "numbered"), names, tmp_path))
    assert sorted(found) == sorted((f"{row}/{row}.jpg", f"class {row}") for row in range(11))
    # Of some labels only, numbers say nothing without the list they number.
    with pytest.raises(DataError, match="no class 'class 10'"):
        open_set(SetSpec("v2", "shifted", "numbered"), names[10:], tmp_path)
    found = shown(open_set(SetSpec("v2", "shifted", "numbered", label_names=names), names[10:], tmp_path))
    assert found == [("10/10.jpg", "class 10")]
    with pytest.raises(DataError, match="has a class '10', but label_names numbers 0 to 9"):
        open_set(SetSpec("v2", "shifted", "numbered", label_names=names[:10]), names[:10], tmp_path)


def test_classes_of_one_name_are_told_apart_by_id(tmp_path, jpegs):
    folder(tmp_path, {f"own/{name}/{name}.jpg": jpegs[0] for name in ("n1", "n2", "n3")})
    spec = SetSpec("own", "id", "own", label_ids=["n2", "n3", "n1"])
    opened = open_set(spec, ["missile", "missile", "cat"], tmp_path)
    assert opened.label_names == ["missile", "missile", "cat"] and opened.labels == [2, 0, 1]
    part = open_set(
        SetSpec("part", "shifted", "own", classes=["n3"], label_ids=["n2", "n3", "n1"]), ["a", "a", "b"], tmp_path
    )
    assert part.labels == [1] and part.label_names == ["a", "a", "b"]
    with pytest.raises(DataError, match="3 labels, got 2"):
        open_set(spec, ["missile", "cat"], tmp_path)
    with pytest.raises(DataError, match=r"no class 'n4'.*most like it: \['n"):
        open_set(SetSpec("own", "id", "own", label_ids=["n1", "n4"]), ["a", "b"], tmp_path)


def test_labels_of_the_images_themselves(tmp_path, jpegs):
    folder(tmp_path, {f"own/{name}/0.jpg": jpegs[0] for name in ("1", "2", "10")})
    assert open_set(SetSpec("own", "id", "own"), None, tmp_path).label_names == ["1", "10", "2"]
    flat = folder(tmp_path / "flat", {"0.jpg": jpegs[0]})
    with pytest.raises(DataError, match="no labels"):
        open_set(SetSpec("own", "id", str(flat)), None)


def saved(root, images, labels, feature):
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [{"bytes": each, "path": None} for each in images], "label": labels}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(root / "rows.parquet")
    dataset.save_to_disk(root / "saved")


@pytest.mark.parametrize("source", ["rows.parquet", "*.parquet", "saved"])
def test_datasets_with_numbers_for_labels(source, tmp_path, jpegs):
    saved(tmp_path, jpegs[:4], [0, 2, 1, 2], datasets.Value("int64"))
    assert open_set(SetSpec("own", "id", source), ["a", "b", "c"], tmp_path).labels == [0, 2, 1, 2]
    other = SetSpec("own", "id", source, label_names=["x", "b", "a"])
    opened = open_set(other, ["a", "b"], tmp_path)
    assert opened.labels == [0, 1, 0] and [cell["bytes"] for cell in opened.images["image"][:]] == jpegs[1:4]
    with pytest.raises(DataError, match="2 of 4 labels"):
        open_set(SetSpec("own", "id", source), ["a", "b"], tmp_path)
    assert open_set(SetSpec("own", "far", source), ["a", "b"], tmp_path).labels is None


def test_out_of_distribution_sets_need_no_labels_but_can_choose_classes(tmp_path, jpegs):
    folder(tmp_path, {f"far/{name}/{place}.jpg": jpegs[place] for name in ("a", "b", "c") for place in range(3)})
    assert len(open_set(SetSpec("far", "far", "far"), ["x"], tmp_path)) == 9
    chosen = open_set(SetSpec("far", "far", "far", classes=["C", "a"]), ["x"], tmp_path)
    assert [name for name, _ in shown(chosen)] == [f"{name}/{place}.jpg" for name in "ac" for place in range(3)]
    assert chosen.labels is None
    with pytest.raises(DataError, match="no class 'd'"):
        open_set(SetSpec("far", "far", "far", classes=["a", "d"]), ["x"], tmp_path)


def test_images_of_a_class_are_drawn_at_random_but_always_alike(tmp_path, jpegs):
    counts = {"a": 9, "b": 5, "c": 2}
    folder(tmp_path, {f"own/{name}/{place}.jpg": jpegs[0] for name in counts for place in range(counts[name])})

    def drawn(**options):
        opened = open_set(SetSpec("own", "id", "own", **options), ["a", "b", "c"], tmp_path)
        assert [label for _, label in shown(opened)] == [name[0] for name, _ in shown(opened)]
        return [name for name, _ in shown(opened)]

    some, others = drawn(per_class=":4"), drawn(per_class="4:")
    assert sorted([*some, *others]) == sorted(drawn()) and not set(some) & set(others)
    assert [sum(name[0] == each for name in some) for each in "abc"] == [4, 4, 2]
    assert some == drawn(per_class=":4") and some != sorted(drawn())[:4] + sorted(drawn())[9:13] + [
        "c/0.jpg",
        "c/1.jpg",
    ]
    limited = drawn(limit=6)
    assert len(limited) == 6 and len({name[0] for name in limited}) > 1 and limited == drawn(limit=6)
    assert len(drawn(limit=600)) == 16
    with pytest.raises(DataError, match="no images left"):
        drawn(per_class="9:")


def test_parts_are_put_together(tmp_path, jpegs):
    folder(tmp_path, {f"own/{part}/{name}/{part}.jpg": jpegs[0] for part in ("north", "south") for name in ("a", "b")})
    spec = SetSpec("own", "id", "own", parts=("south", "north"))
    opened = open_set(spec, ["b", "a"], tmp_path)
    assert shown(opened) == [(f"{name}/{part}.jpg", name) for part in ("south", "north") for name in ("a", "b")]
    again = open_set(spec, ["b", "a"], tmp_path)
    assert again.images._fingerprint == opened.images._fingerprint
    assert image_reader(opened.images)(3).mode == "RGB"
    with pytest.raises(MissingSet, match="west"):
        open_set(SetSpec("own", "id", "own", parts=("south", "west")), ["a", "b"], tmp_path)


def image_list(root, text, role="id", **options):
    (root / "list.txt").write_text(text)
    return open_set(SetSpec("listed", role, image_list="list.txt", image_root="images", **options), ["a", "b"], root)


def test_image_lists(tmp_path, jpegs, warned):
    folder(tmp_path / "images", {f"some dir/{row}.jpg": jpegs[row] for row in range(3)})
    good = "some dir/0.jpg 1\n\nsome dir/1.jpg 0\nsome dir/2.jpg   1\n"
    assert shown(image_list(tmp_path, good)) == [
        ("some dir/0.jpg", "b"),
        ("some dir/1.jpg", "a"),
        ("some dir/2.jpg", "b"),
    ]
    assert shown(image_list(tmp_path, good, label_names=["b", "a"]))[0] == ("some dir/0.jpg", "a")
    assert shown(image_list(tmp_path, good, classes=["a"], label_ids=["a", "b"])) == [("some dir/1.jpg", "a")]
    far = image_list(tmp_path, good.replace(" 1", " -1"), role="far")
    assert len(far) == 3 and far.labels is None and not warned
    # Missing images are listed, and skipped as damaged ones are.
    partly = image_list(tmp_path, good + "some dir/9.jpg 0\n")
    assert "1 of 4 images" in warned[0] and "9.jpg" in warned[0]
    skipped = {}
    assert [row for row, _ in read_images(image_reader(partly.images), [0, 1, 2, 3], skipped)] == [0, 1, 2]
    assert "does not exist" in skipped[3]
    image_list(tmp_path, good + "some dir/0.jpg 1\n")
    assert "more than once" in warned[-1]


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("a/0.jpg 2\n", DataError, "not in 0 to 1, such as 2 of 'a/0.jpg'"),
        ("a/0.jpg -1\n", DataError, "Only OOD images"),
        ("a/0.jpg\n", DataError, "Line 1"),
        ("a/0.jpg 0\na/0.jpg cat\n", DataError, "Line 2"),
        ("a/0.jpg 0.5\n", DataError, "Line 1"),
        ("0\n", DataError, "Line 1"),
        ("a/0.jpg 99999999999999999999\n", DataError, "Line 1"),
        ("a\0b.jpg 0\n", DataError, "Line 1"),
        ("\n \n", DataError, "no lines"),
        ("a/1.jpg 0\nb/2.jpg 1\n", MissingSet, "none of the 2 images"),
    ],
)
def test_malformed_image_lists(text, error, match, tmp_path, jpegs):
    folder(tmp_path / "images", {"a/0.jpg": jpegs[0]})
    with pytest.raises(error, match=match):
        image_list(tmp_path, text)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00 0\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_set(SetSpec("listed", "id", image_list="list.txt"), ["a", "b"], tmp_path)


def test_malformed_data(tmp_path, jpegs):
    def refused(match, **options):
        spec = SetSpec(**{"name": "own", "role": "id", "source": "data", **options})
        with pytest.raises((DataError, UnknownNameError), match=match):
            open_set(spec, ["a", "b"], tmp_path)

    folder(tmp_path, {"data/a/0.jpg": jpegs[0], "data/b/0.jpg": "damaged", "notes/readme.txt": "no image"})
    # Damage is found when an image is used, and skipped then.
    opened = open_set(SetSpec("own", "id", "data"), ["a", "b"], tmp_path)
    assert len(opened) == 2 and len(list(read_images(image_reader(opened.images), [0, 1], {}))) == 1
    refused("split", split="test")
    refused("column", image_column="picture")
    refused("column", label_column="kind")
    refused("label_names gives 3", label_names=["a", "b", "c"])
    refused("no column of images", source="notes")
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "no_images.parquet")
    refused("no column of images", source="no_images.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    refused("cannot be loaded", source="broken.parquet")
    saved(tmp_path, jpegs[:2], [0, None], datasets.Value("int64"))
    refused("None in row 1", source="rows.parquet")
    saved(tmp_path, jpegs[:2], ["a", "c"], datasets.Value("string"))
    refused("no class 'b'", source="rows.parquet")
    saved(tmp_path, [], [], datasets.Value("int64"))
    refused("a table without rows", source="rows.parquet")
    refused("cannot be looked into", source="x" * 5000)


def test_missing_data_say_what_to_fetch_and_where_to_put_it(tmp_path):
    for name in list_benchmarks():
        for spec in load_benchmark(name).sets:
            if not spec.source or not spec.source.startswith("embedded"):
                with pytest.raises(MissingSet) as caught:
                    open_set(spec, None, tmp_path)
                assert spec.where in str(caught.value) and str(tmp_path) in str(caught.value)
                assert isinstance(caught.value, OODCLIPError)
    (tmp_path / "own").mkdir()
    with pytest.raises(MissingSet, match="empty"):
        open_set(SetSpec("own", "id", "own"), ["a"], tmp_path)
    with pytest.raises(MissingSet, match="from the Hub") as caught:
        open_set(SetSpec("own", "id", "nobody/nothing", revision="main", where="Ask them."), ["a"], tmp_path)
    assert "Ask them." in str(caught.value)


def test_own_benchmark_in_one_call(tmp_path, jpegs, monkeypatch):
    folder(tmp_path, {f"own/{split}/{name}/0.jpg": jpegs[0] for split in ("train", "test") for name in ("cat", "dog")})
    folder(tmp_path, {"far/0.jpg": jpegs[1], "far#1/0.jpg": jpegs[2], "labels.txt": "dog\ncat\n"})
    monkeypatch.chdir(tmp_path)
    benchmark = benchmark_from_sources("own#test", ["far", "far#1", "embedded:far_digits"])
    monkeypatch.chdir("/")
    labels = open_set(benchmark.id_set, None).label_names
    assert benchmark.labels is None and labels == ["cat", "dog"]
    assert [len(open_set(each, labels)) for each in benchmark.sets] == [2, 1, 1, 160]
    assert [each.name for each in benchmark.ood_sets] == ["far/", "far#1", "embedded:far_digits"]
    named = benchmark_from_sources(str(tmp_path / "own#train"), [str(tmp_path / "far")], tmp_path / "labels.txt")
    assert named.labels == ["dog", "cat"] and open_set(named.id_set, named.labels).labels == [1, 0]
    hub = benchmark_from_sources("me/mine#validation", ["them/theirs"], shifted_sources=["me/more"])
    assert [(each.source, each.split, each.revision, each.role) for each in hub.sets] == [
        ("me/mine", "validation", "main", "id"),
        ("them/theirs", None, "main", "far"),
        ("me/more", None, "main", "shifted"),
    ]
    assert benchmark_from_sources("far#1#train", ["own"]).id_set.split == "train"
    for arguments, match in (
        (("own", []), "nothing to compare the ID set with"),
        (("own", ["far#1", "far#1"]), "several sets named 'far#1'"),
        (("", ["far"]), "non-empty string"),
        ((3, ["far"]), "non-empty string"),
        (("x" * 5000, ["far"]), "cannot be 'xxx.*too long"),
        (("~no such user/own", ["far"]), "cannot be '~no such user/own'"),
        (("own", ["far"], "x" * 5000), "cannot be read"),
        (("own", ["far"], "a\0b"), "cannot be read"),
        (("own", ["far"], "~no such user/names.txt"), "cannot be read"),
        (("own", ["far"], "no such file.txt"), "cannot be read"),
    ):
        with pytest.raises(BenchmarkError, match=match):
            benchmark_from_sources(*arguments)


def test_data_may_move_with_their_root(tmp_path, jpegs):
    folder(tmp_path / "one", {f"own/{name}/0.jpg": jpegs[0] for name in ("a", "b")})
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert open_set(SetSpec("own", "id", "own"), ["a", "b"], tmp_path / "two").labels == [0, 1]
