"""What goes into an ONNX file: one module from pixel values to a decision, and its trace."""

from __future__ import annotations

import copy
import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import encoders
from .errors import ExportError, LabelError
from .scores import Score, ScoreInputs, get_score

__all__ = ["CALIBRATION_SCORES", "THRESHOLD", "frozen_copy", "quiet", "to_onnx"]

# What a score may need that one image pass gives.
EXPORTABLE_INPUTS = ("similarity", "negative_similarity", "image_embeds", "label_embeds", "patch_similarity")
# Constants of the file, by which a calibration can be put into it later.
CALIBRATION_SCORES, THRESHOLD = "calibration_scores", "threshold"
OPSET = 18


def frozen_copy(model: Any, score: str | Score | None) -> Any:
    """Return a copy of a model in float32 on the CPU, ready to be exported with this score.

    Raises:
        ExportError: The model is none of this package, or its score or adapter cannot be put into one file.
        LabelError: It has no labels.
        UnknownNameError: No such score.
    """
    from .modeling_oodclip import OODCLIPForImageClassification

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(model, OODCLIPForImageClassification):
        raise ExportError(
            f"Only an OODCLIPForImageClassification can be exported, got {type(model).__name__}; a pipeline has "
            "one as .model."
        )
    if not model.labels:
        raise LabelError("The model has no labels: load it with labels=['cat', 'dog'], or call set_labels([...]).")
    chosen = model.score if score is None else get_score(score)
    if chosen.key == model.score.key and not chosen.state_dict():
        # A name stands for the score in use, with what it was fitted to.
        chosen = model.score
    _check_score(chosen)
    if model._prompts_need_images():
        raise ExportError(
            "The active context prompt is conditional: every image writes its own prompts, so that text features "
            "cannot be fixed in a file. Train it with conditional=False, use NFT (conditional or not), or "
            "disable_adapters()."
        )
    copied: Any = copy.deepcopy(model)
    copied.to(device="cpu", dtype=torch.float32).eval()
    copied.set_score(chosen)
    return copied


def _check_score(score: Score) -> None:
    if score.online:
        raise ExportError(
            f"Score {score.name!r} remembers the images it has seen, and an ONNX file remembers nothing: choose "
            "another, such as score='neglabel'."
        )
    outside = [name for name in score.needs if name not in EXPORTABLE_INPUTS]
    if outside:
        raise ExportError(
            f"Score {score.name!r} needs {', '.join(outside)}, which one image pass does not give: choose a score "
            f"that needs nothing but {', '.join(EXPORTABLE_INPUTS)}, such as score='mcm'."
        )


class _Cosines(nn.Module):
    """Cosines of image and patch embeddings with the fixed text features, under the active feature adapter."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.similarity = model.similarity
        label_embeds, negative_embeds = model.text_features()
        self.label_embeds = nn.Buffer(label_embeds.detach().clone())
        self.negative_embeds = nn.Buffer(negative_embeds.detach().clone())

    def forward(self, image_embeds: Tensor, patch_embeds: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.similarity(image_embeds, self.label_embeds, self.negative_embeds)
        if patch_embeds is None:
            return found
        nothing = self.negative_embeds[:0]
        patches = self.similarity.training_cosines(image_embeds, self.label_embeds, nothing, patch_embeds)
        return (*found, patches.labels)


class OODGraph(nn.Module):
    """A model with its text features, score and room for a calibration, as one function of pixel values.

    Args:
        model: From `frozen_copy`.
        pixel_values: Some, `[2, 3, H, W]`, to trace with.
        num_calibration_scores: How many to leave room for, to be put into the file later; with 0 there are no
            `p_value` and `is_ood`.
    """

    def __init__(self, model: Any, pixel_values: Tensor, num_calibration_scores: int) -> None:
        super().__init__()
        self.clip, self.score = model.clip, model.score
        self.logit_scale = model.logit_scale
        self.has_negatives = bool(model.config.num_negatives)
        embeds = tuple(value for value in self._encode(pixel_values) if value is not None)
        # The adapters count their rows by len(), which only this kind of trace leaves open.
        cosines = torch.export.export(_Cosines(model).eval(), embeds, dynamic_shapes=_batch_axes(embeds), strict=True)
        self.label_embeds = nn.Buffer(model.text_features(with_negatives=False)[0].detach().clone())
        self.cosines = cosines.module()
        self.calibrated = num_calibration_scores > 0
        if self.calibrated:
            self.calibration_scores = nn.Buffer(torch.full((1, num_calibration_scores), torch.nan))
            self.threshold = nn.Buffer(torch.tensor(torch.nan))
        # All parts are in evaluation mode; traced ones have no eval() to say so.
        self.training = False

    @property
    def output_names(self) -> list[str]:
        """What the function returns, in order."""
        return ["logits", "label", "ood_score", *(["p_value", "is_ood"] if self.calibrated else [])]

    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        if "patch_similarity" in self.score.needs:
            image_embeds, patch_embeds, _ = encoders.encode_images_and_patches(self.clip, pixel_values)
            return image_embeds, patch_embeds
        return encoders.encode_images(self.clip, pixel_values)[0], None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return logits `[B, N]`, label `[B]`, `ood_score` `[B]` and, calibrated, `p_value` and `is_ood` `[B]`."""
        image_embeds, patch_embeds = self._encode(pixel_values)
        embeds = (image_embeds,) if patch_embeds is None else (image_embeds, patch_embeds)
        similarity, negative_similarity, *patches = self.cosines(*embeds)
        inputs = ScoreInputs(
            similarity=similarity,
            negative_similarity=negative_similarity if self.has_negatives else None,
            image_embeds=image_embeds,
            patch_similarity=patches[0] if patches else None,
            logit_scale=self.logit_scale,
            label_embeds=self.label_embeds,
        )
        # Not by calling the score: its checks look at values, and a trace has none.
        ood_score = self.score.compute(inputs).float()
        found = (self.clip.logit_scale.exp() * similarity, similarity.argmax(dim=-1), ood_score)
        return (*found, *self._decide(ood_score)) if self.calibrated else found

    def _decide(self, ood_score: Tensor) -> tuple[Tensor, Tensor]:
        # As Calibration has it, but for a score that is NaN: nothing is known then, and the image is called OOD.
        smaller = (~(self.calibration_scores >= ood_score.unsqueeze(1))).sum(dim=1)
        total = 1 + self.calibration_scores.shape[1]
        return (total - smaller).double() / total, ~(ood_score <= self.threshold)


def _batch_axes(tensors: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in tensors)


def to_onnx(model: Any, pixel_values: Tensor, num_calibration_scores: int) -> tuple[Any, list[str]]:
    """Return the `ONNXProgram` of a model for any batch size, and the names of the vision tower's products.

    Args:
        model: See `OODGraph`.
        pixel_values: See `OODGraph`.
        num_calibration_scores: See `OODGraph`.

    Raises:
        ExportError: torch cannot trace it, as may be with a score of your own.
    """
    try:
        with quiet(), torch.no_grad():
            graph = OODGraph(model, pixel_values, num_calibration_scores)
            program = torch.onnx.export(
                graph,
                (pixel_values,),
                dynamo=True,
                dynamic_shapes=_batch_axes((pixel_values,)),
                input_names=["pixel_values"],
                output_names=graph.output_names,
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},
                verbose=False,
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(
            f"torch cannot put score {model.score.key!r} and this model into an ONNX file ({reason}). A score of "
            "your own must be torch operations alone, without a look at values (no if on a tensor, no .item())."
        ) from error
    assert program is not None
    products: list[str] = []
    network = program.model.graph
    for node in network:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        if node.op_type == "MatMul" and "clip.vision_model" in scopes:
            products.append(str(node.name))
    # Stack traces, with paths of this machine, and what is in the model but not in the file.
    for part in (network, *network, *network.inputs, *network.outputs, *network.initializers.values()):
        part.metadata_props.clear()
    return program, products


def _distances(first: Any, second: Any, p: float, compute_mode: int | None = None) -> Any:
    """Return Euclidean distances of every row from every row: the exporter knows no cdist."""
    import onnxscript

    opset: Any = onnxscript.opset18

    differences = opset.Unsqueeze(first, [-2]) - opset.Unsqueeze(second, [-3])
    return opset.ReduceL2(differences, [-1], keepdims=0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep away what exporter and quantiser say about libraries and steps that are not needed.

    Some of it goes to the root logger, which from then on would print all that other loggers say once more.
    """
    root, logger = python_logging.getLogger(), python_logging.getLogger("torch.onnx")
    handlers, level = list(root.handlers), logger.level
    logger.setLevel(python_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        root.handlers[:] = handlers
