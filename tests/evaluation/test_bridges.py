"""Our scores as pytorch-ood detectors, against the model's own answers; where it is not installed, on a stand-in."""

from __future__ import annotations

import sys
import types
from abc import ABC, abstractmethod

import pytest
import torch
from hf_oodclip.evaluation.bridges import to_pytorch_ood
from torch.utils.data import DataLoader, TensorDataset

from hf_oodclip import get_score
from hf_oodclip.errors import RunError, ScoreInputError, UnknownNameError
from hf_oodclip.metrics import detection_metrics


class _Detector(ABC):
    """The part of pytorch-ood's `Detector` that all its versions share, as abstract as the strictest has it."""

    def __call__(self, *args, **kwargs):
        return self.predict(*args, **kwargs)

    @abstractmethod
    def fit(self, data_loader): ...

    @abstractmethod
    def fit_features(self, x, y): ...

    @abstractmethod
    def predict(self, x): ...

    @abstractmethod
    def predict_features(self, x): ...


@pytest.fixture(autouse=True)
def library(monkeypatch):
    try:
        import pytorch_ood.api  # noqa: F401
    except ImportError:
        api = types.ModuleType("pytorch_ood.api")
        api.Detector = _Detector
        monkeypatch.setitem(sys.modules, "pytorch_ood", types.ModuleType("pytorch_ood"))
        monkeypatch.setitem(sys.modules, "pytorch_ood.api", api)


@pytest.mark.parametrize("score", ["mcm", "neglabel", "energy", "gl_mcm", "odin"])
def test_detector_says_what_the_model_says(shared_model, pixel_values, score):
    detector = to_pytorch_ood(score, shared_model)
    expected = shared_model.ood_scores(pixel_values, [score])[score]
    found = detector(pixel_values)
    assert found.shape == (16,) and not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert detector.requires_fit is False
    assert detector.fit([(pixel_values, torch.zeros(16))]) is detector


def test_features_and_images_agree_and_larger_means_ood(shared_model, real_images, pixel_values):
    detector = to_pytorch_ood(get_score("mcm", temperature=0.01), shared_model)
    embeds = shared_model.score_inputs(pixel_values).image_embeds
    torch.testing.assert_close(detector.predict_features(embeds), detector.predict(pixel_values))
    far = shared_model.image_processor(images=real_images["far"], return_tensors="pt")["pixel_values"]
    assert detector(far).mean() > detector(pixel_values).mean()


def test_fitted_score_learns_from_id_images_only(make_model, pixel_values):
    model = make_model()
    given = get_score("knn", k=2)
    detector = to_pytorch_ood(given, model)
    assert detector.requires_fit is True
    with pytest.raises(ScoreInputError, match="fit"):
        detector(pixel_values)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1])
    loader = [(pixel_values[:5], labels[:5]), (pixel_values[5:], labels[5:])]
    assert detector.fit(loader) is detector
    expected = model.fit_score(pixel_values[:8], score=get_score("knn", k=2))
    torch.testing.assert_close(detector(pixel_values), expected(model.score_inputs(pixel_values, score=expected)))
    # The score that was given has learnt nothing.
    assert given.state_dict() == {}


def test_labels_reach_the_score(make_model, pixel_values):
    model = make_model()
    labels = torch.arange(16) // 2
    detector = to_pytorch_ood("mahalanobis", model).fit([(pixel_values, labels)])
    expected = model.fit_score(pixel_values, labels, "mahalanobis")
    torch.testing.assert_close(detector(pixel_values), expected(model.score_inputs(pixel_values, score=expected)))


def test_bad_requests(shared_model, monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'mcm'"):
        to_pytorch_ood("mmc", shared_model)
    with pytest.raises(ScoreInputError, match="'knn' was given no images to fit"):
        to_pytorch_ood("knn", shared_model).fit([])
    monkeypatch.setitem(sys.modules, "pytorch_ood.api", None)
    with pytest.raises(RunError, match="pip install pytorch-ood"):
        to_pytorch_ood("mcm", shared_model)


@pytest.mark.parametrize("name", ["mcm", "neglabel", "knn", "mahalanobis", "gl_mcm"])
def test_inside_a_benchmark_of_the_library_itself(make_model, real_images, name):
    base = pytest.importorskip("pytorch_ood.benchmark.base", exc_type=ImportError)
    model = make_model()
    pixels = {
        kind: model.image_processor(images=images, return_tensors="pt")["pixel_values"]
        for kind, images in real_images.items()
    }
    known, unknown = pixels["id"], torch.cat([pixels["near"], pixels["far"]])
    labels = torch.arange(len(known)) % 4
    ood_labels = torch.full((len(unknown),), -1)

    class Small(base.Benchmark):
        ood_names = ("both",)

        @property
        def train_set(self):
            return TensorDataset(known[:16], labels[:16])

        def test_sets(self, known=True, unknown=True):
            return [TensorDataset(images, numbers)]

    images, numbers = torch.cat([known, unknown]), torch.cat([labels, ood_labels])
    detector = to_pytorch_ood(name, model)
    if detector.requires_fit:
        detector.fit(DataLoader(Small().train_set, batch_size=5))
        scores = model.fit_score(known[:16], labels[:16], name)
        ours = scores(model.score_inputs(images, score=scores))
    else:
        ours = model.ood_scores(images, [name])[name]
    report = Small().evaluate(detector, loader_kwargs={"batch_size": 7})
    theirs = report[0] if isinstance(report, list) else report
    # Their AUPR is the trapezoidal one of OpenOOD.
    expected = detection_metrics(ours[: len(known)], ours[len(known) :], convention="openood")
    keys = {
        "AUROC": "auroc",
        "AUPR-IN": "aupr_in_openood",
        "AUPR-OUT": "aupr_out_openood",
        "FPR95TPR": "fpr95_openood",
    }
    found = {key: theirs[key] for key in keys}
    assert found == pytest.approx({key: expected[metric] for key, metric in keys.items()}, abs=1e-9)
