"""`export_onnx`: the whole classifier, from pixels to a decision, as one file that needs no torch.

Twelve lines use what it writes, with onnxruntime, numpy and Pillow alone:

```python
import json, numpy as np, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession("model.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["hf_oodclip"])
how = about["image"]
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = image.resize([int(how["resize"] * side / min(image.size)) for side in image.size], how["resample"])
left, top = [(side - how["crop"]) // 2 for side in image.size]
pixels = np.asarray(image.crop((left, top, left + how["crop"], top + how["crop"])), np.float32) / 255
pixels = np.float32((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None]
logits, label, ood_score, p_value, is_ood = session.run(None, {"pixel_values": pixels})
print(about["labels"][label[0]], "OOD" if is_ood[0] else "ID", p_value[0])
```

Lay a picture with transparency on white first, as `hf_oodclip.images.load_image` does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from .assets import images_path
from .calibration import Calibration
from .errors import ExportError
from .export_graph import frozen_copy, to_onnx
from .image_features import iterate_batches, pixel_values_of
from .onnx_file import METADATA_KEY, ONNXFile
from .scores import Score

__all__ = ["export_onnx", "read_onnx_metadata"]

logger = logging.get_logger("hf_oodclip.export")

FORMAT = "hf_oodclip onnx 1"
CHECK_BATCH = 5
_PACKAGES = ("hf_oodclip", "torch", "transformers", "peft", "onnx", "onnxruntime", "onnxscript")
# Of the embedded images: set and row.
_SAMPLES = (("id", 0), ("id", 400), ("near_heldout", 0), ("far_textures", 0), ("far_digits", 0))


def export_onnx(
    model: Any,
    path: str | Path,
    *,
    score: str | Score | None = None,
    int8: bool = False,
    calibration_images: Any = None,
    check_images: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as one ONNX file that scores and decides by itself, and return its path.

    The file takes `pixel_values`, float32 `[batch, 3, H, W]`, and returns `logits` `[batch, N]`, `label`
    (index of the largest, int64), `ood_score` (float32, larger = more OOD) and, if the score is calibrated,
    `p_value` (float64) and `is_ood` (bool). Text features under the active adapters, score, threshold and
    calibration scores are inside; labels, threshold, preprocessing and origin are JSON in its metadata
    (`read_onnx_metadata`). Weights are float32 on any device's behalf; above 2 GiB they go into
    `<path>.data`. A NaN score is called OOD.

    Before the file appears under its name, it is run with onnxruntime on real images, one at a time and
    five at once: logits and scores must equal torch's within 1e-4 (times the value where that is above 1),
    p-values and decisions must be exactly what `Calibration` says of the scores. An image whose score lies
    that near to the threshold, or to a calibration score, may still be judged otherwise than by torch.

    Args:
        model: An `OODCLIPForImageClassification`, with or without adapters.
        path: Where to write, `*.onnx`.
        score: Name or `Score`; the one in use when None. Any but those that need more than one image
            pass (`odin`, `clipn`, `zoc`) or a memory (`adaneg`).
        int8: Quantise the vision transformer's matrix products to 8 bits (dynamically: the weights now, the
            activations of every batch as they come, so that an image's score depends a little on what it is
            batched with). About a third of the size. Scores move: give `calibration_images`.
        calibration_images: ID images to calibrate the written file itself with, one at a time, instead of
            the model's own calibration, whose target and rule are kept (95 %, conformal without one).
        check_images: Images for the comparison with torch; five embedded ones when None.
        overwrite: Replace a file that is there.

    Raises:
        ExportError: A package is missing, the path cannot be written, the score or adapter cannot be
            exported, or the file does not do what the model does.
        LabelError, UnknownNameError, ScoreInputError: The model has no labels, there is no such score, or the
            score lacks its fit or negatives.
        CalibrationError: Too few calibration images.

    Example:
        >>> import hf_oodclip
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"], score="max_logit"
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_onnx_metadata(export_onnx(model, folder + "/model.onnx"))["labels"]
        ['goldfish', 'school bus']
    """
    _require("onnx", "onnxruntime", "onnxscript")
    path = _checked_path(path, overwrite)
    copied = frozen_copy(model, score)
    image = _image_settings(copied.image_processor)
    pixels = _check_pixels(copied, check_images)
    with torch.no_grad():
        # First of all: this tells what is wrong with score, negatives or weights.
        wanted = copied(pixels)
    calibration = copied.calibration
    own = [] if calibration_images is None else _single_images(copied, calibration_images)
    _warn(model, copied, int8, bool(own))
    num_scores = len(own) or (0 if calibration is None else calibration.num_images)
    try:
        # Made before the trace, which takes a while: a folder that cannot be written to is told of at once.
        with tempfile.TemporaryDirectory(prefix=".oodclip-export-", dir=path.parent) as folder:
            program, products = to_onnx(copied, pixels[:2], num_scores)
            file = ONNXFile(Path(folder) / path.name, program)
            if int8:
                file.quantise(products)
            if own:
                values = torch.cat([torch.from_numpy(found["ood_score"]) for found in file.run(own)])
                calibration = _calibrated(values, copied)
            if calibration is not None:
                file.set_calibration(calibration)
            check = file.compare(pixels, wanted, calibration, exact=not int8)
            about = {"format": FORMAT, **_describe(copied, calibration), "image": image, "check": check}
            file.set_metadata({**about, "precision": "int8" if int8 else "float32"})
            file.move_to(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}.") from error
    return path


def read_onnx_metadata(path: str | Path) -> dict[str, Any]:
    """Return what an exported file says of itself: labels, score, threshold, preprocessing, origin, check.

    Raises:
        ExportError: It does not exist, or `export_onnx` has not written it.
    """
    _require("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is no ONNX file that can be read: {error}.") from error
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            return json.loads(entry.value)
    raise ExportError(f"{path} was not written by this package: it has no metadata named {METADATA_KEY!r}.")


def _require(*packages: str) -> None:
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ExportError(f'ONNX needs {", ".join(missing)}: install with pip install "hf_oodclip[export]".')


def _checked_path(path: str | Path, overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"The file to write must end in .onnx, got {str(path)!r}: give a path such as model.onnx.")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists: replace it with overwrite=True (--overwrite), or write elsewhere.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}.") from error
    return path


def _image_settings(processor: Any) -> dict[str, Any]:
    """Return how pixels become pixel values; the processor's own settings where that is not CLIP's way."""
    edge, crop = processor.size.get("shortest_edge"), processor.crop_size
    usual = (
        all(getattr(processor, step) for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"))
        and edge is not None
        and crop["height"] == crop["width"] <= edge
        and abs(processor.rescale_factor * 255 - 1) < 1e-6
    )
    if not usual:
        logger.warning(
            "The image processor does not resize the short side, crop the centre square and normalise: prepare "
            "images for the file as its metadata says under 'image', not by the lines of hf_oodclip.export."
        )
        return dict(json.loads(processor.to_json_string()))
    return {
        "resize": edge,
        "resample": int(processor.resample),
        "crop": crop["height"],
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }


def _check_pixels(model: Any, images: Any) -> Tensor:
    """Return five pixel values or more; the images given come again if they are fewer."""
    if images is None:
        import pyarrow.parquet

        tables = {name: pyarrow.parquet.read_table(images_path(name))["image"] for name, _ in _SAMPLES}
        cells = [tables[name][row].as_py()["bytes"] for name, row in _SAMPLES]
        images = [Image.open(io.BytesIO(cell)) for cell in cells]
    pixels = torch.cat(_single_images(model, images))
    return torch.cat([pixels] * -(-CHECK_BATCH // len(pixels)))


def _single_images(model: Any, images: Any) -> list[Tensor]:
    found = []
    for batch in iterate_batches(images, 32):
        pixels = batch if isinstance(batch, Tensor) else pixel_values_of(model.image_processor, batch)
        found += pixels.to("cpu", torch.float32).split(1)
    if not found:
        raise ExportError("There are no images to check or calibrate with: give some, or leave the argument out.")
    return found


def _calibrated(values: Tensor, model: Any) -> Calibration:
    """Return a calibration with these scores, and the target and rule of the model's own."""
    old = model.calibration
    if old is None:
        return Calibration.fit(values, model.score.key)
    return Calibration.fit(values, model.score.key, old.target_tpr, old.rule, old.confidence)


def _warn(model: Any, copied: Any, int8: bool, calibrates: bool) -> None:
    if calibrates:
        return
    if copied.calibration is None:
        logger.warning(
            f"Score {copied.score.key!r} is not calibrated, so the file has no p_value and is_ood: calibrate the "
            "model first, or give calibration_images."
        )
    elif int8 or model.dtype != torch.float32:
        what = "8-bit weights move" if int8 else f"float32 instead of {model.dtype} moves"
        logger.warning(
            f"{what} the scores, and the calibration is that of the model: the share of ID images the file accepts "
            "may miss the target. Give calibration_images (--calibrate) to calibrate the file itself."
        )


def _describe(model: Any, calibration: Calibration | None) -> dict[str, Any]:
    base = str(model.name_or_path)
    return {
        "labels": model.labels,
        "num_negatives": model.config.num_negatives,
        "score": model.score.key,
        "threshold": None if calibration is None else calibration.threshold,
        "target_tpr": None if calibration is None else calibration.target_tpr,
        "calibration": None if calibration is None else calibration.to_dict(),
        # Where it lies on this machine is nobody's business.
        "base": Path(base).name if Path(base).exists() else base,
        "adapters": [
            {"name": name, "type": str(getattr(config.peft_type, "value", config.peft_type))}
            for name, config in getattr(model, "peft_config", {}).items()
            if name in _acting(model)
        ],
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def _acting(model: Any) -> set[str]:
    """Return the names of the adapters that are loaded, active and not switched off."""
    return {
        name
        for module in model.modules()
        if module is not model and getattr(module, "disable_adapters", None) is False
        for name in module.active_adapters
    }
