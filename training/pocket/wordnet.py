"""WordNet's nouns and adjectives from its database files: words, parents, glosses, how often each is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_oodclip.errors import DataError

__all__ = ["Synset", "WordNet", "read_wordnet"]

# Lexicographer files of things that can be photographed (lexnames(5WN)).
PHYSICAL = frozenset({5, 6, 8, 13, 17, 18, 20, 27})
PERSON, LOCATION = 18, 15


@dataclass(frozen=True)
class Synset:
    """One meaning: its words, the ids of its direct parents, its gloss, the number of its lexicographer file."""

    words: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str
    file: int


@dataclass(frozen=True)
class WordNet:
    """Nouns by id (`n01443537`), and how often words occur in WordNet's tagged texts.

    Args:
        nouns: Synsets by id.
        noun_counts: Number of tagged senses of every noun, in lower case.
        adjective_counts: The same of every adjective.
    """

    nouns: Mapping[str, Synset]
    noun_counts: Mapping[str, int]
    adjective_counts: Mapping[str, int]

    def ancestors(self, synset: str) -> list[str]:
        """Return all parents of a synset, nearest first."""
        found: dict[str, None] = {}
        waiting = list(self.nouns[synset].parents)
        while waiting:
            parent = waiting.pop(0)
            if parent not in found:
                found[parent] = None
                waiting += self.nouns[parent].parents
        return list(found)


def read_wordnet(folder: str | Path) -> WordNet:
    """Return WordNet 3.0 from the folder that holds `data.noun`, `index.noun` and `index.adj`.

    Raises:
        DataError: One of the files is not there, or is none of WordNet's.

    Source: wndb(5WN) describes the files; Debian packages them as `wordnet-base`.
    """
    folder = Path(folder)
    try:
        nouns = dict(_synsets(folder / "data.noun"))
        counts = dict(_counts(folder / "index.noun")), dict(_counts(folder / "index.adj"))
    except OSError as error:
        raise DataError(
            f"{folder} is no folder of WordNet's database files ({error}): install them (apt-get install "
            "wordnet-base) and give /usr/share/wordnet."
        ) from error
    except (IndexError, ValueError) as error:
        raise DataError(f"A file in {folder} is not as WordNet 3.0 has it: {error}.") from error
    return WordNet(nouns, *counts)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        # The licence stands on indented lines.
        yield from (line.rstrip("\n") for line in file if not line.startswith("  "))


def _synsets(path: Path) -> Iterator[tuple[str, Synset]]:
    for line in _lines(path):
        entry, _, gloss = line.partition(" | ")
        fields = entry.split()
        num_words = int(fields[3], 16)
        words = tuple(fields[4 + 2 * place].replace("_", " ") for place in range(num_words))
        start = 5 + 2 * num_words
        pointers = [fields[start + 4 * place : start + 4 * place + 2] for place in range(int(fields[start - 1]))]
        parents = tuple(f"n{offset}" for kind, offset in pointers if kind in ("@", "@i"))
        yield f"n{fields[0]}", Synset(words, parents, gloss.split(";")[0].strip(), int(fields[1]))


def _counts(path: Path) -> Iterator[tuple[str, int]]:
    for line in _lines(path):
        fields = line.split()
        yield fields[0].replace("_", " "), int(fields[5 + int(fields[3])])
