"""Benchmark files are read strictly: every malformed one gives an error that says where and how."""

import copy

import numpy as np
import pytest
from hf_oodclip.evaluation.benchmark import (
    BenchmarkError,
    SetSpec,
    list_benchmarks,
    load_benchmark,
)
from hf_oodclip.evaluation.class_lists import resolve_classes, seeded_order
from hf_oodclip.training.recipe_values import write_yaml

from hf_oodclip.errors import TemplateError, UnknownNameError

VALID = {
    "title": "A title",
    "description": "What it is.",
    "variants": ["one", "two"],
    "labels": {"by_variant": {"one": ["cat", "dog", "eel"], "two": {"file": "pets37.txt", "take": 3}}},
    "templates": ["a photo of a {}.", "a {}"],
    "sets": [
        {"name": "own", "role": "id", "source": "own", "count": 12, "licence": "CC0", "where": "https://example.org"},
        {
            "name": "listed",
            "role": "far",
            "image_list": "lists/far.txt",
            "image_root": "images",
            "label_names": ["a", "b"],
            "classes": ["a"],
            "limit": 3,
        },
        {
            "name": "sketches",
            "role": "near",
            "source": "sketches",
            "parts": ["north", "south"],
            "split": "test",
            "revision": "main",
            "config_name": "default",
            "image_column": "image",
            "label_column": "label",
            "per_class": "4:10",
        },
    ],
    "published": [
        {
            "score": "mcm",
            "set": "far",
            "metric": "auroc",
            "value": 90.8,
            "method": "MCM",
            "backbone": "ViT-B/16",
            "source": "paper",
        }
    ],
}
TEXTS = [3, 1.5, True, [], {"a": 1}, "", "  ", ["a"]]
WRONG = {
    ("title",): [None, *TEXTS],
    ("description",): TEXTS,
    ("variants",): ["one", {}, [1], [""], ["one", "one"], ["one"], ["one", "two", "three"], []],
    ("labels",): [3, True, [], {}, [""], [1, 2], ["cat", "cat"], "no such list.txt", {"file": 3}, {"file": "pets.txt"}]
    + [{"file": "pets37.txt", key: value} for key, value in (("take", 0), ("take", 38), ("take", 1.5), ("takes", 3))]
    + [{"file": "pets37.txt", "take": 3, "seed": 1}, {"file": "pets37.txt", "rest": True}, "pets37\0.txt", "x" * 5000]
    + [{"file": "pets37.txt", "take": 3, "order": "sorted"}, {"file": "pets37.txt", "take": 3, "rest": "yes"}]
    + [{"file": "pets37.txt", "take": 3, "order": "random", "seed": seed} for seed in (-1, 1.5, "a", 2**32)]
    + [
        {"file": "pets37.txt", "only": "cifar10.txt"},
        {"file": "pets37.txt", "only": 3},
        {"by_variant": {"one": ["a"]}},
    ]
    + [{"by_variant": 3}, {"by_variant": {"one": ["a"], "two": ["b"]}, "file": "pets37.txt"}, ".", "/", "../.."],
    ("templates",): [3, True, {}, "", [], ["a photo"], "a photo of a dog", "{} and {}", "photoo", [3], [None]],
    ("sets",): [None, "own", {}, [], [3], ["own"], 5, [[]], [{}]],
    ("sets", 0, "name"): [None, *TEXTS, "far", "all", "mean of far", "listed"],
    ("sets", 0, "role"): [None, *TEXTS, "ID", "ood", "near", "calibration"],
    ("sets", 0, "source"): [None, *TEXTS],
    ("sets", 0, "count"): [0, -1, 1.5, 12.0, "many", True, [], {}, "12 "],
    ("sets", 0, "licence"): TEXTS,
    ("sets", 0, "where"): TEXTS,
    ("sets", 0, "classes"): ["cat", ["cow"], ["cat", "cat"], 3, [], {"files": "pets37.txt"}],
    ("sets", 0, "image_root"): ["images"],
    ("sets", 0, "image_list"): ["list.txt"],
    ("sets", 1, "name"): [None, "own", 5],
    ("sets", 1, "role"): ["id", "farther"],
    ("sets", 1, "image_list"): [None, *TEXTS],
    ("sets", 1, "image_root"): TEXTS,
    ("sets", 1, "split"): ["test"],
    ("sets", 1, "revision"): ["main"],
    ("sets", 1, "parts"): [["a"]],
    ("sets", 1, "label_names"): ["a", 3, [], ["a", "a"], [1], {}],
    ("sets", 1, "limit"): [0, -3, 2.5, "three", False, [1]],
    ("sets", 2, "parts"): ["north", [], [1], {}, [""], 3],
    ("sets", 2, "split"): TEXTS,
    ("sets", 2, "revision"): TEXTS,
    ("sets", 2, "config_name"): TEXTS,
    ("sets", 2, "image_column"): TEXTS,
    ("sets", 2, "label_column"): [3, True, [], {}],
    ("sets", 2, "per_class"): [*TEXTS, "4", "4-10", "10:4", "4:4", "-4:", "a:b", "1:2:3", "0:0"],
    ("published",): ["mcm", {}, [], [3], 5],
    ("published", 0, "score"): [None, *TEXTS, "mmc", "neg label"],
    ("published", 0, "set"): [None, "fars", 3],
    ("published", 0, "metric"): [None, "fpr95", "AUROC", 3],
    ("published", 0, "value"): [None, "90.8 %", -1, 101, float("nan"), float("inf"), True, []],
    ("published", 0, "method"): [None, *TEXTS],
    ("published", 0, "adapter"): TEXTS,
}
KEYS = [(), ("sets", 0), ("sets", 1), ("sets", 2), ("published", 0)]


def changed(place, value):
    """The valid benchmark with another value at a place, or without it for None."""
    content = copy.deepcopy(VALID)
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def malformed():
    for place, values in WRONG.items():
        for value in values:
            yield f"{place} = {value!r:.40}", write_yaml(changed(place, value))
    for place in KEYS:
        inner = VALID
        for step in place:
            inner = inner[step]
        for key, value in inner.items():
            content = copy.deepcopy(VALID)
            target = content
            for step in place:
                target = target[step]
            del target[key]
            target[f"{key}s" if not key.endswith("s") else key[:-1]] = value
            yield f"{place}: {key} misspelt", write_yaml(content)
    text = write_yaml(VALID)
    yield "nothing", ""
    yield "a list", "- a\n"
    yield "a text", "title"
    yield "cut off", text[: text.index("role")] + "{"
    yield "tabs", text.replace("  ", "\t")
    yield "a key twice", text + "title: another\n"
    yield "a key twice in a set", text.replace("  role: id\n", "  role: id\n  role: id\n")
    yield "inside itself", text.replace("[", "&a [*a, ", 1) if "[" in text else "title: &a [*a]\n"
    yield "a value inside itself", "title: x\nsets: &a\n- *a\n"
    yield "an unknown alias", "title: *nothing\n"
    yield "a Python object", "title: !!python/object:os.system {}\n"
    yield "a wrong tag", "title: !!timestamp noon\n"
    yield "another wrong tag", "title: !!bool maybe\n"
    yield "an unknown tag", "title: !mine x\n"
    yield "control characters", "title: \x01\x02\n"
    yield "brackets", "[" * 3000
    yield "a huge number", f"title: {'9' * 6000}\n"
    yield "a key that is a list", "? [a]\n: b\n"
    yield "two documents", "title: a\n---\ntitle: b\n"
    yield "a colon too many", "title: a: b\n"


MALFORMED = list(malformed())


def test_there_are_many_malformed_files_and_a_valid_one(tmp_path):
    assert len(MALFORMED) >= 200
    path = tmp_path / "mine.yaml"
    path.write_text(write_yaml(VALID))
    benchmark = load_benchmark(path)
    assert (benchmark.name, benchmark.labels) == ("mine-one", ["cat", "dog", "eel"])
    assert load_benchmark(path, variant="two").labels == [
        "Abyssinian",
        "American Bulldog",
        "American Pit Bull Terrier",
    ]
    assert benchmark.id_set == SetSpec(
        "own", "id", "own", count=12, licence="CC0", where="https://example.org", label_ids=["cat", "dog", "eel"]
    )
    assert [each.parts for each in benchmark.sets] == [(), (), ("north", "south")]
    assert benchmark.published[0].value == 90.8 and benchmark.calibration_set is None


def test_every_malformed_file_is_refused_with_an_error_of_ours(tmp_path):
    path = tmp_path / "mine.yaml"
    for what, text in MALFORMED:
        path.write_text(text, encoding="utf-8")
        with pytest.raises((BenchmarkError, UnknownNameError, TemplateError)) as caught:
            load_benchmark(path)
            pytest.fail(f"accepted: {what}")
        message = str(caught.value)
        assert len(message) > 20 and len(message) < 3000, what
        # Every message says which file or which of its fields is meant; templates quote the template.
        assert "mine" in message or isinstance(caught.value, TemplateError) or "template" in message, (what, message)


def test_what_yaml_readers_let_pass_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, match in (
        ("title: a\nsets:\n- {name: b}\ntitle: c\n", r"^mine.yaml gives 'title' twice .* in line 1\.$"),
        ("title: a\nsets:\n- name: b\n  name: c\n", r"^mine.yaml gives 'name' twice .* in line 3\.$"),
        ("title: &a [*a]\n", "^mine.yaml holds a value inside itself"),
    ):
        path.write_text(text)
        with pytest.raises(BenchmarkError, match=match):
            load_benchmark(path)


def test_misspelt_names_get_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet1k-four'"):
        load_benchmark("imagenet1k-fuor")
    with pytest.raises(UnknownNameError, match="Did you mean 'sketch'"):
        load_benchmark("imagenet-styles", variant="skech")
    with pytest.raises(BenchmarkError, match="'sketch'"):
        load_benchmark("imagenet-styles-sketch", variant="a")
    with pytest.raises(BenchmarkError, match="seed"):
        load_benchmark("cub-half", seed=-1)
    assert load_benchmark("imagenet-styles", variant="a") == load_benchmark("imagenet-styles-a")
    assert len(list_benchmarks()) == len(set(list_benchmarks())) >= 13


def test_class_files_are_found_beside_the_benchmark_and_below_the_root(tmp_path):
    beside, root = tmp_path / "beside", tmp_path / "root"
    beside.mkdir()
    root.mkdir()
    (beside / "mine.yaml").write_text(write_yaml({**VALID, "labels": "pairs.txt"}))
    with pytest.raises(UnknownNameError, match="a file of your own; looked for"):
        load_benchmark(beside / "mine.yaml", root)
    (root / "pairs.txt").write_text("# comment\n\nn1\tcat\n n2\tcat \n")
    benchmark = load_benchmark(beside / "mine.yaml", root)
    assert benchmark.labels == ["cat", "cat"] and benchmark.id_set.label_ids == ["n1", "n2"]
    (beside / "pairs.txt").write_text("eel\nowl\n")
    assert load_benchmark(beside / "mine.yaml", root).labels == ["eel", "owl"]
    for text in (b"", b"# none\n", b"a\na\n", b"n1\tcat\tx\n", b"n1\t\tx\n", b"\xff\xfe\n", b"n1\ta\nn1\tb\n"):
        (beside / "pairs.txt").write_bytes(text)
        with pytest.raises(BenchmarkError, match=r"pairs\.txt"):
            load_benchmark(beside / "mine.yaml", root)


def test_parts_of_class_lists():
    def ids(**options):
        return resolve_classes({"file": "cifar10.txt", **options}, "labels", []).ids

    every = ids()
    assert ids(take=3) == ("airplane", "automobile", "bird") and ids(take=3, rest=True) == every[3:]
    drawn = ids(take=4, order="random", seed=3)
    assert len(drawn) == 4 and [every.index(each) for each in drawn] == sorted(every.index(each) for each in drawn)
    assert set(drawn) == {every[row] for row in np.random.RandomState(3).permutation(10)[:4]}
    assert set(ids(take=4, order="random", seed=3, rest=True)) == set(every) - set(drawn)
    state = np.random.get_state()[1].copy()
    seeded_order(100, 5)
    assert (np.random.get_state()[1] == state).all()
