"""Negatives: words that are none of the labels, kept as readable text with where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import NegativesError
from .templates import resolve_templates
from .text_bank import TextEncoder

__all__ = ["Negatives"]

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
        if isinstance(words, str):
            raise NegativesError(f"negatives must be a list of words, got the string {words!r}.")
        unique = list(dict.fromkeys(words))
        bad = [word for word in unique if not isinstance(word, str) or not word.strip()]
        if bad or not unique:
            found = f"it holds {bad[0]!r}" if bad else "it is empty"
            raise NegativesError(f"The list of negative words cannot be used: {found}. Give non-empty words.")
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

    def embed(self, encoder: TextEncoder) -> Tensor:
        """Return one normalised embedding a word, `[M, D]`, in bank order."""
        return torch.cat([encoder.embed(words, self.templates[kind]) for kind, words in self.words.items() if words])

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
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NegativesError(f"The negatives file {path} cannot be read: {error}.") from error
        if not text.lstrip().startswith("{"):
            return cls.from_words(line.strip() for line in text.splitlines() if line.strip())
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise NegativesError(f"{path} has format {content['format']!r}; this version reads {FORMAT!r}.")
            return cls(content["words"], content["templates"], content["provenance"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise NegativesError(
                f"{path} is not a negatives file ({error}); make one with `oodclip mine`, or write one word a line."
            ) from error
