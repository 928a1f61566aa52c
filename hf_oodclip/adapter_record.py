"""What an adapter folder says besides weights: labels, templates, negatives, score and calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import cached_file

from .configuration_oodclip import OODCLIPConfig
from .errors import AdapterError
from .negatives import Negatives
from .ood_head import OODHead
from .templates import resolve_templates
from .text_bank import check_labels

__all__ = ["RECORD_FILE", "RECORD_TENSORS_FILE", "AdapterRecord"]

RECORD_FILE = "ood_head.json"
RECORD_TENSORS_FILE = "ood_head.safetensors"
# Not the name that a whole model gives its negatives: both may lie in one folder.
NEGATIVES_FILE = "ood_head_negatives.json"
FORMAT = "hf_oodclip ood head 1"


@dataclass(frozen=True)
class AdapterRecord:
    """All that a base model lacks to be the model an adapter was saved from, but the adapter itself.

    Args:
        labels: Class names.
        label_templates: Their prompt templates.
        template_average: How a prompt ensemble is averaged.
        negatives: The negatives, None without.
        score_record: Name, options and state shapes of the score; None is the default score.
        calibrations: One record a calibrated score.
        tensors: State of the score, and calibration scores.
    """

    labels: list[str]
    label_templates: list[str]
    template_average: Any
    negatives: Negatives | None
    score_record: dict[str, Any] | None
    calibrations: list[dict[str, Any]] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> AdapterRecord:
        """Return the record of a model."""
        config = model.config
        return cls(
            labels=list(model.labels),
            label_templates=list(config.label_templates),
            template_average=config.template_average,
            negatives=model.negatives,
            score_record=config.score_record,
            calibrations=list(config.calibrations),
            tensors={name: tensor.detach().cpu() for name, tensor in model.ood_head.named_buffers(recurse=False)},
        )

    def apply(self, model: Any) -> None:
        """Give a model these labels, templates, negatives, score and calibrations."""
        # First, for set_labels would warn that they are lost.
        model.ood_head.set_calibrations([])
        model.set_labels(
            self.labels,
            self.label_templates,
            [] if self.negatives is None else self.negatives,
            average=self.template_average,
        )
        model.ood_head.restore(self.score_record, self.calibrations, self.tensors, model.device)

    def save(self, folder: str | Path) -> None:
        """Write it into an adapter folder; files of an earlier record that it lacks are removed."""
        folder = Path(folder)
        if not self.labels:
            for name in (RECORD_FILE, NEGATIVES_FILE, RECORD_TENSORS_FILE):
                (folder / name).unlink(missing_ok=True)
            return
        content = {
            "format": FORMAT,
            "labels": self.labels,
            "label_templates": self.label_templates,
            "template_average": self.template_average,
            "num_negatives": 0 if self.negatives is None else len(self.negatives),
            "score_record": self.score_record,
            "calibrations": self.calibrations,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")
        if self.negatives is None:
            (folder / NEGATIVES_FILE).unlink(missing_ok=True)
        else:
            self.negatives.save(folder / NEGATIVES_FILE)
        if self.tensors:
            save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / RECORD_TENSORS_FILE
            )
        else:
            (folder / RECORD_TENSORS_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, source: str, options: Mapping[str, Any]) -> AdapterRecord | None:
        """Return the record of an adapter folder or Hub repo, None where there is none.

        Args:
            source: Folder or Hub id.
            options: Where on the Hub, see `adapters.checking.find_options`.

        Raises:
            AdapterError: Files of the record are missing or damaged.
        """

        def find(name: str) -> str | None:
            return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)

        path = find(RECORD_FILE)
        if path is None:
            return None
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, and this version reads {FORMAT!r}")
            negatives = tensors_path = None
            if content["num_negatives"]:
                negatives_path = find(NEGATIVES_FILE)
                if negatives_path is None:
                    raise ValueError(f"it has {content['num_negatives']} negatives, but {NEGATIVES_FILE} is missing")
                negatives = Negatives.load(negatives_path)
                if len(negatives) != content["num_negatives"]:
                    raise ValueError(
                        f"it has {content['num_negatives']} negatives, but {NEGATIVES_FILE} holds {len(negatives)}"
                    )
            if content["calibrations"] or (content["score_record"] or {}).get("state"):
                tensors_path = find(RECORD_TENSORS_FILE)
                if tensors_path is None:
                    raise ValueError(f"its calibrations or score need {RECORD_TENSORS_FILE}, which is missing")
            record = cls(
                labels=check_labels(content["labels"]),
                label_templates=resolve_templates(content["label_templates"]),
                template_average=content["template_average"],
                negatives=negatives,
                score_record=content["score_record"],
                calibrations=content["calibrations"],
                tensors={} if tensors_path is None else load_file(tensors_path),
            )
            # Tried on a head of its own, so that a damaged one changes no model.
            OODHead(OODCLIPConfig()).restore(record.score_record, record.calibrations, record.tensors)
            return record
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise AdapterError(
                f"{path} cannot be used ({error}): fetch or save the adapter again, or remove {RECORD_FILE} and give "
                "labels and negatives yourself."
            ) from error
