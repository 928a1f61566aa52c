"""The scores: one file each, one line each in the tables below. Larger = more OOD, everywhere.

To add a score, write `scores/<name>.py` with one `Score` subclass, add its line to a table, and
write `tests/scores/test_<name>.py`; the contract tests pick it up from there.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from ..errors import ScoreInputError, unknown_name
from .base import Score, ScoreInfo, ScoreInputs

__all__ = [
    "FURTHER_SCORES",
    "SCORES",
    "Score",
    "ScoreInfo",
    "ScoreInputs",
    "get_score",
    "list_scores",
    "register_score",
]

# Cosines with labels and mined negatives are all these need: every model has them for every image.
SCORES: dict[str, str] = {
    "mcm": "mcm:MCM",
    "msp": "msp:MSP",
    "max_logit": "max_logit:MaxLogit",
    "energy": "energy:Energy",
    "entropy": "entropy:Entropy",
    "gen": "gen:GEN",
    "neglabel": "neglabel:NegLabel",
    "delta_energy": "delta_energy:DeltaEnergy",
}

# These need more: ID images to fit on, embeddings, pixels, patches, texts of their own, or a memory.
FURTHER_SCORES: dict[str, str] = {
    "react": "react:ReAct",
    "odin": "odin:ODIN",
    "ash": "ash:ASH",
    "knn": "knn:KNN",
    "mahalanobis": "mahalanobis:Mahalanobis",
    "rmds": "rmds:RMDS",
    "vim": "vim:ViM",
    "gl_mcm": "gl_mcm:GLMCM",
    "clipn": "clipn:CLIPN",
    "eoe": "eoe:EOE",
    "zoc": "zoc:ZOC",
    "adaneg": "adaneg:AdaNeg",
}

_TABLE = {**SCORES, **FURTHER_SCORES}

_registered: dict[str, type[Score]] = {}


def list_scores() -> list[str]:
    """Return the names that `get_score` and every `score=` option accept.

    Example:
        >>> "mcm" in list_scores()
        True
    """
    return sorted({*_TABLE, *_registered})


def register_score(score_class: type[Score]) -> type[Score]:
    """Make your own `Score` subclass reachable by name (usable as a decorator).

    Raises:
        ScoreInputError: The name is taken by another class, or the class lacks `name` or `info`.
    """
    if not (isinstance(score_class, type) and issubclass(score_class, Score)):
        raise ScoreInputError(f"{score_class!r} is not a subclass of hf_oodclip.Score.")
    for attribute in ("name", "info"):
        if not hasattr(score_class, attribute):
            raise ScoreInputError(f"{score_class.__name__} has no class attribute {attribute!r}; set it.")
    taken = _registered.get(score_class.name)
    same = taken is not None and taken.__qualname__ == score_class.__qualname__
    if score_class.name in _TABLE or (taken is not None and not same):
        raise ScoreInputError(f"The score name {score_class.name!r} is taken; choose another name.")
    _registered[score_class.name] = score_class
    return score_class


def get_score_class(name: str) -> type[Score]:
    """Return the class behind a score name.

    Raises:
        UnknownNameError: No score has that name; the message suggests the nearest.
    """
    if name in _registered:
        return _registered[name]
    if name not in _TABLE:
        raise unknown_name("score", name, list_scores(), "Own scores: hf_oodclip.register_score.")
    module_name, class_name = _TABLE[name].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module_name}"), class_name)


def get_score(name: str | Score, **options: Any) -> Score:
    """Return a ready score by name, with its options.

    Args:
        name: A name from `list_scores()`; a `Score` is passed through. With other options it keeps what
            it was fitted to, unless the fit depends on them.
        options: Constructor options of that score, such as `temperature`.

    Raises:
        UnknownNameError: No score, or no option of that score, has the given name.

    Example:
        >>> get_score("mcm", temperature=0.5).options
        {'temperature': 0.5}
    """
    score_class = type(name) if isinstance(name, Score) else get_score_class(name)
    allowed = [field.name for field in dataclasses.fields(score_class) if field.init]
    for option in options:
        if option not in allowed:
            raise unknown_name(f"option of score {score_class.name!r}", option, allowed)
    if isinstance(name, Score):
        if not options:
            return name
        changed = dataclasses.replace(name, **options)
        if all(getattr(changed, option) == getattr(name, option) for option in name.fit_options):
            changed.load_state_dict(name.state_dict())
        return changed
    return score_class(**options)
