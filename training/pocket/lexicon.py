"""What the pocket CLIP's text tower reads: names of classes and parents, nouns, adjectives, glosses, pairs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_oodclip.errors import DataError

from .wordnet import LOCATION, PERSON, PHYSICAL, WordNet

__all__ = ["TEMPLATES", "Classes", "Lexicon", "build_lexicon", "read_classes"]

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "this is a photo of a {}.",
    "a {}.",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a bad photo of a {}.",
    "a low resolution photo of a {}.",
    "a rendering of a {}.",
    "the {}",
    "{}",
)
PLAIN_WORD = re.compile(r"^[A-Za-z][A-Za-z' \-]+$")
MOST_CHILDREN = 120


@dataclass(frozen=True)
class Classes:
    """Names of the trained and the held-out classes by WordNet id, and parents that no caption uses."""

    seen: Mapping[str, str]
    held_out: Mapping[str, str]
    abstract_parents: frozenset[str]


@dataclass(frozen=True)
class Lexicon:
    """All texts of the pretraining.

    Args:
        names: Ways to call each seen class, by its name; the first is the name itself.
        ancestors: Names of the parents of each seen class that are used as captions.
        parents: Names of all these parents.
        nouns: Nouns, the commonest things first.
        num_common: How many of the first nouns are read more often.
        adjectives, glosses, pairs: Further texts; a pair is an adjective with a noun.
    """

    names: Mapping[str, tuple[str, ...]]
    ancestors: Mapping[str, tuple[str, ...]]
    parents: tuple[str, ...]
    nouns: tuple[str, ...]
    num_common: int
    adjectives: tuple[str, ...]
    glosses: tuple[str, ...]
    pairs: tuple[str, ...]


def read_classes(path: Path | None = None) -> Classes:
    """Return the class split from a JSON file; the package's own by default."""
    path = path or Path(__file__).with_name("classes.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Classes(record["seen"], record["held_out"], frozenset(record["abstract_parents"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no file of classes like training/pocket/classes.json: {error}.") from error


def build_lexicon(wordnet: WordNet, classes: Classes, sizes: Mapping[str, int], seed: int) -> Lexicon:
    """Return the texts to learn from; no list of any test set takes part.

    Args:
        wordnet: Where the words come from.
        classes: Classes whose images are trained on.
        sizes: How many `nouns`, `common`, `adjectives`, `glosses` and `pairs` at most.
        seed: Decides ties and draws.

    Raises:
        DataError: WordNet has no such class.
    """
    if missing := [synset for synset in classes.seen if synset not in wordnet.nouns]:
        raise DataError(f"WordNet has no noun {missing[0]} ({classes.seen[missing[0]]}): its version must be 3.0.")
    generator = random.Random(seed)
    children: dict[str, int] = {}
    for synset in classes.seen:
        for parent in wordnet.ancestors(synset):
            children[parent] = children.get(parent, 0) + 1
    parents = {
        synset: wordnet.nouns[synset].words[0]
        for synset, count in children.items()
        if 2 <= count <= MOST_CHILDREN and wordnet.nouns[synset].words[0] not in classes.abstract_parents
    }
    # The first word of a synset that was renamed by hand is ambiguous, so its other words may be too.
    names = {
        name: (name, *words[1:2]) if name == words[0] else (name,)
        for name, words in ((name, wordnet.nouns[synset].words) for synset, name in classes.seen.items())
    }
    ranked = _rank_nouns(wordnet, generator)
    own = [word.lower() for words in (*names.values(), tuple(parents.values())) for word in words]
    nouns = tuple(dict.fromkeys([*own, *ranked[: sizes["nouns"]]]))
    adjectives = sorted(
        (word for word in wordnet.adjective_counts if PLAIN_WORD.match(word)),
        key=lambda word: (-wordnet.adjective_counts[word], generator.random()),
    )[: sizes["adjectives"]]
    glosses = [s.gloss for s in wordnet.nouns.values() if s.file in PHYSICAL and 10 < len(s.gloss) < 45]
    generator.shuffle(glosses)
    common_adjectives = adjectives[: max(1, len(adjectives) // 4)]
    pairs = [
        f"{generator.choice(common_adjectives)} {generator.choice(nouns[: sizes['common']])}"
        for _ in range(sizes["pairs"])
    ]
    return Lexicon(
        names=names,
        ancestors={
            name: tuple(parents[parent] for parent in wordnet.ancestors(synset) if parent in parents)
            for synset, name in classes.seen.items()
        },
        parents=tuple(dict.fromkeys(parents.values())),
        nouns=nouns,
        num_common=min(len(nouns), sizes["common"]),
        adjectives=tuple(adjectives),
        glosses=tuple(glosses[: sizes["glosses"]]),
        pairs=tuple(pairs),
    )


def _rank_nouns(wordnet: WordNet, generator: random.Random) -> list[str]:
    """Return plain nouns, the ones in common use and those of physical things first."""
    worth: dict[str, int] = {}
    for synset in wordnet.nouns.values():
        for place, word in enumerate(synset.words):
            is_name = word[0].isupper() and synset.file in (PERSON, LOCATION)
            if not PLAIN_WORD.match(word) or len(word) > 28 or is_name:
                continue
            key = word.lower()
            points = wordnet.noun_counts.get(key, 0) + 2 * (synset.file in PHYSICAL) + (place == 0) - key.count(" ")
            worth[key] = max(worth.get(key, points), points)
    return sorted(worth, key=lambda word: (-worth[word], generator.random()))
