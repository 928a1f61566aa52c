"""Prints what pytorch-ood 0.4.0 says of the inputs of `post_hoc_inputs`: the values `test_pytorch_ood_parity` stores.

    pip install --no-deps pytorch-ood==0.4.0
    python tests/scores/print_pytorch_ood.py

in an environment that has this package. Where a score of theirs is ours times a factor, or its root, the value is
printed as ours.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from post_hoc_inputs import (
    LOGIT_SCALE,
    NUM_ID,
    NUM_LABELS,
    edge_cosines,
    id_images,
    label_embeds,
    new_images,
    waves,
)
from torch import Tensor
from torch.nn.functional import normalize


class _Absent:
    """Stands for torchvision, which pytorch-ood imports for its datasets and networks and no score here uses."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, cls, is_package=True) if name.partition(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        class Module(ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        return Module(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


def import_detectors() -> Any:
    """Return `pytorch_ood.detector`, also where torchvision is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Absent)  # type: ignore[arg-type]
    from pytorch_ood import detector

    return detector


def logits_of(features: Tensor) -> Tensor:
    return LOGIT_SCALE * features.flatten(1) @ label_embeds().T


def of_logits(theirs: Any, logits: Tensor) -> dict[str, Tensor]:
    """Return the scores that look at nothing but logits."""
    return {
        "msp": theirs.MaxSoftmax.score(logits),
        "max_logit": theirs.MaxLogit.score(logits) / LOGIT_SCALE,
        "energy": theirs.EnergyBased.score(logits) / LOGIT_SCALE,
        "entropy": theirs.Entropy.score(logits),
        # A mean over the largest probabilities, where the paper has a sum.
        "gen": 2 * theirs.GEN.score(logits, gamma=0.1, M=2),
    }


def reference_values() -> dict[str, Tensor]:
    """Return the scores of the new images, of ODIN those of other pixels, by the name of the score."""
    theirs = import_detectors()
    # Some of their tensors are made in the default type.
    torch.set_default_dtype(torch.float64)
    id_inputs, classes = id_images()
    known, new = id_inputs.image_embeds, new_images().image_embeds
    assert known is not None and new is not None
    unit, positive = normalize(new, dim=-1), normalize(new.abs(), dim=-1)

    def fitted(detector: Any) -> Tensor:
        return detector.fit_features(known, classes).predict_features(new)

    values = {
        "mcm": theirs.MCM(None, label_embeds(), temperature=0.1).predict_features(new),
        **of_logits(theirs, logits_of(unit)),
        # The distance, where ours is its square.
        "knn": fitted(theirs.KNN(None, k=7)) ** 2,
        # They invert the scatter of the ID images, not its mean, and halve the distance.
        "mahalanobis": 2 * NUM_ID * fitted(theirs.Mahalanobis(None)),
        "rmds": NUM_ID * fitted(theirs.RMD(None)),
        "vim": fitted(theirs.ViM(None, d=4, w=LOGIT_SCALE * label_embeds(), b=torch.zeros(NUM_LABELS))),
    }
    react = theirs.ReAct(backbone=None, head=logits_of, percentile=0.9)
    react.fit_feature_maps(normalize(known, dim=-1)[..., None, None], classes)
    values["react"] = react.predict_feature_maps(unit[..., None, None]) / LOGIT_SCALE
    for variant in ("b", "p", "s"):
        ash = theirs.ASH(None, logits_of, variant=f"ash-{variant}", percentile=0.5)
        values[f"ash {variant}"] = ash.predict_feature_maps(positive[..., None, None]) / LOGIT_SCALE
    weight, pixels = waves(6, 12, 0.19), waves(4, 12, 0.29).reshape(4, 3, 2, 2)
    odin = theirs.ODIN(
        lambda images: logits_of(normalize(images.flatten(1) @ weight.T, dim=-1)),
        eps=0.05,
        temperature=10.0,
        norm_std=[0.5, 0.25, 0.125],
    )
    values["odin"] = odin.predict(pixels)
    for case, cosines in edge_cosines().items():
        values |= {f"{case}, {name}": found for name, found in of_logits(theirs, LOGIT_SCALE * cosines).items()}
    return values


if __name__ == "__main__":
    for name, found in reference_values().items():
        print(f"{name:16}", [float(f"{value:.12g}") for value in found.tolist()])
