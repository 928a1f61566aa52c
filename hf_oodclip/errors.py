"""Every error this package raises on purpose.

Each message says what was given, what is allowed, and what to do next.
All classes derive from `OODCLIPError`, so one `except` catches them; each also derives from the
built-in error a Python user would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "CalibrationError",
    "CardError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "FeatureStoreError",
    "HubError",
    "ImageReadError",
    "LabelError",
    "LossError",
    "MetricError",
    "NegativesError",
    "NonFiniteError",
    "OODCLIPError",
    "RecipeError",
    "RunError",
    "ScoreInputError",
    "TemplateError",
    "UnknownNameError",
]


class OODCLIPError(Exception):
    """Base class of all errors of `hf_oodclip`."""


class LabelError(OODCLIPError, ValueError):
    """The list of labels cannot be used (none, empty strings, too long for the text tower)."""


class TemplateError(OODCLIPError, ValueError):
    """A prompt template cannot be used, usually because it has no `{}`."""


class NegativesError(OODCLIPError, ValueError):
    """The negative words cannot be used or mined."""


class UnknownNameError(OODCLIPError, ValueError):
    """A name is not in the table it was looked up in; the message suggests the nearest one."""


class ScoreInputError(OODCLIPError, ValueError):
    """A score was given inputs it cannot work with (a missing input, a wrong shape)."""


class NonFiniteError(OODCLIPError, ValueError):
    """NaN or infinity in weights, features or scores."""


class ImageReadError(OODCLIPError, ValueError):
    """An image could not be read (missing, empty, truncated, not an image)."""


class FeatureStoreError(OODCLIPError, ValueError):
    """Image features cannot be computed, kept, or selected as asked."""


class CalibrationError(OODCLIPError, ValueError):
    """A calibration cannot be made or does not fit the score in use."""


class CheckpointError(OODCLIPError, ValueError):
    """A checkpoint is not of a kind this package can load."""


class HubError(OODCLIPError, OSError):
    """A folder cannot be pushed to the Hub."""


class AdapterError(OODCLIPError, ValueError):
    """An adapter cannot be made, loaded or used on this model."""


class LossError(OODCLIPError, ValueError):
    """A training loss was given logits or options it is not defined for."""


class DataError(OODCLIPError, ValueError):
    """Images or their labels cannot be loaded or chosen as asked."""


class ExportError(OODCLIPError, ValueError):
    """A model cannot be written as an ONNX file as asked."""


class RunError(OODCLIPError, ValueError):
    """An evaluation cannot be run, or its folder cannot be used."""


class CardError(OODCLIPError, ValueError):
    """A model card cannot be written: no model there, evidence of another model, or a card written by hand."""


class RecipeError(OODCLIPError, ValueError):
    """A training recipe has a field that cannot be used."""


class MetricError(OODCLIPError, ValueError):
    """A metric was given scores it is not defined for (an empty side, NaN)."""


def unknown_name(kind: str, name: object, allowed: Iterable[str], advice: str = "") -> UnknownNameError:
    """Return the error for a name that is not in a table, with the nearest name suggested."""
    names = sorted(allowed)
    nearest = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UnknownNameError(
        f"Unknown {kind} {name!r}.{suggestion} Allowed: {', '.join(names)}.{' ' + advice if advice else ''}"
    )
