"""Negatives: words that are none of the labels, kept as readable text with where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import NegativesError, OODCLIPError
from .templates import resolve_templates
from .text_bank import Average, TextEncoder

__all__ = ["Negatives", "check_words"]

FORMAT = "hf_oodclip negatives 1"


@dataclass(frozen=True)
class Negatives:
    """Negative words with the templates that prompt them and the record of where they come from.

    Args:
        words: Words by kind (`noun`, `adjective`, `word`), in bank order.
        templates: Prompt templates by kind.
        provenance: How the words were found (method, options, labels, counts); free-form JSON.

    Example:
        >>> negatives = Negatives.from_words(["gravel", "fog"], "photo")
        >>> len(negatives), negatives.texts
        (2, ['gravel', 'fog'])
    """

    words: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_words(cls, words: Iterable[str], templates: str | Sequence[str] = "photo") -> Negatives:
        """Return negatives from your own list, duplicates left out, order kept.

        Raises:
            NegativesError: The list is empty, a string, or has an entry that is not a word.
        """
        unique = list(dict.fromkeys(check_words(words, "negatives")))
        return cls(
            {"word": unique},
            {"word": resolve_templates(templates)},
            {"method": "own list", "given": len(unique)},
        )

    def __len__(self) -> int:
        return sum(len(words) for words in self.words.values())

    @property
    def texts(self) -> list[str]:
        """All words in bank order."""
        return [word for words in self.words.values() for word in words]

    @property
    def label_templates(self) -> list[str] | None:
        """The label templates the words were mined with, or None for a list of your own."""
        return self.provenance.get("label_templates")

    def without(self, labels: Iterable[str]) -> Negatives:
        """Return the negatives without words that equal a label (case and outer spaces ignored)."""
        taken = {label.strip().lower() for label in labels}
        kept = {kind: [w for w in words if w.strip().lower() not in taken] for kind, words in self.words.items()}
        return Negatives(kept, self.templates, self.provenance)

    def embed(self, encoder: TextEncoder, average: Average = "normalized") -> Tensor:
        """Return one embedding a word, `[M, D]`, in bank order; `average` as in `TextEncoder.embed`."""
        return torch.cat([encoder.embed(words, self.templates[kind], average) for kind, words in self.words.items()])

    def save(self, path: str | Path) -> None:
        """Write a JSON file that a person can read and `Negatives.load` restores."""
        content = {
            "format": FORMAT,
            "provenance": dict(self.provenance),
            "templates": {kind: list(templates) for kind, templates in self.templates.items()},
            "words": {kind: list(words) for kind, words in self.words.items()},
        }
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Negatives:
        """Read a file written by `save`, or a plain text file with one word a line.

        Raises:
            NegativesError: The file is missing or is neither of the two.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise NegativesError(f"The negatives file {path} cannot be read: {error}.") from error
        try:
            if not text.lstrip().startswith(("{", "[")):
                return cls.from_words(line.strip() for line in text.splitlines() if line.strip())
            return cls._from_content(json.loads(text))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, OODCLIPError) as error:
            raise NegativesError(
                f"{path} is not a negatives file ({error}); make one with `oodclip mine`, or write one word a line."
            ) from error

    @classmethod
    def _from_content(cls, content: Any) -> Negatives:
        if content["format"] != FORMAT:
            raise NegativesError(f"its format is {content['format']!r}, and this version reads {FORMAT!r}")
        words = {kind: check_words(listed, kind) for kind, listed in content["words"].items()}
        templates = {kind: resolve_templates(content["templates"][kind]) for kind in words}
        if not words:
            raise NegativesError("it has no words")
        if not isinstance(content["provenance"], dict):
            raise NegativesError("its provenance is no record")
        return cls(words, templates, content["provenance"])


def check_words(words: Any, what: str) -> list[str]:
    """Return the words as a list, or say what is wrong with them.

    Raises:
        NegativesError: Not a list, empty, or with an entry that is no word.
    """
    if isinstance(words, str):
        raise NegativesError(f"{what} must be a list of words, got the string {words!r}.")
    if not isinstance(words, Iterable):
        raise NegativesError(f"{what} must be a list of words, got {words!r}.")
    listed = list(words)
    bad = [word for word in listed if not isinstance(word, str) or not word.strip()]
    if bad or not listed:
        found = f"it holds {bad[0]!r}" if bad else "it is empty"
        raise NegativesError(f"The list of {what} (words) cannot be used: {found}. Give non-empty words.")
    return listed
