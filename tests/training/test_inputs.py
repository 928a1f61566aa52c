"""What a run trains on and is measured with: damaged images, other sources, and what cannot work said at once."""

import datasets
import pytest
from hf_oodclip.training.inputs import HeldOut, choose_shots
from hf_oodclip.training.run import run_recipe
from small_runs import CLASSES, small_recipe

from hf_oodclip.errors import DataError, OODCLIPError
from hf_oodclip.feature_store import FeatureStore

OOD = "embedded:far_digits"


def image_folder(id_dataset, id_labels, root, classes, count, start=0):
    """A folder of real images, a sub-folder a class."""
    labels = id_dataset["label"][:]
    for name in classes:
        rows = [row for row, label in enumerate(labels) if id_labels[label] == name][start : start + count]
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in rows:
            id_dataset[row]["image"].save(root / name / f"{row}.png")
    return root


@pytest.mark.parametrize("name", ["ssf", "krnft", "clip-lora"])
def test_damaged_images_are_left_out_and_listed(name, tiny_clip, id_dataset, id_labels, tmp_path):
    root = image_folder(id_dataset, id_labels, tmp_path / "images", CLASSES[:2], count=3)
    damaged = sorted((root / CLASSES[1]).iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    lines = []
    recipe = small_recipe(
        name, tiny_clip, tmp_path, dataset=str(root), split=None, classes=None, shots=None, eval_dataset=None
    )
    metrics = run_recipe(recipe, say=lines.append).metrics
    assert metrics["num_images"] == 5
    (reason,) = metrics["skipped_images"].values()
    assert reason
    assert any("1 images cannot be read and are left out" in line for line in lines)
    assert metrics["num_steps"] == 3


def test_nothing_but_damaged_images(tiny_clip, tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(b"no image")
    changes = {"dataset": str(tmp_path / "images"), "split": None, "classes": None, "eval_dataset": None}
    with pytest.raises(DataError, match="None of the 2 images"):
        run_recipe(small_recipe("ssf", tiny_clip, tmp_path, **changes))


def test_held_out_classes_are_matched_by_name(tiny_clip, id_dataset, id_labels, tmp_path):
    more = image_folder(id_dataset, id_labels, tmp_path / "more", [*CLASSES, "candle"], count=2, start=30)
    changes = {"eval_dataset": str(more), "eval_split": None}
    held_out = HeldOut.of(
        recipe := small_recipe("ssf", tiny_clip, tmp_path, classes=CLASSES[::-1], **changes), choose_shots(recipe)
    )
    assert held_out.sets["id"].label_names == CLASSES[::-1]
    # Folders are read in alphabetical order: acorn, desk, police van, tabby cat.
    assert held_out.sets["id"].labels == [1, 1, 0, 0, 2, 2, 3, 3]
    assert 0 <= run_recipe(recipe).metrics["trained"]["id_accuracy"] <= 1

    fewer = image_folder(id_dataset, id_labels, tmp_path / "fewer", CLASSES[:3], count=2)
    recipe = small_recipe("ssf", tiny_clip, tmp_path, **{**changes, "eval_dataset": str(fewer)})
    with pytest.raises(OODCLIPError, match=r"'desk'"):
        HeldOut.of(recipe, choose_shots(recipe))


def parquet_of_numbers(id_dataset, id_labels, path, count=3):
    """A parquet file whose labels are bare numbers."""
    labels = id_dataset["label"][:]
    rows = [
        (row, number)
        for number, name in enumerate(CLASSES)
        for row in [row for row, label in enumerate(labels) if id_labels[label] == name][:count]
    ]
    undecoded = id_dataset.cast_column("image", datasets.Image(decode=False))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": [undecoded[row]["image"] for row, _ in rows], "label": [number for _, number in rows]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_that_are_bare_numbers_get_names(streaming, tiny_clip, id_dataset, id_labels, tmp_path):
    train = parquet_of_numbers(id_dataset, id_labels, tmp_path / "train.parquet")
    changes = {"dataset": train, "split": None, "classes": None, "streaming": streaming}
    with pytest.raises(DataError, match="numbers without names"):
        run_recipe(small_recipe("ssf", tiny_clip, tmp_path, **changes))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    changes |= {"label_names": str(tmp_path / "names.txt")}
    if streaming:
        other = parquet_of_numbers(id_dataset, id_labels, tmp_path / "test.parquet", count=2)
        changes |= {"eval_dataset": other}
    recipe = small_recipe("ssf", tiny_clip, tmp_path, **changes)
    result = run_recipe(recipe)
    assert result.model.labels == CLASSES
    assert result.metrics["num_images"] == 4
    assert 0 <= result.metrics["trained"]["id_accuracy"] <= 1


def test_hub_options_reach_the_dataset(monkeypatch, tiny_clip, tmp_path):
    asked = []

    def load_image_set(source, **options):
        asked.append((source, options))
        raise DataError("asked")

    monkeypatch.setattr("hf_oodclip.training.inputs.load_image_set", load_image_set)
    changes = {"dataset": "some/dataset", "dataset_config": "small", "dataset_revision": "abc", "split": "dev"}
    recipe = small_recipe("ssf", tiny_clip, tmp_path, **changes)
    with pytest.raises(DataError, match="asked"):
        choose_shots(recipe)
    source, options = asked[0]
    assert source == "some/dataset"
    assert (options["config_name"], options["revision"], options["split"]) == ("small", "abc", "dev")


def test_ood_sets_can_name_their_split(tiny_clip, tmp_path):
    recipe = small_recipe(
        "ssf", tiny_clip, tmp_path, ood_datasets=["embedded#test", "embedded#calibration"], eval_limit=1000
    )
    held_out = HeldOut.of(recipe, choose_shots(recipe))
    assert len(held_out.sets["embedded#test"]) == 480 and len(held_out.sets["embedded#calibration"]) == 320


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": None, "calibration_dataset": "rest"}, "nothing left to calibrate on"),
        ({"shots": 16, "calibration_dataset": "rest"}, "nothing left to calibrate on"),
        ({"best_metric": "auroc", "eval_every": 1}, "cannot be measured"),
        ({"best_metric": "id_accuracy", "eval_every": 1, "eval_dataset": None}, "cannot be measured"),
        ({"ood_datasets": [OOD, OOD]}, "two evaluation sets called"),
        ({"ood_datasets": ["embedded:far_digit"]}, "Did you mean 'far_digits'"),
        ({"ood_datasets": ["embedded#tets"]}, "Did you mean 'test'"),
        ({"eval_dataset": "embedded", "eval_split": "tets"}, "Did you mean 'test'"),
        ({"num_negatives": 5}, "num_negatives says how many to mine"),
        ({"inputs": "views"}, "needs negative crops"),
        ({"negatives": None}, "need negatives"),
        ({"negatives": "krnfd"}, "neither a mining method"),
        ({"dataset": "no/such/folder"}, "does not exist"),
    ],
)
def test_what_cannot_work_is_said_before_features_are_made(changes, message, tiny_clip, tmp_path):
    with pytest.raises(OODCLIPError, match=message):
        run_recipe(small_recipe("krnft", tiny_clip, tmp_path, **changes), store=FeatureStore(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_all_images_trained_on_leaves_no_rest_to_measure(tiny_clip, tmp_path):
    result = run_recipe(small_recipe("ssf", tiny_clip, tmp_path, shots=16))
    assert result.metrics["num_images"] == 64
    assert result.metrics["trained"] == result.metrics["zero_shot"] == {}
