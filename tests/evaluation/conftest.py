"""Fixtures of the runner's tests: a tiny model with four labels, and few images of each role."""

import datasets
import pytest
from small_benchmarks import NAMES, WORDS, write_images

from hf_oodclip import OODCLIPForImageClassification


@pytest.fixture(scope="module")
def dataset_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def model(tiny_clip):
    return OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS).eval()


@pytest.fixture(scope="module")
def jpegs(id_dataset, dataset_cache):
    return [each["bytes"] for each in id_dataset.cast_column("image", datasets.Image(decode=False))[:120]["image"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory, jpegs, dataset_cache):
    """Four classes of 12, a shifted set of two of them, 24 images to calibrate on, three OOD sets."""
    root, content = tmp_path_factory.mktemp("data"), iter(jpegs)
    for folder, count in (("id", 12), ("few", 2), ("calibration", 6)):
        for name in NAMES:
            write_images(root / folder / name, [next(content) for _ in range(count)])
    for name in NAMES[:2]:
        write_images(root / "shifted" / name, [next(content) for _ in range(3)])
    write_images(root / "near", [next(content) for _ in range(7)])
    write_images(root / "far", [next(content) for _ in range(5)])
    rows = {"image": [{"bytes": next(content), "path": None} for _ in range(6)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "far.parquet")
    return root
