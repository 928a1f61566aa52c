"""Mining: which words of a large list are far from every label, by the rules of two papers."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .errors import NegativesError, unknown_name
from .negatives import Negatives, check_words
from .templates import resolve_templates
from .text_bank import Average, TextEncoder, check_labels

__all__ = ["MINING_METHODS", "MiningMethod", "mine_negatives", "remine", "upper_quantile", "wordnet_words"]


@dataclass(frozen=True)
class MiningMethod:
    """The rules by which a paper picks negatives out of a word list.

    Words that WordNet lists only under `left_out` are not looked at; every adjective is put before one
    of `super_classes`, chosen at random; a word with a label nearer than `nearest` counts as one.
    """

    paper: str
    label_templates: str
    templates: Mapping[str, str | tuple[str, ...]]
    order: tuple[str, ...]
    interpolate: bool = True
    remove_labels: bool = False
    first_lemmas_only: bool = True
    fraction: float | None = None
    num_negatives: int | None = None
    average: Average = "normalized"
    left_out: tuple[str, ...] = ()
    super_classes: tuple[str, ...] = ()
    nearest: float | None = None


MINING_METHODS: dict[str, MiningMethod] = {
    "neglabel": MiningMethod(
        paper="NegLabel (Jiang et al., ICLR 2024)",
        label_templates="nice",
        templates={"noun": "nice", "adjective": "adjective", "word": "nice"},
        order=("noun", "adjective", "word"),
        fraction=0.15,
    ),
    "krnft": MiningMethod(
        paper="KR-NFT (ACM MM 2025) and OpenOOD-VLM",
        label_templates="nice_period",
        templates={"noun": "nice_period", "adjective": "adjective_period", "word": "nice_period"},
        order=("adjective", "noun", "word"),
        interpolate=False,
        remove_labels=True,
        first_lemmas_only=False,
        num_negatives=10_000,
    ),
    "csp": MiningMethod(
        paper="CSP (Chen et al., NeurIPS 2024)",
        label_templates="csp",
        templates={
            "noun": "csp",
            "adjective": ("{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}"),
            "word": "csp",
        },
        order=("noun", "adjective", "word"),
        fraction=0.15,
        average="raw",
        left_out=("noun.person", "noun.quantity", "noun.group", "adj.pert"),
        super_classes=(
            *("environment", "space", "object", "scene", "place", "item", "area", "view", "thing", "pattern"),
            *("structure", "landscape", "vista", "creature"),
        ),
        nearest=0.95,
    ),
}


@lru_cache(maxsize=3)
def wordnet_words(first_only: bool = False, left_out: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the WordNet 3.0 nouns and adjectives that ship with the package, sorted, by kind.

    A word that is both noun and adjective is kept as a noun only, as both mining methods have it.

    Args:
        first_only: Keep the first lemma of each synset and leave out its synonyms.
        left_out: Files of WordNet, such as `noun.person`; words that are in no other are left out.
    """
    folder = files("hf_oodclip") / "assets" / "words"
    words: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for kind, name in (("noun", "wordnet_nouns.txt.xz"), ("adjective", "wordnet_adjectives.txt.xz")):
        lines = lzma.decompress((folder / name).read_bytes()).decode("utf-8").splitlines()
        rows = (line.split("\t") for line in lines)
        pool = [
            word
            for word, found_in, place in rows
            if (place == "first" or not first_only) and not set(found_in.split(",")) <= set(left_out)
        ]
        words[kind] = tuple(word for word in pool if word not in seen)
        seen.update(words[kind])
    return words


def upper_quantile(
    words: Tensor,
    labels: Tensor,
    quantile: float = 0.95,
    interpolate: bool = True,
    chunk_elements: int = 2**22,
) -> Tensor:
    """Return, for every word, a high quantile of its cosines to the labels, `[W]`.

    Args:
        words: Normalised embeddings of the words, `[W, D]`.
        labels: Normalised embeddings of the labels, `[N, D]`.
        quantile: Between 0 and 1.
        interpolate: Interpolate linearly at position `quantile * (N - 1)` (NegLabel), or take the
            element at `floor(quantile * N)` of the ascending order (KR-NFT).
        chunk_elements: Most cosines held at once.
    """
    num_labels = labels.shape[0]
    position = quantile * (num_labels - 1) if interpolate else min(math.floor(quantile * num_labels), num_labels - 1)
    lower = math.floor(position)
    weight = position - lower
    result = torch.empty(words.shape[0], dtype=words.dtype)
    for start in range(0, words.shape[0], max(1, chunk_elements // num_labels)):
        rows = slice(start, start + max(1, chunk_elements // num_labels))
        # The quantile sits near the top: the few largest cosines are enough, and cheaper than a sort.
        largest = (words[rows] @ labels.T).topk(num_labels - lower, dim=1).values
        value = largest[:, -1]
        if weight > 0:
            value = torch.lerp(value, largest[:, -2], weight)
        result[rows] = value
    return result


def _pools(words: Mapping[str, Iterable[str]] | Iterable[str]) -> dict[str, list[str]]:
    by_kind = words if isinstance(words, Mapping) else {"word": words}
    unknown = sorted(set(by_kind) - {"noun", "adjective", "word"})
    if unknown:
        raise unknown_name("kind of words", unknown[0], ("noun", "adjective", "word"))
    pools: dict[str, set[str]] = {}
    for kind, pool in by_kind.items():
        listed = pool if isinstance(pool, str) else [w for w in pool if not isinstance(w, str) or w.strip()]
        pools[kind] = set(check_words(listed, "words")) if listed else set()
    pools["adjective"] = pools.get("adjective", set()) - pools.get("noun", set())
    # Sorted, so that the order of the input cannot change what is mined.
    return {kind: sorted(pool) for kind, pool in pools.items()}


def mine_negatives(
    labels: Sequence[str],
    encoder: TextEncoder,
    method: str = "neglabel",
    words: Mapping[str, Iterable[str]] | Iterable[str] | None = None,
    *,
    num_negatives: int | None = None,
    fraction: float | None = None,
    quantile: float = 0.95,
    templates: str | Sequence[str] | None = None,
) -> Negatives:
    """Return the words that are farthest from every label.

    For each word, a high quantile of its cosines to the labels is taken; within each kind of word
    (nouns, adjectives) those with the smallest are kept, in ascending order.

    Args:
        labels: Class names.
        encoder: Text encoder whose space is mined.
        method: `neglabel` keeps a fraction (0.15) of each kind; `krnft` keeps `num_negatives`
            (10,000) shared over kinds in proportion, after removing words equal to a label; `csp` is
            `neglabel` with prompt ensembles (averaged raw: `model.set_labels(..., average="raw")`) and a random
            super-class after each adjective ("foggy landscape").
        words: Your own words, flat or by kind (`noun`, `adjective`, `word`); WordNet when None.
        num_negatives: Keep this many in all instead of the method's own amount.
        fraction: Keep this share of each kind instead.
        quantile: Which quantile counts; below 1 a few labels may be near.
        templates: One set of templates for labels and words instead of the method's own (adjectives
            keep theirs only when this is None).

    Raises:
        UnknownNameError: No such method, template name, or kind of words.
        NegativesError: No word is left to choose from, or an amount is out of range.

    Source: NegLabel (ICLR 2024), algorithm 1; KR-NFT (ACM MM 2025); CSP (NeurIPS 2024).

    Example:
        >>> import hf_oodclip
        >>> from transformers import AutoTokenizer, CLIPModel
        >>> folder = hf_oodclip.pocket_path()
        >>> encoder = TextEncoder(CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        >>> mined = mine_negatives(["cat"], encoder, words=["kitten", "tax law"], num_negatives=1)
        >>> mined.texts
        ['tax law']
    """
    if method not in MINING_METHODS:
        raise unknown_name("mining method", method, MINING_METHODS)
    if fraction is not None and num_negatives is not None:
        raise NegativesError("Give num_negatives or fraction, not both.")
    rules = MINING_METHODS[method]
    if fraction is None and num_negatives is None:
        fraction, num_negatives = rules.fraction, rules.num_negatives
    if not 0 <= quantile <= 1:
        raise NegativesError(f"quantile must be between 0 and 1, got {quantile}.")
    if (fraction is not None and not 0 < fraction <= 1) or (num_negatives is not None and num_negatives < 1):
        raise NegativesError(
            f"fraction must be in (0, 1] and num_negatives at least 1, got {fraction} and {num_negatives}."
        )
    labels = check_labels(labels)
    left_out = [rules.left_out] if rules.left_out else []
    pools = _pools(wordnet_words(rules.first_lemmas_only, *left_out) if words is None else words)
    if rules.super_classes:
        pools["adjective"] = _with_super_classes(pools["adjective"], rules.super_classes)
    if rules.remove_labels:
        pools = {kind: [w for w in pool if w not in set(labels)] for kind, pool in pools.items()}
    kinds = [kind for kind in rules.order if pools.get(kind)]
    used = {kind: resolve_templates(rules.templates[kind] if templates is None else templates) for kind in kinds}
    label_templates = resolve_templates(rules.label_templates if templates is None else templates)
    too_long = 0
    for kind in kinds:
        overlong = encoder.overlong(pools[kind], used[kind])
        pools[kind] = [word for index, word in enumerate(pools[kind]) if index not in overlong]
        too_long += len(overlong)
    kinds = [kind for kind in kinds if pools[kind]]
    if not kinds:
        raise NegativesError("No word is left to mine from; give words that are no labels and fit the text tower.")

    label_embeds = normalize(encoder.embed(labels, label_templates, rules.average), dim=-1)
    amounts = _amounts({kind: len(pools[kind]) for kind in kinds}, fraction, num_negatives)
    selected: dict[str, list[str]] = {}
    for kind in kinds:
        embeds = encoder.embed(pools[kind], used[kind], rules.average)
        distance = upper_quantile(embeds, label_embeds, quantile, rules.interpolate)
        if rules.nearest is not None:
            distance[upper_quantile(embeds, label_embeds, 1.0) > rules.nearest] = 1.0
        nearest_first = torch.sort(distance, stable=True).indices
        selected[kind] = [pools[kind][index] for index in nearest_first[: amounts[kind]].tolist()]
    provenance = {
        "method": method,
        "paper": rules.paper,
        "words": "WordNet 3.0" if words is None else "own list",
        "pool": {kind: len(pools[kind]) for kind in kinds},
        "left_out_too_long": too_long,
        "quantile": quantile,
        "fraction": fraction,
        "num_negatives": num_negatives,
        "labels": list(labels),
        "label_templates": label_templates,
        "templates": None if templates is None else label_templates,
        "text_tower": encoder.fingerprint,
    }
    return Negatives(selected, used, provenance)


def _with_super_classes(adjectives: list[str], super_classes: tuple[str, ...]) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(super_classes), (len(adjectives),), generator=generator).tolist()
    return [f"{adjective} {super_classes[index]}" for adjective, index in zip(adjectives, drawn, strict=True)]


def _amounts(pool: dict[str, int], fraction: float | None, num_negatives: int | None) -> dict[str, int]:
    if fraction is not None:
        # 0.29 * 100 falls a rounding error below the whole number it stands for.
        return {kind: max(1, math.floor(fraction * size + 1e-9)) for kind, size in pool.items()}
    assert num_negatives is not None
    total = sum(pool.values())
    wanted = min(num_negatives, total)
    amounts = {kind: wanted * size // total for kind, size in pool.items()}
    # What rounding leaves over goes to the nouns, in KR-NFT; to others where there are no more nouns.
    for kind in sorted(pool, key=("noun", "word", "adjective").index):
        amounts[kind] += min(wanted - sum(amounts.values()), pool[kind] - amounts[kind])
    return amounts


def remine(negatives: Negatives, labels: Sequence[str], encoder: TextEncoder) -> Negatives:
    """Return the negatives the same recipe gives for other labels.

    Words that were not mined from WordNet (your own list, or mined from one) come back unchanged.
    """
    recipe = negatives.provenance
    if recipe.get("words") != "WordNet 3.0" or list(labels) == recipe.get("labels"):
        return negatives
    return mine_negatives(
        labels,
        encoder,
        recipe["method"],
        num_negatives=recipe["num_negatives"],
        fraction=recipe["fraction"],
        quantile=recipe["quantile"],
        templates=recipe["templates"],
    )
