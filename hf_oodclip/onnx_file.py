"""An ONNX file in the making: written, quantised, run, edited, and only then put where it belongs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibration import Calibration
from .errors import ExportError
from .export_graph import CALIBRATION_SCORES, THRESHOLD, quiet

__all__ = ["METADATA_KEY", "ONNXFile"]

METADATA_KEY = "hf_oodclip"
TOLERANCE = 1e-4
# A protobuf message holds no more than 2 GiB; larger weights go into a file beside it.
MAX_BYTES = 2**31 - 2**24
# With this entry the quantiser does not recommend a step that is without effect here.
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


class ONNXFile:
    """A file in a temporary folder.

    Args:
        path: Where to write it.
        program: The `ONNXProgram` to write.
    """

    def __init__(self, path: Path, program: Any) -> None:
        self.path = path
        size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
        self.has_data_file = size > MAX_BYTES
        program.save(str(path), external_data=self.has_data_file)
        proto = self._load()
        # Some of the shapes the exporter noted are wrong, and none is needed.
        del proto.graph.value_info[:]
        self._save(proto)

    def _load(self) -> Any:
        import onnx

        return onnx.load(str(self.path), load_external_data=False)

    def _save(self, proto: Any) -> None:
        self.path.write_bytes(proto.SerializeToString())

    @property
    def data_path(self) -> Path:
        """Where the weights of a file above 2 GiB are."""
        return _data_path(self.path)

    def quantise(self, products: list[str]) -> None:
        """Make the weights of some matrix products 8-bit integers, a scale a column; activations follow at run time.

        All else, above all the cosines and what comes after them, stays float32.
        """
        from onnxruntime.quantization import QuantType, quantize_dynamic

        proto = self._load()
        proto.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])
        self._save(proto)
        folder = self.path.parent / "int8"
        folder.mkdir()
        with quiet():
            quantize_dynamic(
                str(self.path),
                str(folder / self.path.name),
                nodes_to_quantize=products,
                weight_type=QuantType.QInt8,
                per_channel=True,
                # Seven bits: processors without VNNI add two products in 16 bits, which eight would overflow.
                reduce_range=True,
                use_external_data_format=self.has_data_file,
            )
        for made in folder.iterdir():
            made.replace(self.path.parent / made.name)
        proto = self._load()
        kept = [entry for entry in proto.metadata_props if entry.key != _PREPARED[0]]
        del proto.metadata_props[:], proto.graph.value_info[:]
        proto.metadata_props.extend(kept)
        self._save(proto)

    def run(self, batches: Iterable[Tensor]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the outputs by name for each batch of pixel values."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for batch in batches:
            yield dict(zip(names, session.run(None, {"pixel_values": batch.numpy()}), strict=True))

    def compare(self, pixels: Tensor, wanted: Any, calibration: Calibration | None, exact: bool) -> dict[str, Any]:
        """Return the largest differences between a file and torch, one image at a time and all at once.

        Raises:
            ExportError: They are too large (but for `exact=False`), or decisions do not follow from scores.
        """
        largest = {"logits": 0.0, "ood_score": 0.0}
        for parts in (pixels.split(1), (pixels,)):
            found = list(self.run(parts))
            for name in largest:
                reference = wanted[name].double()
                difference = (torch.cat([torch.from_numpy(part[name]) for part in found]).double() - reference).abs()
                largest[name] = max(largest[name], float(difference.max()))
                # The other way round, for NaN is greater than nothing.
                if not bool((difference <= (TOLERANCE * reference.abs().clamp(min=1) if exact else torch.inf)).all()):
                    raise ExportError(
                        f"{name} of the file and of torch differ by {largest[name]:.2g} on {len(pixels)} images, more "
                        f"than {TOLERANCE}: nothing was written. Please report model, score and versions."
                    )
            if calibration is not None:
                scores = torch.cat([torch.from_numpy(part["ood_score"]) for part in found])
                for name, rule in (("p_value", calibration.p_values), ("is_ood", calibration.is_ood)):
                    if not torch.equal(torch.cat([torch.from_numpy(part[name]) for part in found]), rule(scores)):
                        raise ExportError(f"{name} of the file does not follow from its scores: nothing was written.")
        return {"images": len(pixels), "largest_difference": largest, "tolerance": TOLERANCE if exact else None}

    def set_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration in the file by another with as many scores."""
        from onnx import numpy_helper

        values = {
            CALIBRATION_SCORES: calibration.ood_scores.numpy()[None],
            THRESHOLD: np.array(calibration.threshold, dtype=np.float32),
        }
        proto = self._load()
        for constant in proto.graph.initializer:
            if constant.name in values:
                constant.CopyFrom(numpy_helper.from_array(values.pop(constant.name), constant.name))
        assert not values, f"the file lacks the constants {sorted(values)}"
        self._save(proto)

    def set_metadata(self, about: dict[str, Any]) -> None:
        """Write what the file should say of itself into its metadata."""
        proto = self._load()
        proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(about, ensure_ascii=False))
        self._save(proto)

    def move_to(self, path: Path) -> None:
        """Put the file, and first its data file if it has one, where it belongs."""
        if self.has_data_file:
            self.data_path.replace(_data_path(path))
        self.path.replace(path)
        if not self.has_data_file:
            _data_path(path).unlink(missing_ok=True)


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")
