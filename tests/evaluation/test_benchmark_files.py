"""Every shipped benchmark: what it says is what its papers say, and data laid out as it says are opened."""

import re
import socket
from collections import Counter
from pathlib import Path

import datasets
import pytest
from hf_oodclip.evaluation.benchmark import list_benchmarks, load_benchmark, open_set

from hf_oodclip.dataset_images import image_reader
from hf_oodclip.templates import list_templates

CLASSES = Path(__file__).parents[2] / "evaluation" / "classes"
FOUR = {"iNaturalist": 10000, "SUN": 10000, "Places": 10000, "Textures": 5640}
DOMAINS = {"art": "art_painting", "cartoon": "cartoon", "photo": "photo", "sketch": "sketch"}
DOMAINS |= {"caltech": "Caltech101", "labelme": "LabelMe", "sun": "SUN09", "voc": "VOC2007"}
# As the papers that use them list them.
IN10 = re.findall(
    "n[0-9]{8}",
    "n04552348 n04285008 n01530575 n02123597 n02422699 n02107574 n01641577 n03417042 n02389026 n03095699",
)
IN20 = re.findall(
    "n[0-9]{8}",
    "n04147183 n02951358 n02782093 n04389033 n03773504 n02917067 n02317335 n01632458 n01630670 n01631663 n02391049 "
    "n01693334 n01697457 n02120079 n02114367 n02132136 n03785016 n04310018 n04266014 n04252077",
)


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    def connect(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(socket.socket, "connect", connect)


def lines_of(name):
    """The lines of a class file, split at the tab."""
    return [line.split("\t") for line in (CLASSES / name).read_text().splitlines() if not line.startswith("#")]


def ids_of(name):
    return [line[0] for line in lines_of(name)]


def test_counts_and_numbers_of_labels_are_those_of_the_literature():
    def described(name):
        benchmark = load_benchmark(name)
        return len(benchmark.labels or []), {each.name: each.count for each in benchmark.sets}

    assert described("imagenet1k-four") == (1000, {"ImageNet-1k": 50000, **FOUR})
    assert described("imagenet1k-openood") == (
        1000,
        {"ImageNet-1k": 45000, "calibration": 5000, "SSB-hard": 49000, "NINCO": 5879, "iNaturalist": 10000}
        | {"Textures": 5160, "OpenImage-O": 15869, "ImageNet-V2": 10000, "ImageNet-C": 10000, "ImageNet-R": 30000},
    )
    far = {"MNIST": 70000, "SVHN": 26032, "Textures": 5640}
    own = {"CIFAR-10": 9000, "CIFAR-100": 9000, "calibration": 1000}
    assert described("cifar10") == (10, {**own, "TinyImageNet": 7793, **far, "Places365": 35195})
    assert described("cifar100") == (100, {**own, "TinyImageNet": 6526, **far, "Places365": 33773})
    for variant, name, count in (
        ("sketch", "Sketch", 50889),
        ("a", "A", 7500),
        ("r", "R", 30000),
        ("v2", "V2", 10000),
    ):
        assert described(f"imagenet-styles-{variant}") == (1000, {f"ImageNet-{name}": count, **FOUR})
    assert described("hard-pairs-imagenet10")[1] == {"imagenet10": 500, "imagenet20": 1000, "imagenet100": 5000}
    domains = ("art", "cartoon", "photo", "sketch")
    held_out = [described(f"setup2-pacs-{domain}")[1]["held-out domain"] for domain in domains]
    assert held_out == [2048, 2344, 1670, 3929] and sum(held_out) == 9991
    labels, sets = described("setup1-imagenet46")
    assert (labels, sets["calibration"], sets["ImageNet-600"], sets["ImageNet-V2"]) == (400, 1600, 30000, 4000)
    assert sets["ImageNet-400"] == 400 * 50 - 1600
    for stem, labels in (("cub", 100), ("cars", 98), ("food", 50), ("pet", 18)):
        assert {described(f"{stem}-half-{variant}")[0] for variant in ("random", "first")} == {labels}
    assert described("setup2-pacs-art")[0] == 7 and described("setup2-vlcs-sun")[0] == 5


@pytest.mark.parametrize("name", list_benchmarks())
def test_every_benchmark_is_complete(name):
    benchmark = load_benchmark(name)
    assert benchmark.name == name and benchmark.title and len(benchmark.description) > 50
    assert benchmark.templates is None or benchmark.templates in list_templates()
    assert all(each.licence for each in benchmark.sets)
    assert all(each.where or each.source.startswith("embedded") for each in benchmark.sets)
    assert benchmark.ood_sets and benchmark.id_set not in benchmark.ood_sets


def test_class_files():
    counts = {"imagenet1k": 1000, "imagenet-a": 200, "imagenet-r": 200, "imagenet10": 10, "imagenet20": 20}
    counts |= {"imagenet100": 100, "cifar10": 10, "cifar100": 100, "cub200": 200, "cars196": 196, "food101": 101}
    counts |= {"pets37": 37, "pacs": 7, "vlcs": 5, "caltech101-not-pacs": 97, "caltech101-not-vlcs": 89}
    assert {path.stem for path in CLASSES.iterdir()} == set(counts)
    for stem, count in counts.items():
        ids = ids_of(f"{stem}.txt")
        assert len(ids) == len(set(ids)) == count, stem
        assert "Source: " in (CLASSES / f"{stem}.txt").read_text()


def test_traps_of_imagenet():
    classes = lines_of("imagenet1k.txt")
    ids, names = zip(*classes, strict=True)
    assert list(ids) == sorted(ids) and classes[0] == ["n01440764", "tench"] and classes[999][1] == "toilet paper"
    assert {name: count for name, count in Counter(names).items() if count > 1} == {"missile": 2, "sunglasses": 2}
    # CLIP's classes apart from WordNet's words: the bird and the machine.
    assert dict(classes)["n02012849"] == "crane bird" and dict(classes)["n03126707"] == "construction crane"
    subsets = {name: set(ids_of(f"{name}.txt")) for name in ("imagenet-a", "imagenet-r", "imagenet100")}
    subsets |= {"imagenet10": set(IN10), "imagenet20": set(IN20)}
    assert all(subset <= set(ids) for subset in subsets.values())
    assert set(ids_of("imagenet10.txt")) == set(IN10) and set(ids_of("imagenet20.txt")) == set(IN20)
    assert subsets["imagenet100"] & subsets["imagenet20"] == {"n01632458", "n04147183"}
    assert not set(IN10) & (set(IN20) | subsets["imagenet100"])


@pytest.mark.parametrize("name", list_benchmarks())
def test_no_class_is_both_in_and_out_of_distribution(name):
    benchmark = load_benchmark(name)
    for spec in benchmark.ood_sets:
        if spec.classes is not None and spec.label_ids is not None:
            assert not {each.lower() for each in spec.classes} & {each.lower() for each in spec.label_ids}


def test_halves_are_complementary_and_random_ones_are_drawn():
    for stem, file in (("cub", "cub200"), ("cars", "cars196"), ("food", "food101"), ("pet", "pets37")):
        every = ids_of(f"{file}.txt")
        first, drawn = (load_benchmark(f"{stem}-half-{variant}") for variant in ("first", "random"))
        assert load_benchmark(f"{stem}-half") == drawn
        assert first.id_set.label_ids == every[: len(first.labels)]
        for benchmark in (first, drawn):
            assert sorted(benchmark.id_set.label_ids + benchmark.ood_sets[0].classes) == sorted(every)
        assert drawn.id_set.label_ids != first.id_set.label_ids
        assert drawn.id_set.label_ids == sorted(drawn.id_set.label_ids, key=every.index)
        assert load_benchmark(f"{stem}-half-random", seed=1).labels != drawn.labels
        assert load_benchmark(f"{stem}-half-first", seed=1) == first
    # Stays so from release to release, or results of two could not be compared.
    pets = ["American Pit Bull Terrier", "Boxer", "Chihuahua", "Egyptian Mau", "English Setter", "Great Pyrenees"]
    assert load_benchmark("pet-half-random").labels[:6] == pets


def test_setup1_shifted_sets_show_classes_of_the_400():
    benchmark = load_benchmark("setup1-imagenet46")
    labels, other = benchmark.id_set.label_ids, benchmark.ood_sets[0].classes
    assert len(labels) == 400 and len(other) == 600 and not set(labels) & set(other)
    shifted = {each.name: each.classes for each in benchmark.shifted_sets}
    assert shifted["ImageNet-A"] == [each for each in labels if each in ids_of("imagenet-a.txt")]
    assert shifted["ImageNet-V2"] is None and shifted["ImageNet-Sketch"] is None
    assert len({tuple(load_benchmark("setup1-imagenet46", seed=seed).labels) for seed in (1, 2, 3)}) == 3


def build(root, spec, images, per_class):
    """Lay out a miniature of a set as its file declares; return each image's path and the class it shows."""
    number, built = iter(range(10**6)), {}

    def write(path, shown):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[next(number) % len(images)])
        built[str(path)] = shown

    if spec.image_list is not None:
        labelled = spec.role in ("id", "shifted", "calibration")
        rows = [spec.label_ids.index(each) for each in (spec.classes or spec.label_ids)] if labelled else [-1] * 3
        lines = []
        for place, row in enumerate(rows):
            write(root / spec.image_root / spec.name / f"{place}.jpg", spec.label_ids[row] if labelled else None)
            lines.append(f"{spec.name}/{place}.jpg {row}")
        (root / spec.image_list).parent.mkdir(parents=True, exist_ok=True)
        (root / spec.image_list).write_text("\n".join(lines) + "\n")
        return built
    for part in spec.parts or ("",):
        if "ImageNetV2" in spec.source or "imagenetv2" in spec.source:
            shown = {str(row): each for row, each in enumerate(ids_of("imagenet1k.txt"))}
        elif spec.role in ("near", "far") and spec.classes is None and spec.per_class is None:
            shown = {"": None}
        elif spec.source.startswith("imagenet/"):
            shown = {each: each for each in ids_of("imagenet1k.txt")}
        else:
            shown = {each: each for each in (spec.classes or spec.label_ids)}
        for folder, each in shown.items():
            for place in range(per_class):
                write(root / spec.source / part / folder.replace("/", "-") / f"{place}.jpg", each)
    return built


def expected(spec, built):
    """What of the images built belongs to the set."""
    if spec.role in ("near", "far"):
        return {path for path, shown in built.items() if spec.classes is None or shown in spec.classes}
    return {path for path, shown in built.items() if shown in (spec.classes or spec.label_ids)}


def check_miniature(name, root, id_dataset):
    images = id_dataset.cast_column("image", datasets.Image(decode=False))[:7]["image"]
    benchmark = load_benchmark(name, root)
    names, taken = benchmark.labels, []
    per_class = 6 if "setup1" in name else 1 if len(names) > 10 else 2
    for spec in benchmark.sets:
        built = build(root, spec, [each["bytes"] for each in images], per_class)
        opened = open_set(spec, names, root)
        cells = opened.images["image"][:]
        paths = [str(Path(cell["path"])) for cell in cells]
        should = expected(spec, built)
        if spec.per_class is None:
            assert set(paths) == should
        else:
            a_class, every = (Counter(built[path] for path in group) for group in (paths, should))
            kept = {"4:": per_class - 4, ":4": 4}.get(spec.per_class, per_class)
            assert set(paths) <= should and set(a_class) == set(every) and set(a_class.values()) <= {kept, kept * 3}
            taken += paths
        assert len(paths) == len(set(paths)) and image_reader(opened.images)(len(opened) - 1).mode == "RGB"
        if spec.role in ("near", "far"):
            assert opened.labels is None and opened.label_names is None
        else:
            assert opened.label_names == names
            assert [spec.label_ids[label] for label in opened.labels] == [built[path] for path in paths]
    # Nothing is both calibrated on and tested.
    assert len(taken) == len(set(taken))


HEAVY = [name for name in list_benchmarks() if name.startswith(("hard-pairs", "setup1"))]


@pytest.mark.parametrize("name", sorted({*list_benchmarks()} - {*HEAVY, "pocket"}))
def test_miniature(name, tmp_path, id_dataset):
    check_miniature(name, tmp_path, id_dataset)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_miniature_of_many_files(name, tmp_path, id_dataset):
    check_miniature(name, tmp_path, id_dataset)


def test_pocket_is_all_there(id_labels):
    benchmark = load_benchmark("pocket")
    labels = open_set(benchmark.id_set, None).label_names
    assert labels == id_labels
    opened = {each.name: open_set(each, labels) for each in benchmark.sets}
    assert {name: len(each) for name, each in opened.items()} == {each.name: each.count for each in benchmark.sets}
    assert set(Counter(opened["Tiny-ImageNet 20"].labels).values()) == {24}
    assert set(Counter(opened["calibration"].labels).values()) == {16}
    test, held = (
        {cell["bytes"] for cell in opened[name].images["image"][:]} for name in ("Tiny-ImageNet 20", "calibration")
    )
    assert not test & held
