"""Image features on disk: the same as computed at once, never stale, and whole after every accident."""

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_oodclip.dataset_images import image_reader
from hf_oodclip.encoders import vision_tower_fingerprint
from hf_oodclip.errors import FeatureStoreError, ImageReadError, NonFiniteError, UnknownNameError
from hf_oodclip.feature_store import (
    FeatureRows,
    FeatureStore,
    dataset_fingerprint,
    features_key,
)
from hf_oodclip.images import load_image


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", shard_rows=4)


@pytest.fixture(scope="module")
def images(real_images):
    # Copies know of no JPEG they came from, which datasets would make of them again.
    return [image.copy() for image in real_images["id"][:11]]


@pytest.fixture(scope="module")
def rows(id_dataset):
    return id_dataset.select(range(0, 800, 73))  # 11 rows


@pytest.fixture
def tiny(make_model, tiny_clip):
    return make_model(tiny_clip)


def squares(rows):
    """A compute function whose features are known."""
    numbers = torch.tensor(rows, dtype=torch.float32).unsqueeze(1)
    return FeatureRows({"image_embeds": numbers, "squares": numbers**2}, rows, {})


def spy(compute=squares):
    calls = []

    def spied(rows):
        calls.append(rows)
        return compute(rows)

    return spied, calls


def shards(features):
    return sorted(features.folder.glob("shard-*.safetensors"))


def content_of(features):
    return {path.name: path.read_bytes() for path in shards(features)}


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def damaged_rows(images, damaged=(0, 5, 6)):
    """A dataset whose images at some rows are cut off, empty, or text."""
    wrong = [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"not an image"]
    cells = [{"bytes": encoded(image), "path": None} for image in images]
    for row, spoil in zip(damaged, wrong, strict=True):
        cells[row]["bytes"] = spoil(cells[row]["bytes"])
    return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))


# ---- collect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 12])
def test_features_come_in_order_and_are_computed_once(store, num_rows):
    compute, calls = spy()
    first = store.collect({"a": 1}, num_rows, compute)
    assert calls == [list(range(start, min(start + 4, num_rows))) for start in range(0, max(num_rows, 1), 4)]
    again = store.collect({"a": 1}, num_rows, compute)
    assert len(calls) == len(shards(first))
    for features in (first, again):
        assert features.rows.tolist() == list(range(num_rows)) and features.rows.dtype == torch.int64
        assert features.image_embeds.shape == (num_rows, 1) and len(features) == num_rows
        assert features.tensors["squares"].flatten().tolist() == [row**2 for row in range(num_rows)]
        assert features.skipped == {}


@pytest.mark.parametrize("num_rows", [0, 3, 12])
def test_shards_come_one_at_a_time_as_they_are_computed(store, num_rows):
    compute, calls = spy()
    found = []
    for number, shard in enumerate(store.shards({"a": 1}, num_rows, compute), 1):
        assert len(calls) == number
        found.append(shard)
    whole = store.collect({"a": 1}, num_rows, compute)
    assert len(calls) == len(found) == max(1, num_rows // 4)
    assert torch.equal(torch.cat([shard.tensors["squares"] for shard in found]), whole.tensors["squares"])
    assert [row for shard in found for row in shard.rows] == list(range(num_rows))


def test_key_is_written_down_and_every_part_of_it_counts(store):
    folders = {
        made.collect(key, num_rows, squares).folder
        for made, key, num_rows in [
            (store, {"a": 1}, 5),
            (store, {"a": 2}, 5),
            (store, {"a": 1}, 6),
            (FeatureStore(store.folder, shard_rows=5), {"a": 1}, 5),
        ]
    }
    assert len(folders) == 4
    assert store.collect({"b": [1], "a": {"c": None}}, 5, squares).folder == (
        store.collect({"a": {"c": None}, "b": (1,)}, 5, squares).folder
    )
    written = json.loads((store.collect({"a": 2}, 5, squares).folder / "key.json").read_text())
    assert written["key"] == {"a": 2} and (written["num_rows"], written["shard_rows"]) == (5, 4)


def test_key_that_is_not_json(store):
    with pytest.raises(FeatureStoreError, match=r"JSON.*Tensor"):
        store.collect({"a": torch.ones(1)}, 5, squares)


def test_only_lost_shards_are_computed_again(store):
    whole = content_of(store.collect({}, 10, squares))
    features = store.collect({}, 10, squares)
    shards(features)[1].unlink()
    compute, calls = spy()
    assert content_of(store.collect({}, 10, compute)) == whole
    assert calls == [[4, 5, 6, 7]]


def cut(content):
    return content[: len(content) * 2 // 3]


def flip_last_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [cut, flip_last_bit, lambda content: b"", lambda content: content.replace(b"{}", b"[]")]
)
def test_damaged_shard_is_computed_again_with_a_warning(store, damage, warned):
    features = store.collect({}, 10, squares)
    whole = content_of(features)
    shards(features)[1].write_bytes(damage(whole["shard-00001.safetensors"]))
    compute, calls = spy()
    restored = store.collect({}, 10, compute)
    assert calls == [[4, 5, 6, 7]] and content_of(restored) == whole
    assert len(warned) == 1 and "shard-00001" in warned[0] and "computed again" in warned[0]


def test_failure_keeps_whole_shards_and_resumes(store):
    def failing(rows):
        if 8 in rows:
            raise RuntimeError("power cut")
        return squares(rows)

    with pytest.raises(RuntimeError, match="power cut"):
        store.collect({}, 10, failing)
    compute, calls = spy()
    resumed = store.collect({}, 10, compute)
    assert calls == [[8, 9]]
    assert content_of(resumed) == content_of(FeatureStore(store.folder / "other", 4).collect({}, 10, squares))


def test_leftovers_go_when_old_and_stay_when_young(store):
    folder = store.collect({}, 3, squares).folder
    old, young = folder / "shard-00000.safetensors.aa.tmp", folder / "shard-00000.safetensors.bb.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert store.collect({}, 3, squares).rows.tolist() == [0, 1, 2]
    assert not old.exists() and young.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda made: FeatureRows(made.tensors, made.rows[:-1], {}),
        lambda made: FeatureRows(made.tensors, [*made.rows[:-1], 99], {}),
        lambda made: FeatureRows(made.tensors, made.rows[::-1], {}),
        lambda made: FeatureRows(made.tensors, made.rows, {made.rows[0]: "both kept and skipped"}),
        lambda made: FeatureRows({"image_embeds": made.tensors["image_embeds"][1:]}, made.rows, {}),
        lambda made: FeatureRows({"rows": made.tensors["image_embeds"]}, made.rows, {}),
        lambda made: FeatureRows({"number": torch.tensor(1.0)}, made.rows, {}),
    ],
)
def test_wrong_counts_are_errors_and_nothing_is_kept(store, change):
    with pytest.raises(FeatureStoreError, match=r"each row must|one entry a row"):
        store.collect({}, 3, lambda rows: change(squares(rows)))
    assert not list(store.folder.rglob("*.safetensors"))


def test_shards_of_different_width(store):
    def widening(rows):
        return FeatureRows({"image_embeds": torch.ones(len(rows), 1 + rows[0])}, rows, {})

    with pytest.raises(FeatureStoreError, match="Shards 0 and 1"):
        store.collect({}, 5, widening)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_their_rows(store, value):
    def poisoned(rows):
        made = squares(rows)
        made.tensors["squares"][[row in (5, 7) for row in rows]] = value
        return made

    with pytest.raises(NonFiniteError, match=r"'squares' is NaN or infinite on 2 rows: 5, 7\."):
        store.collect({}, 10, poisoned)
    assert [path.name for path in store.folder.rglob("*.safetensors")] == ["shard-00000.safetensors"]


def test_all_kinds_of_numbers_come_back(store):
    made = {
        "bfloat": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2),
        "double": torch.arange(3, dtype=torch.float64)[:, None, None],
        "whole": torch.tensor([3, -1, 2**40]),
        "yes": torch.tensor([True, False, True]),
        "strided": torch.arange(12.0).reshape(4, 3).T,
        "shared": torch.ones(1, 5).expand(3, 5),
        "no width": torch.empty(3, 0),
    }
    for _ in range(2):
        found = store.collect({}, 3, lambda rows: FeatureRows(made, rows, {})).tensors
        assert found.keys() == made.keys()
        for name, tensor in made.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_returned_features_are_the_callers_to_change(store):
    store.collect({}, 3, squares).image_embeds.zero_()
    assert store.collect({}, 3, squares).image_embeds.flatten().tolist() == [0, 1, 2]


def test_skipped_rows_come_back_with_one_warning(store, warned):
    def skipping(rows):
        kept = [row for row in rows if row % 3]
        return FeatureRows(squares(kept).tensors, kept, {row: f"bad {row}" for row in rows if row % 3 == 0})

    for _ in range(2):
        warned.clear()
        features = store.collect({}, 8, skipping)
        assert features.skipped == {0: "bad 0", 3: "bad 3", 6: "bad 6"}
        assert features.rows.tolist() == [1, 2, 4, 5, 7] == features.image_embeds.flatten().tolist()
        assert len(warned) == 1 and "3 of 8" in warned[0] and "row 0: bad 0" in warned[0]
    store.collect({}, 8, skipping, accelerator=Turn(1, 2))
    assert len(warned) == 1  # said by the first process alone


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FeatureStoreError, match="HF_OODCLIP_CACHE"):
        FeatureStore(tmp_path / "file").collect({}, 3, squares)


def test_complete_features_are_read_from_a_folder_nobody_may_write(store):
    folder = store.collect({}, 3, squares).folder
    folder.chmod(0o500)
    try:
        assert len(store.collect({}, 3, lambda rows: pytest.fail("computed again"))) == 3
    finally:
        folder.chmod(0o700)


def test_default_folder_follows_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_OODCLIP_CACHE", str(tmp_path))
    assert FeatureStore().folder == tmp_path / "features"


def test_shard_rows_must_be_positive():
    with pytest.raises(FeatureStoreError, match="at least 1, got 0"):
        FeatureStore(shard_rows=0)


def test_many_writers_at_once(store, warned):
    """Every writer sees the right features, whoever wrote which shard, and no file is left half."""
    results, errors = [], []
    start = threading.Barrier(6)

    def slow(rows):
        time.sleep(0.001)
        return squares(rows)

    def work():
        start.wait()
        try:
            for number in range(5):
                results.append(store.collect({"round": number}, 30, slow).image_embeds.flatten().tolist())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not warned
    assert results == [list(range(30))] * 30
    assert not list(store.folder.rglob("*.tmp"))


class Turn:
    """An accelerator as the store sees it, one of several in this process."""

    def __init__(self, process_index, num_processes, wait=lambda: None):
        self.process_index, self.num_processes, self.wait_for_everyone = process_index, num_processes, wait


def test_processes_take_turns_with_the_shards(store):
    barrier = threading.Barrier(3)
    calls, found = [[], [], []], [None] * 3

    def work(rank):
        compute, calls[rank] = spy()
        found[rank] = store.collect({}, 27, compute, accelerator=Turn(rank, 3, barrier.wait))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[rows[0] // 4 for rows in called] for called in calls] == [[0, 3, 6], [1, 4], [2, 5]]
    for features in found:
        assert features.rows.tolist() == list(range(27)) == features.image_embeds.flatten().tolist()


def test_a_process_that_fails_does_not_leave_the_others_waiting(store):
    barrier = threading.Barrier(2)
    raised = [None, None]

    def work(rank):
        def compute(rows):
            return FeatureRows({"image_embeds": torch.full((len(rows), 1), torch.nan if rank else 1.0)}, rows, {})

        try:
            store.collect({}, 8, compute, accelerator=Turn(rank, 2, lambda: barrier.wait(60)))
        except Exception as error:
            raised[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(raised[1], NonFiniteError)
    assert isinstance(raised[0], FeatureStoreError) and "Shard 1 that process 1 of 2" in str(raised[0])


def test_processes_that_do_not_share_the_folder(store):
    with pytest.raises(FeatureStoreError, match=r"Shard 1 that process 1 of 2.*share"):
        store.collect({}, 8, squares, accelerator=Turn(0, 2))


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_image_features_are_those_of_a_plain_forward_pass(store, shared_model, rows, batch_size):
    features = store.image_features(shared_model, rows, batch_size=batch_size)
    pixels = shared_model.image_processor(images=rows["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = shared_model.clip.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features.image_embeds, wanted, rtol=1e-4, atol=1e-5)
    assert not features.image_embeds.requires_grad and features.rows.tolist() == list(range(11))


def test_every_kind_of_dataset_gives_the_same_features(tiny, images, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    by_path = {"image": [str(path) for path in paths]}
    kinds = [
        images,
        [np.asarray(image) for image in images],
        np.stack([np.asarray(image) for image in images]),
        paths,
        [path.read_bytes() for path in paths],
        [{"image": image, "label": 0} for image in images],
        [{"bytes": None, "path": str(path)} for path in paths],
        datasets.Dataset.from_dict(by_path),
        datasets.Dataset.from_dict(by_path).cast_column("image", datasets.Image()),
        datasets.Dataset.from_dict(by_path).cast_column("image", datasets.Image(decode=False)),
        datasets.Dataset.from_dict({"image": images}).with_transform(lambda row: {"pixel_values": [0]}),
        datasets.Dataset.from_dict({"label": [0] * 11, "image": images}).with_format("torch"),
    ]
    found = [
        FeatureStore(tmp_path / f"store {number}").image_features(tiny, kind) for number, kind in enumerate(kinds)
    ]
    for features in found:
        assert features.skipped == {} and torch.equal(features.image_embeds, found[0].image_embeds)


def test_shards_of_images_are_those_of_all_images(store, tiny, images, warned):
    rows = damaged_rows(images)
    shards_of_images = list(store.image_shards(tiny, rows, tower=vision_tower_fingerprint(tiny.clip)))
    assert len(warned) == 1 and "3 of 11" in warned[0]
    written = {path: path.stat().st_mtime_ns for path in store.folder.rglob("shard-*")}
    whole = store.image_features(tiny, rows)
    # The same key, so that nothing is computed again.
    assert written == {path: path.stat().st_mtime_ns for path in store.folder.rglob("shard-*")}
    assert torch.equal(torch.cat([shard.tensors["image_embeds"] for shard in shards_of_images]), whole.image_embeds)
    assert [row for shard in shards_of_images for row in shard.rows] == whole.rows.tolist()


def test_half_and_double_precision(store, make_model, tiny_clip, images):
    embeds = {
        dtype: store.image_features(make_model(tiny_clip, dtype=dtype), images).image_embeds
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert [tensor.dtype for tensor in embeds.values()] == [torch.float32, torch.float32, torch.float64]
    torch.testing.assert_close(embeds[torch.float64].float(), embeds[torch.float32], rtol=1e-4, atol=1e-5)
    assert not torch.equal(embeds[torch.bfloat16], embeds[torch.float32])  # not one under the key of the other
    torch.testing.assert_close(embeds[torch.bfloat16], embeds[torch.float32], rtol=0.1, atol=0.05)


def test_training_mode_is_left_alone_and_without_effect(store, tiny, images):
    tiny.train()
    tiny.clip.vision_model.eval()
    before = [module.training for module in tiny.modules()]
    store.image_features(tiny, images)
    assert [module.training for module in tiny.modules()] == before


def test_damaged_images_in_the_middle(store, tiny, images, warned):
    features = store.image_features(tiny, damaged_rows(images), batch_size=2)
    sound = [row for row in range(11) if row not in (0, 5, 6)]
    assert features.rows.tolist() == sound and list(features.skipped) == [0, 5, 6]
    assert len(warned) == 1 and "3 of 11" in warned[0] and "row 0" in warned[0]
    whole = store.image_features(tiny, images, batch_size=1)
    torch.testing.assert_close(features.image_embeds, whole.image_embeds[sound], rtol=1e-4, atol=1e-5)


def test_nothing_but_damaged_images(store, tiny):
    features = store.image_features(tiny, [b"one", b"two", b"three", b"four", b"five"])
    assert features.image_embeds.shape == (0, 24) and list(features.skipped) == [0, 1, 2, 3, 4]


def test_no_images(store, tiny, rows):
    features = store.image_features(tiny, rows.select([]))
    assert features.image_embeds.shape == (0, 24) and len(features) == 0 and features.skipped == {}
    assert len(store.image_features(tiny, [])) == 0


def test_missing_file_is_skipped_until_it_is_there(store, tiny, images, tmp_path):
    paths = [str(tmp_path / "there.png"), str(tmp_path / "later.png")]
    images[0].save(paths[0])
    for dataset in (paths, datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())):
        (tmp_path / "later.png").unlink(missing_ok=True)
        assert "does not exist" in store.image_features(tiny, dataset).skipped[1]
        images[1].save(paths[1])
        assert store.image_features(tiny, dataset).rows.tolist() == [0, 1]


def test_trouble_that_may_pass_is_no_damage(store, tiny, images, tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    images[0].save(path)

    def busy(*_):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", busy)
        with pytest.raises(ImageReadError, match="Too many open files"):
            store.image_features(tiny, [path])
    assert store.image_features(tiny, [path]).rows.tolist() == [0]


def test_read_images_are_upright_and_rgb(images):
    turned = images[0].copy()
    turned.getexif()[0x0112] = 6
    stream = io.BytesIO()
    turned.convert("L").save(stream, "PNG", exif=turned.getexif())
    read = image_reader([stream.getvalue()])(0)
    assert read.mode == "RGB" and np.array_equal(np.asarray(read), np.asarray(load_image(Image.open(stream))))
    assert not np.array_equal(np.asarray(read.convert("L")), np.asarray(images[0].convert("L")))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (datasets.Dataset.from_dict({"image": ["a"]}).to_iterable_dataset(), r"take a sample into a Dataset"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"image": ["a"]})), r"\['train'\] at once"),
        (datasets.Dataset.from_dict({"image": ["a"]})["image"], r"image_column='image'"),
        ("image.png", r"got str; wrap one image as \[image\]"),
        (iter([b"a"]), r"sequence of images, got list_iterator"),
        (["https://example.com/cat.png"], r"may change.*download"),
    ],
)
def test_datasets_that_cannot_be_stored(store, tiny, dataset, message):
    with pytest.raises(FeatureStoreError, match=message):
        store.image_features(tiny, dataset)


def test_column_that_is_not_there(store, tiny, rows):
    with pytest.raises(UnknownNameError, match=r"'imgae'.*Did you mean 'image'"):
        store.image_features(tiny, rows, image_column="imgae")
    with pytest.raises(UnknownNameError, match="'image'"):
        store.image_features(tiny, [{"picture": b"a"}])


def test_batch_size_must_be_positive(store, tiny, rows):
    with pytest.raises(ImageReadError, match="at least 1, got 0"):
        store.image_features(tiny, rows, batch_size=0)


def test_poisoned_weights_name_rows(store, tiny, rows):
    torch.nn.init.constant_(tiny.clip.visual_projection.weight, float("nan"))
    with pytest.raises(NonFiniteError, match=r"4 rows: 0, 1, 2, 3\."):
        store.image_features(tiny, rows)


# ---- keys ---------------------------------------------------------------------------------------


def lora(model, **options):
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=r".*vision_model.*q_proj", init_lora_weights=False, **options)
    inject_adapter_in_model(config, model.clip)
    return model


def adapters(model, enabled):
    for module in model.clip.vision_model.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(enabled)


def test_same_again_is_the_same_key(tiny, rows, make_model, tiny_clip):
    assert features_key(tiny, rows) == features_key(make_model(tiny_clip), rows)


def test_text_side_does_not_count(tiny, rows):
    before = features_key(tiny, rows)
    tiny.set_labels(["cat", "dog"])
    with torch.no_grad():
        tiny.clip.text_projection.weight.mul_(2)
    assert features_key(tiny, rows) == before


def test_every_vision_weight_counts(tiny, rows):
    seen = {json.dumps(features_key(tiny, rows))}
    weights = [*tiny.clip.vision_model.parameters(), *tiny.clip.visual_projection.parameters()]
    for weight in weights:
        with torch.no_grad():
            weight.view(-1)[-1] += 1
        seen.add(json.dumps(features_key(tiny, rows)))
    assert len(seen) == len(weights) + 1


def test_adapters_count_with_their_switch(store, tiny, rows):
    plain = store.image_features(tiny, rows)
    lora(tiny)
    tuned = store.image_features(tiny, rows)
    adapters(tiny, False)
    off = store.image_features(tiny, rows)
    adapters(tiny, True)
    on = store.image_features(tiny, rows)
    assert len({features.folder for features in (plain, tuned, off)}) == 3 and on.folder == tuned.folder
    assert torch.equal(on.image_embeds, tuned.image_embeds) and torch.equal(off.image_embeds, plain.image_embeds)
    assert not torch.allclose(tuned.image_embeds, plain.image_embeds, atol=1e-3)


def test_autocast_counts(tiny, rows):
    before = features_key(tiny, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert features_key(tiny, rows) != before


@pytest.mark.parametrize(
    "settings", [{"image_mean": (0.5, 0.5, 0.5)}, {"resample": 2}, {"do_normalize": False}, {"do_center_crop": False}]
)
def test_processor_counts(tiny, rows, settings, monkeypatch):
    before = features_key(tiny, rows)
    for name, value in settings.items():
        monkeypatch.setattr(tiny.image_processor, name, value)
    after = features_key(tiny, rows)
    assert after["image_processor"] != before["image_processor"] and after["vision_tower"] == before["vision_tower"]


def test_versions_and_extras_count(tiny, rows, monkeypatch):
    before = features_key(tiny, rows)
    assert features_key(tiny, rows, seed=1) != features_key(tiny, rows, seed=2) != before
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert features_key(tiny, rows) != before


def test_changed_dataset_gives_new_features(store, tiny, rows):
    first = store.image_features(tiny, rows)
    other = rows.select(range(10, -1, -1))
    second = store.image_features(tiny, other)
    torch.testing.assert_close(second.image_embeds, first.image_embeds.flip(0), rtol=1e-4, atol=1e-5)
    assert first.folder != second.folder


def spoil_pixel(image):
    changed = image.copy()
    changed.putpixel((3, 3), tuple(255 - level for level in changed.getpixel((3, 3))))
    return changed


def test_content_of_images_in_memory_counts(images):
    def forms(image):
        palette = image.quantize(16)
        return [image, np.asarray(image), encoded(image), {"image": image}, palette, str(len(encoded(image)))]

    for one, other in zip(forms(images[0]), forms(spoil_pixel(images[0])), strict=True):
        assert dataset_fingerprint([one, one]) == dataset_fingerprint([copy.copy(one), one])
        assert len({dataset_fingerprint(cells) for cells in ([one], [other], [one, other], [other, one])}) == 4


def test_content_is_not_run_together():
    assert dataset_fingerprint([b"a|b", b"c"]) != dataset_fingerprint([b"a", b"b|c"])
    assert dataset_fingerprint([b"ab", b""]) != dataset_fingerprint([b"a", b"b"])


def test_palette_transparency_and_rotation_count(images):
    plain = images[0].quantize(16)
    recoloured, see_through, turned = plain.copy(), plain.copy(), plain.copy()
    recoloured.putpalette([255 - level for level in plain.getpalette()])
    see_through.info["transparency"] = 0
    turned.getexif()[0x0112] = 6
    assert len({dataset_fingerprint([image]) for image in (plain, recoloured, see_through, turned)}) == 4


def test_change_of_a_file_counts(images, tmp_path):
    path = tmp_path / "image.png"
    for dataset in ([path], [str(path)], datasets.Dataset.from_dict({"image": [str(path)]})):
        path.unlink(missing_ok=True)
        seen = [dataset_fingerprint(dataset)]
        for image in images[:2]:
            image.save(path)
            os.utime(path, ns=(10**18, 10**18 + len(seen)))
            seen += [dataset_fingerprint(dataset), dataset_fingerprint(dataset)]
        assert len(set(seen)) == 3 and seen[1] == seen[2] and seen[3] == seen[4]


# ---- kill -9 and real processes -------------------------------------------------------------------

SCRIPT = """
import sys, datasets, torch
torch.set_num_threads(1)
import hf_oodclip
from accelerate import Accelerator
from hf_oodclip.assets import images_path
from hf_oodclip.feature_store import FeatureStore
folder, wanted = sys.argv[1], int(sys.argv[2])
accelerator = Accelerator(cpu=True)
if accelerator.num_processes != wanted:
    sys.exit(f"{accelerator.num_processes} processes")
rows = datasets.load_dataset("parquet", data_files=images_path("id"), split="train", cache_dir=sys.argv[3])
rows = rows.select(range(200))
model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(hf_oodclip.pocket_path())
print("ready", flush=True)
features = FeatureStore(folder, shard_rows=7).image_features(model, rows, batch_size=4, accelerator=accelerator)
assert features.rows.tolist() == list(range(200))
print("done", features.folder, float(features.image_embeds.double().sum()))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "extract.py"
    path.write_text(SCRIPT)
    return path


def run_script(script, folder, cache, launcher=(sys.executable,), processes=1):
    command = [*launcher, str(script), str(folder), str(processes), str(cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in next(folder.iterdir()).glob("shard-*")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("dataset_cache")


@pytest.fixture(scope="module")
def uninterrupted(script, tmp_path_factory, cache):
    return run_script(script, tmp_path_factory.mktemp("uninterrupted"), cache)


@pytest.mark.slow
def test_killed_at_three_moments_and_resumed(script, tmp_path, cache, uninterrupted):
    folder = tmp_path / "store"
    generator = np.random.default_rng()
    counts = [0]
    for part in range(3):
        # Killed within the next third of the shards, at any point of computing or writing.
        goal = counts[-1] + int(generator.integers(1, 9))
        started = subprocess.Popen(
            [sys.executable, str(script), str(folder), "1", str(cache)], stdout=subprocess.PIPE, text=True
        )
        assert started.stdout.readline() == "ready\n"
        while started.poll() is None and len(list(folder.glob("*/shard-*.safetensors"))) < goal:
            time.sleep(0.001)
        time.sleep(float(generator.uniform(0, 0.02)))
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, f"it had finished before kill {part}"
        found = {path.name: path.read_bytes() for path in folder.glob("*/shard-*.safetensors")}
        assert found.items() <= uninterrupted.items()
        counts.append(len(found))
    assert counts == sorted(counts) and 0 < counts[-1] < len(uninterrupted)
    assert run_script(script, folder, cache) == uninterrupted


@pytest.mark.slow
def test_two_processes_write_what_one_does(script, tmp_path, cache, uninterrupted):
    launcher = [
        *(str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    assert run_script(script, tmp_path / "store", cache, launcher, 2) == uninterrupted


def test_shards_are_plain_safetensors(store, tiny, images):
    features = store.image_features(tiny, damaged_rows(images))
    assert [load_file(path)["rows"].tolist() for path in shards(features)] == [[1, 2, 3], [4, 7], [8, 9, 10]]


def test_moved_store_is_still_good(store, tiny, images, tmp_path):
    before = store.image_features(tiny, images)
    shutil.move(store.folder, tmp_path / "elsewhere")
    compute, calls = spy()
    after = FeatureStore(tmp_path / "elsewhere", shard_rows=4).collect(
        features_key(tiny, images, image_column="image", features="image_embeds"), 11, compute
    )
    assert calls == [] and torch.equal(after.image_embeds, before.image_embeds)
