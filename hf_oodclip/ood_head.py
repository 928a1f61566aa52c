"""What a model knows about OOD besides the text bank: the score in use, its state, calibrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .calibration import Calibration
from .configuration_oodclip import OODCLIPConfig
from .scores import Score, get_score
from .text_bank import Float32Module

__all__ = ["OODHead"]

_STATE = "score_state_"
_CALIBRATION = "calibration_scores_"


class OODHead(Float32Module):
    """Keeps the score and its calibrations as config fields plus persistent fp32 buffers.

    The buffers' shapes follow from the config, so a checkpoint restores them without running
    anything.
    """

    def __init__(self, config: OODCLIPConfig) -> None:
        super().__init__()
        self.config = config
        # An online score lives as long as it is in use; its memory of images is not saved.
        self._online: Score | None = None
        for name, shape in (config.score_record or {}).get("state", {}).items():
            self.register_buffer(_STATE + name, torch.zeros(shape, dtype=torch.float32))
        for position, record in enumerate(config.calibrations):
            self.register_buffer(f"{_CALIBRATION}{position}", torch.zeros(record["num_images"], dtype=torch.float32))

    @property
    def score(self) -> Score:
        """The score in use: the chosen one, or the one that fits the labels and negatives."""
        record = self.config.score_record
        if record is None:
            return get_score(self.default_score_name())
        if self._online is not None:
            return self._online
        score = get_score(record["name"], **record.get("options", {}))
        if score.online:
            self._online = score
        state = {name: getattr(self, _STATE + name) for name in record.get("state", {})}
        score.load_state_dict(state)
        return score

    def default_score_name(self) -> str:
        """Return `neglabel` with negatives, else `mcm`, or `max_logit` where one label leaves nothing to compare."""
        if self.config.num_negatives:
            return "neglabel"
        return "max_logit" if self.config.num_labels == 1 else "mcm"

    def set_score(self, score: str | Score | None, device: Any = None, **options: Any) -> None:
        """Choose the score by name or object (None: the default one), with its fitted state."""
        chosen = None if score is None else get_score(score, **options)
        self.forget()
        if chosen is None:
            self.config.score_record = None
            return
        state = chosen.state_dict()
        self.config.score_record = {"name": chosen.name, "options": chosen.options}
        if state:
            self.config.score_record["state"] = {name: list(tensor.shape) for name, tensor in state.items()}
        for name, tensor in state.items():
            self.register_buffer(_STATE + name, tensor.detach().clone().to(device, torch.float32))

    def forget(self) -> bool:
        """Drop what the score in use was fitted to or remembers; tell whether it was fitted."""
        self._online = None
        state = (self.config.score_record or {}).get("state", {})
        if self.config.score_record and state:
            self.config.score_record = {k: v for k, v in self.config.score_record.items() if k != "state"}
        for name in state:
            delattr(self, _STATE + name)
        return bool(state)

    @property
    def calibrations(self) -> list[Calibration]:
        """All stored calibrations, at most one a score."""
        records = self.config.calibrations
        return [
            Calibration.from_dict(record, getattr(self, f"{_CALIBRATION}{position}"))
            for position, record in enumerate(records)
        ]

    def calibration_for(self, score: Score) -> Calibration | None:
        """Return the calibration made with this very score and options, or None."""
        return next((c for c in self.calibrations if c.score == score.key), None)

    def set_calibrations(self, calibrations: list[Calibration], device: torch.device | None = None) -> None:
        """Replace all stored calibrations."""
        for position in range(len(self.config.calibrations)):
            delattr(self, f"{_CALIBRATION}{position}")
        self.config.calibrations = [calibration.to_dict() for calibration in calibrations]
        for position, calibration in enumerate(calibrations):
            scores: Tensor = calibration.ood_scores.detach().clone().to(device=device, dtype=torch.float32)
            self.register_buffer(f"{_CALIBRATION}{position}", scores)

    def restore(
        self,
        score_record: dict[str, Any] | None,
        calibrations: list[dict[str, Any]],
        tensors: Mapping[str, Tensor],
        device: torch.device | None = None,
    ) -> None:
        """Take the score and calibrations of a saved head, as config records and buffers by name.

        Raises:
            KeyError: A tensor is missing.
        """
        self.set_score(None)
        self.config.score_record = score_record
        for name in (score_record or {}).get("state", {}):
            self.register_buffer(_STATE + name, tensors[_STATE + name].to(device, torch.float32))
        restored = [
            Calibration.from_dict(record, tensors[f"{_CALIBRATION}{position}"])
            for position, record in enumerate(calibrations)
        ]
        self.set_calibrations(restored, device)

    def add_calibration(self, calibration: Calibration, device: torch.device | None = None) -> None:
        """Store a calibration, in place of an earlier one of the same score."""
        others = [c for c in self.calibrations if c.score != calibration.score]
        self.set_calibrations([*others, calibration], device)
