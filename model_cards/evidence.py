"""What a model or adapter folder, and the training run behind it, say about themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hf_oodclip.evaluation.fingerprint import MODEL_WEIGHTS, classes_fingerprint, weights_fingerprint
from hf_oodclip.training.run import METRICS_FILE, RECIPE_FILE
from transformers.utils import CONFIG_NAME

from hf_oodclip import Negatives
from hf_oodclip.adapter_record import AdapterRecord
from hf_oodclip.adapters.checking import WEIGHTS_FILE, read_adapter_config
from hf_oodclip.configuration_oodclip import OODCLIPConfig
from hf_oodclip.errors import CardError
from hf_oodclip.loading import load_negatives_file
from hf_oodclip.ood_head import OODHead

from .bases import Base, find_base, has_weights_of

__all__ = ["ModelEvidence", "read_model"]


@dataclass(frozen=True)
class ModelEvidence:
    """All that is known of a model before it is evaluated.

    Args:
        folder: Where it is.
        adapter: What `adapter_config.json` says, None for a whole model.
        labels, templates, negatives: Its classes.
        score: The score in use, None without labels.
        calibrations: One record a calibrated score.
        base: The CLIP it stands on, None when unknown.
        fingerprint: Of classes and weights, as evaluations record them.
        recipe, metrics: What its training run left, empty without one.
    """

    folder: Path
    adapter: dict[str, Any] | None
    labels: list[str]
    templates: list[str]
    negatives: Negatives | None
    score: Any
    calibrations: list[dict[str, Any]]
    base: Base | None
    fingerprint: dict[str, str | None]
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The calibration of the score in use."""
        key = None if self.score is None else self.score.key
        return next((record for record in self.calibrations if record["score"] == key), None)


def read_model(folder: Path, run: Path | None = None, base: str | None = None) -> ModelEvidence:
    """Return what a folder holds.

    Args:
        folder: A whole model saved by this package, or an adapter with or without its training run.
        run: Folder of the training run, when it is another.
        base: Folder or Hub id of the CLIP under a whole model; the pocket CLIP is found by itself.

    Raises:
        CardError: No model there, a run of another one, or a base with other weights.
        AdapterError, CheckpointError, NegativesError: The folder is damaged.
    """
    adapter = read_adapter_config(str(folder), {}) if folder.is_dir() else None
    recipe, metrics = _read_run(folder if run is None else run)
    if adapter is not None:
        if base is not None:
            raise CardError(f"{folder} is an adapter and names its own base: leave the base out.")
        weights = weights_fingerprint(str(folder), WEIGHTS_FILE)
        if run is not None and weights_fingerprint(str(run), WEIGHTS_FILE) != weights:
            raise CardError(
                f"The run {run} trained another adapter than the one in {folder} ({WEIGHTS_FILE} differs): give the "
                "run that wrote it, or none."
            )
        record = AdapterRecord.load(str(folder), {})
        named = adapter.get("base_model_name_or_path")
        found = find_base(named, adapter.get("revision")) if named else None
        if record is None:
            print_of: dict[str, str | None] = {"classes": None, "adapter": weights}
            return ModelEvidence(folder, adapter, [], [], None, None, [], found, print_of, recipe, metrics)
        classes = record.labels, record.label_templates, record.template_average, record.negatives
        score, calibrations = _score(record.labels, record.negatives, record.score_record), record.calibrations
        print_of = {"classes": classes_fingerprint(*classes), "adapter": weights}
        return ModelEvidence(
            folder, adapter, *classes[:2], record.negatives, score, calibrations, found, print_of, recipe, metrics
        )
    if run is not None:
        raise CardError(f"{folder} is no adapter, and training runs make adapters: leave the run out.")
    config = _whole_config(folder)
    negatives = load_negatives_file(str(folder), config, {})
    classes = config.label_names, config.label_templates, config.template_average, negatives
    return ModelEvidence(
        folder,
        None,
        *classes[:2],
        negatives,
        _score(config.label_names, negatives, config.score_record) if config.label_names else None,
        config.calibrations,
        _base_of_whole(folder, base),
        {
            "classes": classes_fingerprint(*classes),
            "model": weights_fingerprint(str(folder), MODEL_WEIGHTS),
            "adapter": None,
        },
    )


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    # The metrics are written last: without them the run has not ended.
    if not (folder / METRICS_FILE).is_file():
        return {}, {}
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        recipe = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CardError(f"The training run in {folder} cannot be read ({error}): train again.") from error
    if not isinstance(metrics, dict) or not isinstance(recipe, dict):
        raise CardError(f"{METRICS_FILE} or {RECIPE_FILE} in {folder} holds no record: train again.")
    return recipe, metrics


def _whole_config(folder: Path) -> OODCLIPConfig:
    found = None
    if (folder / CONFIG_NAME).is_file():
        try:
            found = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CardError(f"{folder / CONFIG_NAME} is not JSON ({error}): save the model again.") from error
    if not isinstance(found, dict) or found.get("model_type") != OODCLIPConfig.model_type:
        raise CardError(
            f"{folder} holds no model of this package: give the output folder of a training run, an adapter, or a "
            "folder written by save_pretrained or `oodclip calibrate`."
        )
    return OODCLIPConfig.from_pretrained(folder)


def _score(labels: list[str], negatives: Negatives | None, record: Mapping[str, Any] | None) -> Any:
    # What it is called and where it comes from are asked, never a value: its state can stay where it is.
    plain = None if record is None else {name: value for name, value in record.items() if name != "state"}
    count = 0 if negatives is None else len(negatives)
    return OODHead(OODCLIPConfig(id2label=dict(enumerate(labels)), num_negatives=count, score_record=plain)).score


def _base_of_whole(folder: Path, base: str | None) -> Base | None:
    if base is None:
        return find_base("pocket", is_unchanged=True) if has_weights_of(folder, "pocket") else None
    if not has_weights_of(folder, base):
        raise CardError(
            f"The weights in {folder} are not those of {base}: give the CLIP it was made of, or leave the base out."
        )
    return find_base(base, is_unchanged=True)
