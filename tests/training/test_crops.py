"""Crops of an image: a function of image, seed and number alone; mined ones against sorting all of them."""

import io
import threading
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hf_oodclip.training import augmentation as augmentation_module
from hf_oodclip.training import crops as crops_module
from hf_oodclip.training.crops import AUGMENTATIONS, crop_features, mine_crops, random_crops, view_features
from PIL import Image
from torch.nn.functional import cosine_similarity

from hf_oodclip.errors import FeatureStoreError, NonFiniteError, UnknownNameError
from hf_oodclip.feature_store import FeatureStore, embed_images

PINNED = [[164, 32], [156, 110], [138, 62]]
OPTIONS = {"num_crops": 9, "num_selected": 3, "augmentation": "code", "seed": 0}


@pytest.fixture(scope="module")
def processor(shared_model):
    return shared_model.image_processor


@pytest.fixture(scope="module")
def photo(real_images):
    return real_images["id"][3]


@pytest.fixture(scope="module")
def images(real_images):
    return [image.copy() for image in real_images["id"][:7]]


@pytest.fixture
def tiny(make_model, tiny_clip):
    return make_model(tiny_clip)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", shard_rows=3)


def bytes_of(pixel_values, processor):
    """The crops as images `[n, H, W, 3]` of 0..255."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return ((pixel_values * std + mean) / processor.rescale_factor).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


# ---- random crops -------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_crop_depends_on_image_seed_and_number_alone(processor, photo, images, augmentation):
    def crops(image=photo, seed=0, start=0, stop=40):
        return random_crops(image, processor, augmentation, seed, start, stop)

    whole = crops()
    assert whole.shape == (40, 3, 64, 64) and whole.dtype == torch.float32 and whole.is_contiguous()
    for start, stop in [(0, 40), (0, 1), (5, 6), (7, 23), (39, 40)]:
        assert torch.equal(crops(start=start, stop=stop), whole[start:stop])
    global_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    saved = io.BytesIO()
    photo.save(saved, "PNG")
    assert torch.equal(crops(image=Image.open(saved)), whole)  # other file, same pixels
    assert (np.random.get_state()[1] == global_state[0]).all() and torch.equal(torch.get_rng_state(), global_state[1])
    for other in (crops(seed=1), crops(seed=-1), crops(image=images[0]), crops(start=40, stop=80)):
        assert not (other == whole).all(dim=(1, 2, 3)).any()
    assert len({crop.numpy().tobytes() for crop in whole}) == 40
    assert crops(start=5, stop=5).shape == (0, 3, 64, 64)


def test_a_changed_pixel_changes_the_crops(processor, photo):
    changed = photo.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    pair = [random_crops(image, processor, "code", 0, 0, 4) for image in (photo, changed)]
    assert not (pair[0] == pair[1]).all(dim=(1, 2, 3)).any()


def position_image(width, height):
    """An image whose red is the column and green the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8))


def test_crops_do_not_change_from_release_to_release(processor):
    """Values computed when this was written, of an image too smooth for Pillow's rounding to matter."""
    crops = bytes_of(random_crops(position_image(240, 200), processor, "code", 7, 0, 3), processor).astype(int)
    assert abs(crops[:, 10, 20, :2] - PINNED).max() <= 1


@pytest.mark.parametrize("size", [(240, 240), (240, 120), (90, 250)])
def test_boxes_have_the_promised_areas_shapes_and_places(processor, size):
    width, height = size
    crops = bytes_of(random_crops(position_image(*size), processor, "code", 0, 0, 600), processor).astype(float)
    red, green = crops[:, 32, :, 0], crops[:, :, 32, 1]
    mirrored = red[:, 0] > red[:, -1]
    # Without the borders, where the blur of resizing differs.
    box_width, box_height = abs(red[:, 52] - red[:, 12]) * 64 / 40, (green[:, 52] - green[:, 12]) * 64 / 40
    share, ratio = box_width * box_height / (width * height), box_width / box_height
    assert 0.07 < share.min() < 0.12 and share.max() < 1.03
    assert 0.71 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.4
    assert abs(mirrored.mean() - 0.5) < 0.07
    if width == height:
        # Uniform, but for the large ones that did not fit at first (a box of ratio r fits up to an area of 1/r).
        assert share.max() > 0.9 and abs(np.mean(share < 0.35) - 0.32) < 0.06
        assert abs(np.log(ratio).mean()) < 0.03
        small = share < 0.2
        for center, side in (((red[:, 12] + red[:, 52]) / 2, width), ((green[:, 12] + green[:, 52]) / 2, height)):
            assert abs(center[small].mean() - side / 2) < 12 and center[small].std() > side / 8


@pytest.mark.parametrize(("size", "box"), [((200, 20), (86.7, 113.3, 0, 20)), ((20, 200), (0, 20, 86.7, 113.3))])
def test_long_images_fall_back_to_their_middle(processor, size, box, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "whole", replace(AUGMENTATIONS["code"], scale=(1.0, 1.0), flip=0.0))
    crop = bytes_of(random_crops(position_image(*size), processor, "whole", 0, 0, 1), processor)[0].astype(float)
    found = (crop[32, 0, 0], crop[32, -1, 0], crop[0, 32, 1], crop[-1, 32, 1])
    np.testing.assert_allclose(found, box, atol=2)


def test_the_smallest_images(processor):
    for size in [(1, 1), (1, 9), (9, 1), (2, 3)]:
        crops = random_crops(Image.new("RGB", size, (10, 20, 30)), processor, "code", 0, 0, 5)
        assert (bytes_of(crops, processor) == (10, 20, 30)).all()


def test_a_whole_square_crop_is_what_the_processor_makes(processor, photo, monkeypatch):
    whole = replace(AUGMENTATIONS["code"], scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    monkeypatch.setitem(AUGMENTATIONS, "whole", whole)
    assert photo.size == (64, 64)  # not resized, so the way of resizing does not matter
    wanted = processor(images=photo, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(random_crops(photo, processor, "whole", 0, 0, 1), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shape", "values"),
    [
        ({"crop_size": {"height": 20, "width": 30}}, (20, 30), None),
        ({"do_center_crop": False, "size": {"shortest_edge": 24}}, (24, 24), None),
        ({"do_center_crop": False, "size": {"height": 16, "width": 18}}, (16, 18), None),
        ({"do_normalize": False}, (64, 64), (0.5, 1.0)),
        ({"do_normalize": False, "do_rescale": False}, (64, 64), (200, 255)),
    ],
)
def test_settings_of_the_processor_are_kept(processor, photo, settings, shape, values):
    changed = type(processor).from_dict({**processor.to_dict(), **settings})
    crops = random_crops(photo, changed, "code", 0, 0, 3)
    assert crops.shape == (3, 3, *shape)
    if values:
        assert crops.min() >= 0 and values[0] < crops.max() <= values[1]


def test_paper_and_code_share_boxes_and_flips(processor, photo):
    code, paper = (
        bytes_of(random_crops(photo, processor, name, 0, 0, 400), processor).astype(float)
        for name in ("code", "paper")
    )
    same = (code == paper).all(axis=(1, 2, 3))
    assert abs(same.mean() - 0.2 * 0.8) < 0.06  # neither jitter nor grey
    grey = (np.ptp(paper, axis=3) == 0).all(axis=(1, 2)) & (np.ptp(code, axis=3) > 0).any(axis=(1, 2))
    assert abs(grey.mean() - 0.2) < 0.06
    flat = [crops.mean(axis=3).reshape(400, -1) for crops in (code, paper)]
    correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(*flat, strict=True)]
    assert np.mean(np.array(correlations) > 0.9) > 0.95


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("hue", -0.1, 0.1)],
)
def test_strength_of_each_colour_change(processor, monkeypatch, name, low, high):
    """One change alone on two flat colours, measured by its definition."""
    changes = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    changes[name] = (high - low) / 2
    monkeypatch.setitem(
        AUGMENTATIONS,
        "one",
        replace(AUGMENTATIONS["code"], scale=(1, 1), ratio=(1, 1), jitter=1.0, flip=0.0, **changes),
    )
    image = Image.new("RGB", (64, 64), (130, 100, 100))
    image.paste((100, 130, 100), (0, 0, 64, 32))
    before = np.asarray(image).astype(float)
    crops = bytes_of(random_crops(image, processor, "one", 0, 0, 300), processor).astype(float)
    if name == "brightness":
        found = crops[:, 50, 9, 0] / before[50, 9, 0]
    elif name == "contrast":
        # A degenerate image of the mean grey is mixed in.
        grey = round(np.asarray(image.convert("L")).mean())
        found = (crops[:, 50, 9, 0] - grey) / (before[50, 9, 0] - grey)
    elif name == "saturation":
        found = (crops[:, 50, 9, 0] - crops[:, 50, 9, 1]) / 30
    else:
        green, blue = crops[:, 50, 9, 1:].T
        # The lower half is red, hue 0; a sixth of the circle on either side, one of the others grows to full.
        found = np.where(green >= blue, green - blue, -(blue - green)) / 30 / 6
    slack = 0.05 if name != "hue" else 0.012
    assert low - slack < found.min() < low + slack and high - slack < found.max() < high + slack
    assert abs(found.mean() - (low + high) / 2) < 0.05 * (high - low) + slack / 3


def test_colour_changes_come_in_every_order(processor, photo, monkeypatch):
    orders = set()
    original = augmentation_module._recolour

    def watch(crop, augmentation, draws):
        orders.add(tuple(np.argsort(draws[6:10])))
        return original(crop, augmentation, draws)

    monkeypatch.setattr(augmentation_module, "_recolour", watch)
    random_crops(photo, processor, "paper", 0, 0, 200)
    assert len(orders) == 24


def test_bad_options_of_crops(processor, photo):
    with pytest.raises(UnknownNameError, match=r"augmentation 'papre'.*Did you mean 'paper'"):
        random_crops(photo, processor, "papre", 0, 0, 1)
    for start, stop in [(-1, 2), (3, 2)]:
        with pytest.raises(FeatureStoreError, match=f"got {start} and {stop}"):
            random_crops(photo, processor, "code", 0, start, stop)


# ---- mining ---------------------------------------------------------------------------------------


def naive(embeds, label_embed, num_selected):
    """All crops sorted by hand, in fp64."""
    cosines = cosine_similarity(embeds.double(), label_embed.double().unsqueeze(0)).tolist()
    ranked = sorted(range(len(embeds)), key=lambda number: (-cosines[number], number))
    return ranked[:num_selected], ranked[::-1][:num_selected]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize(("num_crops", "num_selected"), [(2, 1), (40, 20), (70, 5)])
def test_streamed_choice_is_that_of_all_crops(shared_model, photo, augmentation, num_crops, num_selected):
    label_embed = shared_model.text_bank.label_embeds[2] * 3  # of any length
    every = embed_images(
        shared_model, random_crops(photo, shared_model.image_processor, augmentation, 5, 0, num_crops)
    )
    positives, negatives = naive(every, label_embed, num_selected)
    for chunk_size in (7, 64):
        mined = mine_crops(
            lambda pixels: embed_images(shared_model, pixels),
            photo,
            shared_model.image_processor,
            label_embed,
            num_crops=num_crops,
            num_selected=num_selected,
            augmentation=augmentation,
            seed=5,
            chunk_size=chunk_size,
        )
        assert mined.positive_crops.tolist() == positives and mined.negative_crops.tolist() == negatives
        torch.testing.assert_close(mined.positives, every[positives], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mined.negatives, every[negatives], rtol=1e-3, atol=1e-4)


def mine(encode, photo, processor, **options):
    options = {"num_crops": 20, "num_selected": 4, **options}
    return mine_crops(encode, photo, processor, torch.tensor([1.0, 0.0]), **options)


@pytest.mark.parametrize("chunk_size", [1, 3, 20, 50])
def test_ties_go_by_number_whatever_the_chunks(photo, processor, chunk_size):
    """Cosines take three values; among equals, positives are the first crops and negatives the last."""
    seen = []

    def encode(pixels):
        numbers = torch.arange(len(seen), len(seen) + len(pixels))
        seen.extend(numbers.tolist())
        return torch.stack([(numbers % 3 - 1).float(), torch.ones(len(pixels))], dim=1)

    mined = mine(encode, photo, processor, chunk_size=chunk_size)
    assert seen == list(range(20))
    assert mined.positive_crops.tolist() == [2, 5, 8, 11]
    assert mined.negative_crops.tolist() == [18, 15, 12, 9]


def test_crops_all_alike_are_still_told_apart(photo, processor):
    mined = mine(lambda pixels: torch.ones(len(pixels), 2), photo, processor, num_selected=10, chunk_size=3)
    assert mined.positive_crops.tolist() == list(range(10))
    assert mined.negative_crops.tolist() == list(range(19, 9, -1))


def test_no_more_than_a_chunk_is_encoded_at_once(photo, processor):
    sizes = []
    mine(lambda pixels: sizes.append(len(pixels)) or torch.ones(len(pixels), 2), photo, processor, chunk_size=8)
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 0}, "num_selected=0"),
        ({"num_selected": 11}, "num_selected=11, num_crops=20"),
        ({"num_crops": 0}, "num_crops=0"),
        ({"chunk_size": 0}, "at least 1, got 0"),
    ],
)
def test_bad_counts(photo, processor, options, message):
    with pytest.raises(FeatureStoreError, match=message):
        mine(lambda pixels: torch.ones(len(pixels), 2), photo, processor, **options)


@pytest.mark.parametrize("label_embed", [[float("nan"), 0.0], [float("inf"), 0.0], [0.0, 0.0]])
def test_label_embedding_that_cannot_be_compared(photo, processor, label_embed):
    with pytest.raises(NonFiniteError, match="label's embedding"):
        mine_crops(
            lambda pixels: torch.ones(len(pixels), 2),
            photo,
            processor,
            torch.tensor(label_embed),
            num_crops=4,
            num_selected=1,
        )


def test_crop_embedding_that_is_not_finite_is_named(photo, processor):
    def encode(pixels):
        embeds = torch.ones(len(pixels), 2)
        embeds[2] = float("nan")
        return embeds

    with pytest.raises(NonFiniteError, match="crop 2 is NaN"):
        mine(encode, photo, processor, chunk_size=8)


# ---- features of crops ----------------------------------------------------------------------------


def test_crop_features_are_those_of_each_image_alone(store, shared_model, images):
    label_embeds, labels = shared_model.text_bank.label_embeds, [4, 0, 1, 2, 2, 19, 3]
    features = crop_features(store, shared_model, images, labels, label_embeds, **OPTIONS)
    assert features.rows.tolist() == list(range(7))
    shapes = {name: tuple(tensor.shape) for name, tensor in features.tensors.items()}
    assert shapes == {
        "image_embeds": (7, 256),
        "positives": (7, 3, 256),
        "negatives": (7, 3, 256),
        "positive_crops": (7, 3),
        "negative_crops": (7, 3),
    }
    torch.testing.assert_close(features.image_embeds, embed_images(shared_model, images), rtol=1e-3, atol=1e-4)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        every = embed_images(shared_model, random_crops(image, shared_model.image_processor, "code", 0, 0, 9))
        positives, negatives = naive(every, label_embeds[label], 3)
        assert features.tensors["positive_crops"][row].tolist() == positives
        assert features.tensors["negative_crops"][row].tolist() == negatives
        assert torch.equal(features.tensors["positives"][row], every[positives])
        assert torch.equal(features.tensors["negatives"][row], every[negatives])


def test_crops_do_not_depend_on_the_place_in_the_dataset(store, tiny, images):
    label_embeds = tiny.text_bank.label_embeds
    forward = crop_features(store, tiny, images, list(range(7)), label_embeds, **OPTIONS)
    backward = crop_features(store, tiny, images[::-1], list(range(6, -1, -1)), label_embeds, **OPTIONS)
    for name, tensor in forward.tensors.items():
        assert torch.equal(tensor, backward.tensors[name].flip(0))


def test_view_features_are_the_first_crops(store, tiny, images):
    features = view_features(store, tiny, images, num_views=70, augmentation="paper", seed=2)
    assert {name: tuple(tensor.shape) for name, tensor in features.tensors.items()} == {
        "image_embeds": (7, 24),
        "views": (7, 70, 24),
    }
    crops = torch.stack([random_crops(image, tiny.image_processor, "paper", 2, 0, 70) for image in images])
    wanted = embed_images(tiny, crops.flatten(0, 1)).reshape(7, 70, 24)
    torch.testing.assert_close(features.tensors["views"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.image_embeds, embed_images(tiny, images), rtol=1e-4, atol=1e-5)


def test_everything_that_decides_crop_features_is_in_the_key(store, tiny, images, monkeypatch):
    def folder(labels=(0, 1, 2), label_embeds=tiny.text_bank.label_embeds, dataset=images[:3], **options):
        options = {**OPTIONS, **options}
        return crop_features(store, tiny, dataset, labels, label_embeds, **options).folder

    base = folder()
    assert folder(labels=torch.tensor([0, 1, 2])) == base == folder(label_embeds=tiny.text_bank.label_embeds.clone())
    others = [
        folder(labels=(0, 1, 3)),
        folder(label_embeds=tiny.text_bank.label_embeds.roll(1, 0)),
        folder(label_embeds=tiny.text_bank.label_embeds.double()),
        folder(dataset=images[1:4]),
        folder(num_crops=10),
        folder(num_selected=2),
        folder(augmentation="paper"),
        folder(seed=1),
        view_features(store, tiny, images[:3], num_views=9, augmentation="code", seed=0).folder,
        view_features(store, tiny, images[:3], num_views=8, augmentation="code", seed=0).folder,
        view_features(store, tiny, images[:3], num_views=9, augmentation="paper", seed=0).folder,
        view_features(store, tiny, images[:3], num_views=9, augmentation="code", seed=1).folder,
        store.image_features(tiny, images[:3]).folder,
    ]
    monkeypatch.setitem(AUGMENTATIONS, "code", replace(AUGMENTATIONS["code"], flip=0.1))
    others.append(folder())
    assert len({base, *others}) == len(others) + 1


def test_stored_crops_are_not_made_again(store, tiny, images, monkeypatch):
    arguments = (store, tiny, images, [0] * 7, tiny.text_bank.label_embeds)
    first = crop_features(*arguments, **OPTIONS)
    monkeypatch.setattr(crops_module, "mine_crops", lambda *_, **__: pytest.fail("made again"))
    again = crop_features(*arguments, **OPTIONS)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_processes_share_the_crops(store, tiny, images, make_model, tiny_clip, tmp_path):
    class Turn:
        num_processes = 2
        barrier = threading.Barrier(2)

        def __init__(self, process_index):
            self.process_index = process_index
            self.wait_for_everyone = self.barrier.wait

    found = {}

    def work(rank):
        model = make_model(tiny_clip)
        arguments = (store, model, images, [0] * 7, model.text_bank.label_embeds)
        found[rank] = crop_features(*arguments, **OPTIONS, accelerator=Turn(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = crop_features(
        FeatureStore(tmp_path / "alone", 3), tiny, images, [0] * 7, tiny.text_bank.label_embeds, **OPTIONS
    )
    for features in found.values():
        assert features.tensors.keys() == alone.tensors.keys()
        assert all(torch.equal(features.tensors[name], tensor) for name, tensor in alone.tensors.items())


def test_damaged_images_are_left_out(store, tiny, images, warned):
    contents = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        contents.append(stream.getvalue())
    contents[1], contents[4] = contents[1][:900], b"text"
    features = datasets.Features({"photo": datasets.Image()})
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": c, "path": None} for c in contents]}, features=features)
    found = crop_features(
        store, tiny, rows, list(range(7)), tiny.text_bank.label_embeds, **OPTIONS, image_column="photo"
    )
    assert found.rows.tolist() == [0, 2, 3, 5, 6] and list(found.skipped) == [1, 4] and len(warned) == 1
    whole = crop_features(store, tiny, images, list(range(7)), tiny.text_bank.label_embeds, **OPTIONS)
    assert all(torch.equal(tensor, whole.tensors[name][found.rows]) for name, tensor in found.tensors.items())


def test_nothing_to_crop(store, tiny):
    for dataset in ([], [b"damaged"]):
        labels = [0] * len(dataset)
        features = crop_features(store, tiny, dataset, labels, tiny.text_bank.label_embeds, **OPTIONS)
        assert features.tensors["positives"].shape == (0, 3, 24)
        assert features.tensors["negative_crops"].shape == (0, 3)
        assert features.tensors["negative_crops"].dtype == torch.int64
        views = view_features(store, tiny, dataset, num_views=2, augmentation="code", seed=0)
        assert views.tensors["views"].shape == (0, 2, 24) and views.image_embeds.shape == (0, 24)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0] * 6, "6 labels for 7 rows"), ([0, 0, -1, 0, 0, 0, 0], "Row 2 has label -1"), ([20] * 7, "classes 0 to 19")],
)
def test_labels_that_do_not_fit(store, tiny, images, labels, message):
    with pytest.raises(FeatureStoreError, match=message):
        crop_features(store, tiny, images, labels, tiny.text_bank.label_embeds, **OPTIONS)


def test_bad_options_come_before_any_work(store, tiny, images, monkeypatch):
    label_embeds = tiny.text_bank.label_embeds
    monkeypatch.setattr(store, "collect", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(FeatureStoreError, match="num_selected=5, num_crops=9"):
        crop_features(store, tiny, images, [0] * 7, label_embeds, **{**OPTIONS, "num_selected": 5})
    with pytest.raises(UnknownNameError, match="'cod'"):
        crop_features(store, tiny, images, [0] * 7, label_embeds, **{**OPTIONS, "augmentation": "cod"})
    with pytest.raises(FeatureStoreError, match=r"\[classes, width\], got shape \(24,\)"):
        crop_features(store, tiny, images, [0] * 7, label_embeds[0], **OPTIONS)
    with pytest.raises(NonFiniteError, match="label_embeds holds NaN"):
        crop_features(store, tiny, images, [0] * 7, label_embeds.clone().fill_(float("nan")), **OPTIONS)
    with pytest.raises(FeatureStoreError, match="num_views must be at least 1, got 0"):
        view_features(store, tiny, images, num_views=0, augmentation="code", seed=0)


def test_poisoned_model_names_the_row(store, tiny, images):
    torch.nn.init.constant_(tiny.clip.visual_projection.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="Row 0: The embedding of crop 0"):
        crop_features(store, tiny, images, [0] * 7, tiny.text_bank.label_embeds, **OPTIONS)
