"""Tests of the files that ship inside the package: word lists, sample images, pocket CLIP."""

import hashlib
import io
import json
import lzma
import re
import unicodedata
from pathlib import Path

import datasets
import pytest
import torch
from hf_oodclip.evaluation.compare_pocket import mean_auroc, section
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

ASSETS = Path(__file__).parents[1] / "hf_oodclip" / "assets"
# Image set -> images, classes.
IMAGE_SETS: dict[str, tuple[int, int]] = {
    "id": (800, 20),
    "near_heldout": (240, 30),
    "far_textures": (160, 10),
    "far_clothing": (160, 10),
    "far_digits": (160, 10),
}

# Row of an embedded test image -> what the shipped weights see in it with a share above 0.99.
SURE_IMAGES = {
    436: "European fire salamander",
    722: "black widow spider",
    362: "tabby cat",
    467: "brass plaque",
    483: "freight train car",
    637: "police van",
    326: "triumphal arch",
    373: "acorn",
}


@pytest.fixture(scope="module", params=["nouns", "adjectives"])
def word_list(request: pytest.FixtureRequest) -> tuple[str, list[tuple[str, list[str]]]]:
    """Return a word list's file name and its `(word, lexicographer files)` lines."""
    name = f"wordnet_{request.param}.txt.xz"
    text = lzma.decompress((ASSETS / "words" / name).read_bytes()).decode("utf-8")
    assert text.endswith("\n")
    lines = [line.split("\t") for line in text[:-1].split("\n")]
    assert {place for _, _, place in lines} == {"first", "other"}
    return name, [(word, files.split(",")) for word, files, _ in lines]


@pytest.fixture(scope="module")
def image_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, datasets.Dataset]:
    """Return every sample image set, loaded as a user would load it."""
    cache = str(tmp_path_factory.mktemp("datasets"))
    return {
        name: datasets.load_dataset(
            "parquet",
            data_files=str(ASSETS / "images" / f"{name}.parquet"),
            split="train",
            cache_dir=cache,
        )
        for name in IMAGE_SETS
    }


def image_bytes(dataset: datasets.Dataset) -> list[bytes]:
    """Return the encoded bytes of every image."""
    column = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    return [image["bytes"] for image in column["image"]]


def test_words_are_unique_sorted_and_clean(word_list: tuple[str, list[tuple[str, list[str]]]]) -> None:
    name, lines = word_list
    words = [word for word, _ in lines]
    assert words == sorted(set(words))
    assert all(word == word.strip() and word == unicodedata.normalize("NFC", word) for word in words)
    assert not [word for word in words if "_" in word or "\t" in word]
    assert not [word for word in words if re.search(r"\((a|p|ip)\)", word)]
    part_of_speech = "noun." if "nouns" in name else "adj."
    assert all(file.startswith(part_of_speech) for _, files in lines for file in files)
    assert all(files == sorted(set(files)) for _, files in lines)


def test_word_counts_match_readme(word_list: tuple[str, list[tuple[str, list[str]]]]) -> None:
    name, lines = word_list
    readme = (ASSETS / "words" / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"`{re.escape(name)}` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", readme)
    assert row is not None
    single = sum(" " not in word for word, _ in lines)
    size = (ASSETS / "words" / name).stat().st_size
    assert [int(number) for number in row.groups()] == [len(lines), single, len(lines) - single, size]
    for file in {file for _, files in lines for file in files}:
        listed = [word for word, files in lines if file in files]
        expected = f"| {file} | {len(listed)} | {sum(' ' not in word for word in listed)} |"
        assert expected in readme


def test_known_words_have_their_lexicographer_files() -> None:
    text = lzma.decompress((ASSETS / "words" / "wordnet_nouns.txt.xz").read_bytes()).decode("utf-8")
    assert "\naardvark\tnoun.animal\tfirst\n" in text
    assert "\nmotorcar\tnoun.artifact\tother\n" in text
    assert "\nYorkshire terrier\tnoun.animal\tfirst\n" in text
    assert "\nconditional sale\tnoun.communication,noun.possession\tfirst\n" in text


def test_first_lemmas_are_as_many_as_the_readme_says(word_list: tuple[str, list[tuple[str, list[str]]]]) -> None:
    name, _ = word_list
    text = lzma.decompress((ASSETS / "words" / name).read_bytes()).decode("utf-8")
    count = sum(line.endswith("\tfirst") for line in text.splitlines())
    readme = (ASSETS / "words" / "README.md").read_text(encoding="utf-8")
    assert f"{count:,} {'nouns' if 'nouns' in name else 'adjectives'}" in readme


def test_word_lists_carry_the_wordnet_licence() -> None:
    licence = (ASSETS / "words" / "LICENSE-wordnet.txt").read_text(encoding="utf-8")
    assert licence.startswith("This software and database is being provided to you, the LICENSEE")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in licence
    assert licence.endswith("Princeton University and LICENSEE agrees to preserve same.\n")


def test_image_sets_have_their_counts(image_sets: dict[str, datasets.Dataset]) -> None:
    for name, (images, classes) in IMAGE_SETS.items():
        dataset = image_sets[name]
        assert len(dataset) == images
        assert dataset.features["label"].num_classes == classes
        # Every name in the schema occurs: a label set without examples would skew text banks built from it.
        assert set(dataset["label"]) == set(range(classes))
        assert all(re.fullmatch(r"[\w.-]+\.parquet#\d+", source) for source in dataset["source"])


def test_every_image_decodes_to_rgb(image_sets: dict[str, datasets.Dataset]) -> None:
    for dataset in image_sets.values():
        for image in dataset["image"]:
            image.load()
            assert image.mode == "RGB"


def test_image_sets_stay_small() -> None:
    assert sum((ASSETS / "images" / f"{name}.parquet").stat().st_size for name in IMAGE_SETS) <= 4_000_000


def test_id_classes_have_calibration_and_test_images(image_sets: dict[str, datasets.Dataset]) -> None:
    dataset = image_sets["id"]
    counts: dict[tuple[int, str], int] = {}
    for label, split in zip(dataset["label"], dataset["split"], strict=True):
        counts[label, split] = counts.get((label, split), 0) + 1
    assert counts == {
        (label, split): images for label in range(20) for split, images in (("calibration", 16), ("test", 24))
    }


def test_no_image_is_in_two_places(image_sets: dict[str, datasets.Dataset]) -> None:
    pools = {name: image_bytes(dataset) for name, dataset in image_sets.items() if name != "id"}
    for split in ("calibration", "test"):
        rows = [row for row, value in enumerate(image_sets["id"]["split"]) if value == split]
        pools[split] = image_bytes(image_sets["id"].select(rows))
    total = [encoded for pool in pools.values() for encoded in pool]
    assert len(total) == sum(images for images, _ in IMAGE_SETS.values())
    assert len(set(total)) == len(total)
    pixels = {Image.open(io.BytesIO(encoded)).convert("RGB").tobytes() for encoded in total}
    assert len(pixels) == len(total)  # the same picture saved twice would differ in bytes only


def test_id_and_ood_class_names_are_disjoint(image_sets: dict[str, datasets.Dataset]) -> None:
    id_names = set(image_sets["id"].features["label"].names)
    for name in IMAGE_SETS:
        if name != "id":
            assert not id_names & set(image_sets[name].features["label"].names)


def test_pocket_clip_loads_offline_and_knows_the_id_classes(
    image_sets: dict[str, datasets.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("the pocket CLIP asked for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    model = CLIPModel.from_pretrained(ASSETS / "pocket_clip").eval()
    processor = CLIPProcessor.from_pretrained(ASSETS / "pocket_clip")
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())

    def shares(dataset: datasets.Dataset) -> torch.Tensor:
        texts = [f"a photo of a {name}." for name in dataset.features["label"].names]
        inputs = processor(text=texts, images=list(dataset["image"]), return_tensors="pt", padding=True)
        assert inputs["pixel_values"].shape == (len(dataset), 3, 64, 64)
        with torch.inference_mode():
            return model(**inputs).logits_per_image.softmax(dim=1)

    found, names = shares(image_sets["id"]), image_sets["id"].features["label"].names
    for row, name in SURE_IMAGES.items():
        assert names[image_sets["id"][row]["label"]] == name
        assert found[row, names.index(name)] > 0.9
    accuracy = (found.argmax(1) == torch.tensor(image_sets["id"]["label"])).float().mean().item()
    assert 0.69 <= accuracy <= 0.76  # measured 72.5 %
    unseen = shares(image_sets["near_heldout"]).argmax(1) == torch.tensor(image_sets["near_heldout"]["label"])
    assert 0.13 <= unseen.float().mean().item() <= 0.25  # measured 18.8 %, chance 3.3 %


def test_pocket_clip_is_what_its_log_and_its_figures_speak_of() -> None:
    folder = ASSETS / "pocket_clip"
    training, figures = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("training", "evaluation")
    )
    weights = (folder / "model.safetensors").read_bytes()
    own, earlier = (figures["checkpoints"][name] for name in ("shipped", "trial"))
    assert hashlib.sha256(weights).hexdigest() == training["checkpoint"]["sha256"] == own["sha256"]
    assert len(weights) <= 10_000_000
    assert sum(path.stat().st_size for path in folder.glob("tokenizer*")) <= 1_000_000
    assert own["patch_grid"] == 8
    assert own["accuracy"]["seen_top1"] == pytest.approx(100 * training["figures"]["seen_top1"], abs=1e-3)
    assert own["accuracy"]["seen_top1"] > 46
    for name in ("seen_top1", "held_out_top1"):
        assert own["accuracy"][name] > earlier["accuracy"][name]
    assert mean_auroc(own)[0] > mean_auroc(earlier)[0]
    card = (folder / "README.md").read_text(encoding="utf-8")
    table = card.partition("<!-- pocket comparison -->")[2].partition("<!-- end of pocket comparison -->")[0]
    assert table.strip() == section(figures["checkpoints"]).strip()
    assert f"| the classes it was trained on | {own['accuracy']['seen_top1']:.1f} |" in card
    example = ASSETS.parents[1] / "model_cards" / "examples" / "pocket-clip"
    picture = "![Losses and accuracies by step](card_pictures/learning_curve.png)\n\n"
    assert card == (example / "README.md").read_text(encoding="utf-8").replace(picture, "")
    assert (example / "card_pictures" / "learning_curve.png").stat().st_size > 10_000
