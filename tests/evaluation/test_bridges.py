"""Our scores as pytorch-ood detectors, against the model's own answers; a stand-in takes the library's place."""

from __future__ import annotations

import sys
import types
from abc import ABC, abstractmethod

import pytest
import torch
from hf_oodclip.evaluation.bridges import to_pytorch_ood

from hf_oodclip import get_score
from hf_oodclip.errors import RunError, ScoreInputError, UnknownNameError


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
