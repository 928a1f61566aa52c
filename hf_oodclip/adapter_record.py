"""What an adapter folder says besides weights: labels, templates, negatives, score and calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .configuration_oodclip import OODCLIPConfig
from .encoders import bare_text_tower
from .errors import AdapterError, CheckpointError
from .hub_files import find_file
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
# Half precision and other machines stay above 0.999; other CLIPs are far below.
LEAST_COSINE = 0.99


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
        base_sample: First values of the first label's text embedding, by which the base is known again.
    """

    labels: list[str]
    label_templates: list[str]
    template_average: Any
    negatives: Negatives | None
    score_record: dict[str, Any] | None
    calibrations: list[dict[str, Any]] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    base_sample: list[float] | None = None

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
            base_sample=[round(value, 5) for row in model.text_bank.label_embeds[:1, :32].tolist() for value in row],
        )

    def apply(self, model: Any) -> None:
        """Give a model these labels, templates, negatives, score and calibrations.

        Raises:
            AdapterError: It has another base than the model of this record; it stays as it was.
        """
        self.check_base(model)
        # First, for set_labels would warn that they are lost.
        model.ood_head.set_calibrations([])
        model.set_labels(
            self.labels,
            self.label_templates,
            [] if self.negatives is None else self.negatives,
            average=self.template_average,
        )
        model.ood_head.restore(self.score_record, self.calibrations, self.tensors, model.device)

    def check_base(self, model: Any) -> None:
        """Raise `AdapterError` where the text tower of a model is not the one this record was made with."""
        if not self.base_sample:
            return
        try:
            encoder = model.text_encoder()
        except CheckpointError:
            # Without a tokenizer nothing can be compared, and labels cannot be changed either.
            return
        average: Any = self.template_average
        with bare_text_tower(model.clip):
            found = encoder.embed(self.labels[:1], self.label_templates, average)[0, : len(self.base_sample)].cpu()
        cosine = float(cosine_similarity(found.float(), torch.tensor(self.base_sample), dim=0))
        if not cosine >= LEAST_COSINE:
            raise AdapterError(
                f"This adapter was trained on another base: the label {self.labels[0]!r} has another text embedding "
                f"here (cosine {cosine:.2f}, expected at least {LEAST_COSINE}). Load the base that its "
                "adapter_config.json names."
            )

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
            "base_sample": self.base_sample,
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
            CheckpointError: The Hub cannot be reached.
        """

        def find(name: str) -> str | None:
            return find_file(source, name, options)

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
                base_sample=content.get("base_sample"),
            )
            # Tried on a head of its own, so that a damaged one changes no model.
            OODHead(OODCLIPConfig()).restore(record.score_record, record.calibrations, record.tensors)
            return record
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise AdapterError(
                f"{path} cannot be used ({error}): fetch or save the adapter again, or remove {RECORD_FILE} and give "
                "labels and negatives yourself."
            ) from error
