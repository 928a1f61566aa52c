"""The shots of a class are a function of the seed, the class name and its rows, and of nothing else."""

import random
from collections import Counter
from hashlib import blake2b

import datasets
import pytest
from hf_oodclip.training.data import ImageSet, load_image_set
from hf_oodclip.training.data_sources import open_source
from hf_oodclip.training.few_shot import few_shot, few_shot_from_stream

from hf_oodclip.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def images(cache):
    return load_image_set("embedded", split="calibration")


def numbered(labels, names):
    """An image set whose images are their row numbers, to see which are drawn."""
    content = {"image": [{"bytes": str(row).encode(), "path": None} for row in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    return ImageSet(datasets.Dataset.from_dict(content, features=features), names, "numbered")


def drawn(image_set):
    """The content of the images of each class, by class name."""
    found = {}
    for image, label in zip(image_set.images["image"][:], image_set.labels, strict=True):
        found.setdefault(image_set.label_names[label], []).append(image["bytes"])
    return found


def stream_of(image_set, feature=None):
    features = image_set.images.features.copy()
    features["label"] = feature or datasets.ClassLabel(names=image_set.label_names)
    return datasets.IterableDataset.from_generator(lambda: iter(image_set.images), features=features)


def test_shots_are_those_with_the_smallest_numbers():
    labels = [0, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    shots, rest = few_shot(numbered(labels, ["cat", "dog"]), shots=2, seed=7)
    expected = []
    for label, name in enumerate(["cat", "dog"]):
        generator = random.Random(int(blake2b(f"7\n{name}".encode(), digest_size=16).hexdigest(), 16))
        rows = [row for row in range(10) if labels[row] == label]
        lot = sorted((generator.random(), row) for row in rows)
        expected += sorted(row for _, row in lot[:2])
    assert [int(image["bytes"]) for image in shots.images["image"][:]] == expected
    assert shots.labels == [0, 0, 1, 1] and shots.source == "numbered, 2 shots a class, seed 7"
    assert [int(image["bytes"]) for image in rest.images["image"][:]] == sorted(set(range(10)) - set(expected))
    assert rest.labels == [labels[row] for row in sorted(set(range(10)) - set(expected))]


def test_shots_and_rest_share_the_images_of_each_class(images):
    shots, rest = few_shot(images, 5, seed=0)
    assert shots.labels == [label for label in range(20) for _ in range(5)]
    whole, chosen, left = drawn(images), drawn(shots), drawn(rest)
    for name in images.label_names:
        assert Counter(chosen[name]) + Counter(left[name]) == Counter(whole[name])
        assert chosen[name] == [image for image in whole[name] if image in chosen[name]], "in row order"


def test_other_classes_their_order_and_more_shots_change_nothing(images):
    whole = drawn(few_shot(images, 4, seed=3)[0])
    names = ["popsicle", "acorn", "tabby cat"]
    assert drawn(few_shot(images.of_classes(names), 4, seed=3)[0]) == {name: whole[name] for name in names}
    more = drawn(few_shot(images, 8, seed=3)[0])
    assert all(set(whole[name]) < set(more[name]) for name in whole)
    other = drawn(few_shot(images, 4, seed=4)[0])
    assert sum(whole[name] == other[name] for name in whole) < 3


def test_every_image_is_drawn_equally_often():
    counts, images = Counter(), numbered([0] * 10, ["one"])
    for seed in range(400):
        shots, _ = few_shot(images, 3, seed)
        counts.update(int(image["bytes"]) for image in shots.images["image"][:])
    # 120 expected; the standard deviation is 9.2.
    assert set(counts) == set(range(10)) and max(abs(count - 120) for count in counts.values()) < 4 * 9.2


def test_the_global_generator_is_left_alone(images):
    random.seed(0)
    before = random.getstate()
    first = drawn(few_shot(images, 2, seed=0)[0])
    assert random.getstate() == before
    random.seed(1)
    assert drawn(few_shot(images, 2, seed=0)[0]) == first


def test_too_few_images_of_a_class(warned):
    images = numbered([0, 1, 1, 2, 2, 2], ["cat", "dog", "owl"])
    shots, rest = few_shot(images, 3, seed=0)
    assert shots.labels == [0, 1, 1, 2, 2, 2] and len(rest) == 0 and rest.labels == []
    assert warned == ["numbered: 2 classes have fewer than 3 images, all taken: cat (1), dog (2)."]
    absent = numbered([0, 0, 2], ["cat", "dog", "owl"])
    for draw in (lambda: few_shot(absent, 1, 0), lambda: few_shot_from_stream(stream_of(absent), 1, 0)):
        with pytest.raises(DataError, match=r"1 of 3 classes .* no image to draw: \['dog'\].*of_classes"):
            draw()
    with pytest.raises(DataError, match="at least 1 image"):
        few_shot(images, 0, seed=0)
    with pytest.raises(DataError, match="has no labels"):
        few_shot(ImageSet(images.images.select_columns("image"), None, "unlabelled"), 1, seed=0)


def test_a_stream_gives_the_same_shots(images, warned):
    whole, _ = few_shot(images, 6, seed=5)
    stream = open_source("embedded", split="calibration", streaming=True)
    streamed = few_shot_from_stream(stream, 6, seed=5, source="embedded")
    assert drawn(streamed) == drawn(whole) and streamed.labels == whole.labels
    assert streamed.label_names == whole.label_names and streamed.source == "embedded, 6 shots a class, seed 5"
    texts = images.images.add_column("class", [images.label_names[label] for label in images.labels])
    texts = texts.select_columns(["image", "class"]).to_iterable_dataset()
    streamed = few_shot_from_stream(texts, 6, seed=5)
    assert drawn(streamed) == drawn(whole) and streamed.label_names == sorted(images.label_names)
    numbers = stream_of(images, datasets.Value("int64"))
    assert drawn(few_shot_from_stream(numbers, 6, seed=5, label_names=images.label_names)) == drawn(whole)
    part, _ = few_shot(images.select(range(200)), 6, seed=5)
    assert drawn(few_shot_from_stream(stream_of(images), 6, seed=5, limit=200)) == drawn(part)
    few = [name for name, found in drawn(part).items() if len(found) < 6]
    assert len(warned) == (2 if few else 0)


def test_a_stream_is_read_once_and_little_is_kept():
    alive, most, reads = set(), 0, 0

    class Content(bytes):
        def __del__(self):
            alive.discard(id(self))

    def rows():
        nonlocal most, reads
        for row in range(5000):
            content = Content(b"%d" % row)
            alive.add(id(content))
            most, reads = max(most, len(alive)), reads + 1
            yield {"image": {"bytes": content, "path": None}, "label": row % 4}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    shots = few_shot_from_stream(stream, 3, seed=0)
    assert len(shots) == 12 and reads == 5000
    assert most < 12 + 20


def test_streams_that_cannot_be_used(images):
    numbers = stream_of(images, datasets.Value("int64"))
    with pytest.raises(DataError, match="label_names="):
        few_shot_from_stream(numbers, 2, 0)
    with pytest.raises(DataError, match=r"Row \d+ of stream has the label 19; it must be 0 to 18"):
        few_shot_from_stream(numbers, 2, 0, label_names=images.label_names[:19])
    with pytest.raises(DataError, match="no labels"):
        few_shot_from_stream(numbers, 2, 0, label_column="")
    with pytest.raises(DataError, match="limit must be"):
        few_shot_from_stream(numbers, 2, 0, limit=0)
    rows = [{"image": b"1", "label": "cat"}, {"image": b"2", "label": None}]
    texts = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(DataError, match="Row 1 of stream has the label None; it must be a text"):
        few_shot_from_stream(texts, 1, 0)
    with pytest.raises(DataError, match="cannot be renamed"):
        few_shot_from_stream(texts, 1, 0, label_names=["cat"])
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(DataError, match="no images"):
        few_shot_from_stream(empty, 1, 0)


def test_streams_of_unknown_columns_are_looked_into():
    rows = [{"image": b"%d" % row, "label": ("cat", "dog")[row % 2]} for row in range(10)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    shots = few_shot_from_stream(stream, 5, seed=0)
    assert drawn(shots) == {"cat": [b"0", b"2", b"4", b"6", b"8"], "dog": [b"1", b"3", b"5", b"7", b"9"]}


def test_classes_of_one_name_draw_each_their_own():
    images = numbered([0, 1] * 6, ["missile", "missile"])
    shots, _ = few_shot(images, 2, seed=0)
    streamed = few_shot_from_stream(stream_of(images, datasets.Value("int64")), 2, 0, label_names=images.label_names)
    assert shots.labels == streamed.labels == [0, 0, 1, 1]
    assert streamed.images["image"][:] == shots.images["image"][:]
