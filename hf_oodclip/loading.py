"""Finding out what a checkpoint is, and fetching what lies beside its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils import logging

from .configuration_oodclip import OODCLIPConfig
from .encoders import SUPPORTED_MODEL_TYPES, is_supported_model_type
from .errors import CheckpointError, NegativesError
from .hub_files import find_file
from .mining import MINING_METHODS, mine_negatives, remine
from .negatives import Negatives
from .templates import resolve_templates
from .text_bank import TextEncoder

__all__ = [
    "NEGATIVES_FILE",
    "Preprocessing",
    "label_templates",
    "load_negatives_file",
    "resolve_negatives",
    "wrapped_config",
]

logger = logging.get_logger("hf_oodclip.loading")

NEGATIVES_FILE = "negatives.json"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}


class Preprocessing:
    """The tokenizer and image processor of a checkpoint, loaded when first asked for.

    Args:
        source: Folder or Hub id, or None for a model made from a config.
        kwargs: The options `from_pretrained` got; those about the Hub are kept.
        tokenizer: Use this tokenizer instead of the checkpoint's.
        image_processor: Use this image processor instead of the checkpoint's.
    """

    def __init__(
        self,
        source: str | None,
        kwargs: dict[str, Any] | None = None,
        tokenizer: Any = None,
        image_processor: Any = None,
    ) -> None:
        self.source = source
        self.options = _hub_options(kwargs or {})
        self._tokenizer = tokenizer
        self._image_processor = image_processor

    def _load(self, auto_class: Any, what: str) -> Any:
        if not self.source:
            raise CheckpointError(f"This model was not loaded from a checkpoint, so it has no {what}; pass one.")
        try:
            return auto_class.from_pretrained(self.source, **self.options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.source} has no {what} that transformers can load: {error}. Save the checkpoint's "
                "CLIPProcessor beside its weights."
            ) from error

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        if self._tokenizer is None:
            tokenizer = self._load(AutoTokenizer, "tokenizer")
            if len(tokenizer) < 256:
                # transformers makes an empty one up where the files are missing.
                raise CheckpointError(
                    f"{self.source} has no tokenizer with a vocabulary. Save the checkpoint's CLIPProcessor "
                    "beside its weights."
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def image_processor(self) -> Any:
        """The image processor."""
        if self._image_processor is None:
            self._image_processor = self._load(AutoImageProcessor, "image processor")
        return self._image_processor

    def save(self, folder: str | Path) -> None:
        """Write both beside the weights; a model that never had them is saved without."""
        for what in ("tokenizer", "image_processor"):
            try:
                getattr(self, what).save_pretrained(folder)
            except CheckpointError as error:
                logger.warning(f"Saved without {what}: {error}")


def wrapped_config(source: str | Path, config: Any, kwargs: dict[str, Any]) -> tuple[OODCLIPConfig, bool]:
    """Return the config to load a checkpoint with, and whether the checkpoint is a plain CLIP.

    Raises:
        CheckpointError: The checkpoint is of another kind of model.
    """
    if isinstance(config, OODCLIPConfig):
        found = None
    else:
        found = config if config is not None and not isinstance(config, str | Path) else None
        if found is None:
            try:
                found = AutoConfig.from_pretrained(config or source, **_hub_options(kwargs))
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{source} is no checkpoint transformers knows ({error}). Give a CLIP checkpoint, such as "
                    "openai/clip-vit-base-patch16, or a folder saved by this package."
                ) from error
    if found is None:
        stored = AutoConfig.from_pretrained(source, **_hub_options(kwargs))
        return config, stored.model_type != OODCLIPConfig.model_type
    if isinstance(found, OODCLIPConfig):
        return found, False
    if not is_supported_model_type(found.model_type):
        raise CheckpointError(
            f"{source} is a {found.model_type!r} checkpoint; this package loads "
            f"{', '.join(SUPPORTED_MODEL_TYPES)} (any CLIPModel) and {OODCLIPConfig.model_type} checkpoints."
        )
    clip_config = copy.deepcopy(found)
    clip_config.name_or_path = ""
    return OODCLIPConfig(clip_config=clip_config, dtype=found.dtype), True


def load_negatives_file(source: str, config: OODCLIPConfig, kwargs: dict[str, Any]) -> Negatives | None:
    """Return the negatives kept beside the weights of a full checkpoint.

    Raises:
        CheckpointError: The text bank has negatives but their words are missing or do not fit.
    """
    if config.num_negatives == 0:
        return None
    path = find_file(source, NEGATIVES_FILE, _hub_options(kwargs))
    if path is None:
        raise CheckpointError(
            f"{source} says it holds {config.num_negatives} negatives but has no {NEGATIVES_FILE}: the folder "
            "is incomplete. Save the model again with model.save_pretrained."
        )
    negatives = Negatives.load(path)
    if len(negatives) != config.num_negatives:
        raise CheckpointError(
            f"{source}: {NEGATIVES_FILE} has {len(negatives)} words but the text bank {config.num_negatives}."
        )
    return negatives


def resolve_negatives(
    given: str | Path | Negatives | Iterable[str] | None,
    present: Negatives | None,
    labels: list[str],
    templates: list[str] | None,
    encoder: TextEncoder,
) -> Negatives | None:
    """Return the negatives meant by what the user gave, without words that are labels.

    Args:
        given: A mining method, a file, a `Negatives`, words, or None for the present ones (mined
            again when the labels changed).
        present: The negatives the model has.
        labels: The labels they must not contain.
        templates: The templates the user asked for, or None for the method's own.
        encoder: Text encoder to mine with.

    Raises:
        NegativesError: A name that is neither a mining method nor a file, or an unusable list.
    """
    if given is None:
        negatives = None if present is None else remine(present, labels, encoder)
    elif isinstance(given, Negatives):
        negatives = given
    elif isinstance(given, str | Path):
        if str(given) in MINING_METHODS:
            negatives = mine_negatives(labels, encoder, method=str(given), templates=templates)
        elif Path(given).is_file():
            negatives = Negatives.load(given)
        else:
            raise NegativesError(
                f"negatives={str(given)!r} is neither a mining method ({', '.join(sorted(MINING_METHODS))}) nor "
                "a file. Give one of these, a list of words, or a file made by `oodclip mine`."
            )
    else:
        words = list(given)
        negatives = Negatives.from_words(words, templates or "photo") if words else None
    if negatives is None:
        return None
    kept = negatives.without(labels)
    if len(kept) < len(negatives):
        dropped = sorted(set(negatives.texts) - set(kept.texts))
        logger.warning(f"{len(dropped)} negatives equal a label and were left out: {', '.join(dropped[:10])}.")
    if len(kept) == 0:
        raise NegativesError("Every negative equals a label; give words that are no labels.")
    return kept


def label_templates(given: str | Sequence[str] | None, present: list[str], negatives: Negatives | None) -> list[str]:
    """Return the templates of the labels: the given ones, those of mined negatives, or the present ones.

    Labels and negatives compete for an image, so they are prompted as the mining method prompts them
    unless the user decides otherwise.
    """
    if given is not None:
        return resolve_templates(given)
    if negatives is not None and negatives.label_templates:
        return list(negatives.label_templates)
    return list(present)
