"""Mining against a slow reading of both papers' rules: which words, how many, in which order."""

import itertools
import lzma
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

import hf_oodclip
from hf_oodclip import Negatives, TextEncoder, mine_negatives, mining
from hf_oodclip.errors import LabelError, NegativesError, TemplateError, UnknownNameError
from hf_oodclip.mining import remine, upper_quantile, wordnet_words

# From methods.md A.4 and C15: templates of labels and nouns, of adjectives, and the order of kinds.
NOUN_TEMPLATE = {"neglabel": "the nice {}", "krnft": "the nice {}."}
ADJECTIVE_TEMPLATE = {"neglabel": "This is a {} photo", "krnft": "This is a {} photo."}
KIND_ORDER = {"neglabel": ["noun", "adjective"], "krnft": ["adjective", "noun"]}
METHODS = sorted(NOUN_TEMPLATE)
# Two cosines nearer than this may change places with the order of a sum.
TIE = 1e-6


@pytest.fixture(scope="module")
def encoder(pocket: str) -> TextEncoder:
    return TextEncoder(CLIPModel.from_pretrained(pocket), AutoTokenizer.from_pretrained(pocket))


@pytest.fixture(scope="module")
def tiny_encoder(tiny_clip: str) -> TextEncoder:
    """Where only amounts and names matter."""
    return TextEncoder(CLIPModel.from_pretrained(tiny_clip), AutoTokenizer.from_pretrained(tiny_clip), cache=False)


@pytest.fixture(scope="module")
def words() -> dict[str, list[str]]:
    """300 nouns and 120 adjectives of WordNet, some of them both, in no order."""
    full = wordnet_words()
    nouns, adjectives = random.Random(0).sample(full["noun"], 290), random.Random(1).sample(full["adjective"], 115)
    both = ["light", "cold", "green", "sweet", "square"]
    nouns, adjectives = [*nouns, *both, *[f"{word} thing" for word in both]], [*adjectives, *both]
    random.Random(2).shuffle(nouns)
    random.Random(3).shuffle(adjectives)
    return {"noun": nouns, "adjective": adjectives}


def labels_of(count: int) -> list[str]:
    """Return class names, nothing to do with the sampled words but for the last one."""
    names = "goldfish,school bus,teapot,sea lion,barn,cliff,espresso,lemon,obelisk,mushroom,torch,pole,plate,"
    names += "bison,stopwatch,trolleybus,umbrella,volleyball,water tower,wok,guacamole,ice cream,pizza,beaker,"
    names += "abacus,altar,apron,backpack,bannister,barrel,basketball,bathtub,bikini,birdhouse,broom,bucket,butcher,"
    names += "candle,cannon,cardigan"
    return names.split(",")[:count]


def slow_quantiles(word_embeds: torch.Tensor, label_embeds: torch.Tensor, method: str, q: float = 0.95) -> list[float]:
    """Return each word's quantile of its cosines to the labels, one word at a time."""
    label_rows = label_embeds.double().numpy()
    values = []
    for word in word_embeds.double().numpy():
        cosines = sorted(float(np.dot(word, label)) for label in label_rows)
        if method == "neglabel":
            values.append(float(np.quantile(cosines, q, method="linear")))
        else:
            values.append(cosines[min(math.floor(q * len(cosines)), len(cosines) - 1)])
    return values


def slow_pools(words: Mapping[str, Sequence[str]], labels: Sequence[str], method: str) -> dict[str, list[str]]:
    """Return the candidates of each kind: unique, a word of both kinds a noun, labels gone in `krnft`."""
    nouns, adjectives = set(words.get("noun", [])), set(words.get("adjective", []))
    if method == "krnft":
        nouns, adjectives = nouns - set(labels), adjectives - set(labels)
    return {"noun": sorted(nouns), "adjective": sorted(adjectives - nouns)}


def assert_nearest_first(chosen: Sequence[str], values: Mapping[str, float], amount: int) -> None:
    """Check that these are the words of smallest value, ascending, up to ties."""
    assert len(chosen) == len(set(chosen)) == amount
    picked = [values[word] for word in chosen]
    assert all(later >= earlier - TIE for earlier, later in itertools.pairwise(picked))
    left_out = [value for word, value in values.items() if word not in set(chosen)]
    assert not left_out or max(picked) <= min(left_out) + TIE


# ---- both methods against the slow reference --------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 2, 5, 21, 40])
@pytest.mark.parametrize("method", METHODS)
def test_the_words_far_from_every_label_are_found(
    method: str, num_labels: int, encoder: TextEncoder, words: dict[str, list[str]]
) -> None:
    # The last label is also a word.
    labels = [*labels_of(num_labels - 1), "cold"]
    amount = {"num_negatives": 101} if method == "krnft" else {}
    mined = mine_negatives(labels, encoder, method, words, **amount)
    pools = slow_pools(words, labels, method)
    if method == "neglabel":
        amounts = {kind: math.floor(0.15 * len(pool)) for kind, pool in pools.items()}
    else:
        num_adjectives = math.floor(101 * len(pools["adjective"]) / (len(pools["adjective"]) + len(pools["noun"])))
        amounts = {"adjective": num_adjectives, "noun": 101 - num_adjectives}
    assert list(mined.words) == KIND_ORDER[method]
    label_embeds = encoder.embed(labels, [NOUN_TEMPLATE[method]])
    for kind, template in (("noun", NOUN_TEMPLATE[method]), ("adjective", ADJECTIVE_TEMPLATE[method])):
        values = slow_quantiles(encoder.embed(pools[kind], [template]), label_embeds, method)
        assert_nearest_first(mined.words[kind], dict(zip(pools[kind], values, strict=True)), amounts[kind])
        assert list(mined.templates[kind]) == [template]
    assert mined.label_templates == [NOUN_TEMPLATE[method]]


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_another_quantile(method: str, quantile: float, encoder: TextEncoder, words: dict[str, list[str]]) -> None:
    labels, nouns = labels_of(20), sorted(set(words["noun"]))
    mined = mine_negatives(labels, encoder, method, {"noun": nouns}, num_negatives=30, quantile=quantile)
    template = [NOUN_TEMPLATE[method]]
    values = slow_quantiles(encoder.embed(nouns, template), encoder.embed(labels, template), method, quantile)
    assert_nearest_first(mined.texts, dict(zip(nouns, values, strict=True)), 30)
    assert mined.provenance["quantile"] == quantile


def test_a_lower_quantile_tolerates_a_near_label(encoder: TextEncoder) -> None:
    labels = [*labels_of(39), "kitten"]
    words = ["kitten", "cat", "tabby", "stairs", "candlestick", "tower", "cup"]
    strict = mine_negatives(labels, encoder, words=words, num_negatives=7, quantile=1.0)
    tolerant = mine_negatives(labels, encoder, words=words, num_negatives=7, quantile=0.5)
    assert strict.texts[-1] == "kitten"
    assert tolerant.texts.index("kitten") < 6


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_words_and_labels_changes_nothing(
    method: str, encoder: TextEncoder, words: dict[str, list[str]]
) -> None:
    labels = labels_of(21)
    expected = mine_negatives(labels, encoder, method, words, num_negatives=100)
    for seed in range(3):
        shuffler = random.Random(seed)
        other_words = {kind: shuffler.sample(pool, len(pool)) for kind, pool in reversed(words.items())}
        other_labels = shuffler.sample(labels, len(labels))
        fresh = TextEncoder(encoder.clip, encoder.tokenizer, cache=False)
        other = mine_negatives(other_labels, fresh, method, other_words, num_negatives=100)
        assert other.words == expected.words
        assert list(other.words) == list(expected.words)


def test_sets_generators_and_duplicates_give_the_same(encoder: TextEncoder, words: dict[str, list[str]]) -> None:
    nouns, labels = words["noun"], labels_of(5)
    expected = mine_negatives(labels, encoder, words=nouns)
    assert mine_negatives(labels, encoder, words=set(nouns)) == expected
    assert mine_negatives(labels, encoder, words=(word for word in [*nouns, *nouns, " "])) == expected


def test_duplicate_labels_weigh_twice(encoder: TextEncoder, words: dict[str, list[str]]) -> None:
    labels, nouns = ["goldfish", "goldfish", "teapot"], sorted(set(words["noun"]))
    mined = mine_negatives(labels, encoder, words={"noun": nouns}, quantile=0.5, num_negatives=30)
    template = ["the nice {}"]
    values = slow_quantiles(encoder.embed(nouns, template), encoder.embed(labels, template), "neglabel", 0.5)
    assert_nearest_first(mined.texts, dict(zip(nouns, values, strict=True)), 30)


# ---- which words may be chosen -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_word_of_both_kinds_is_a_noun_once(method: str, tiny_encoder: TextEncoder) -> None:
    words = {"adjective": ["light", "wet"], "noun": ["light", "fog"]}
    mined = mine_negatives(["cat"], tiny_encoder, method, words, num_negatives=10)
    assert {kind: sorted(chosen) for kind, chosen in mined.words.items()} == {
        "noun": ["fog", "light"],
        "adjective": ["wet"],
    }


def test_only_krnft_leaves_out_words_equal_to_a_label(tiny_encoder: TextEncoder) -> None:
    words = {"noun": ["fog", "cat", "Cat", "orange"], "adjective": ["orange", "wet"]}
    labels = ["cat", "orange"]
    by_krnft = mine_negatives(labels, tiny_encoder, "krnft", words, num_negatives=10)
    # The comparison is exact, and an adjective that was a noun equal to a label is equal to it too.
    assert sorted(by_krnft.texts) == ["Cat", "fog", "wet"]
    assert by_krnft.provenance["pool"] == {"noun": 2, "adjective": 1}
    by_neglabel = mine_negatives(labels, tiny_encoder, "neglabel", words, fraction=1.0)
    assert sorted(by_neglabel.words["noun"]) == ["Cat", "cat", "fog", "orange"]


def test_words_too_long_for_the_text_tower_are_left_out_and_counted(tiny_encoder: TextEncoder) -> None:
    # Of the 32 positions, start and end take 2; "This is a" with "photo" takes more than "the nice".
    fits = " ".join(["cat"] * (32 - len(tiny_encoder.tokenizer("the nice").input_ids)))
    words = {"noun": ["fog", fits, fits + " cat", fits + " cat cat"], "adjective": ["wet", fits + " "]}
    mined = mine_negatives(["dog"], tiny_encoder, words=words, fraction=1.0)
    assert {kind: sorted(chosen) for kind, chosen in mined.words.items()} == {
        "noun": sorted(["fog", fits]),
        "adjective": ["wet"],
    }
    assert mined.provenance["left_out_too_long"] == 3
    assert mined.provenance["pool"] == {"noun": 2, "adjective": 1}


def test_a_kind_of_which_no_word_fits_is_gone(tiny_encoder: TextEncoder) -> None:
    words = {"noun": ["fog", "gravel"], "adjective": [" ".join(["wet"] * 40)]}
    assert list(mine_negatives(["cat"], tiny_encoder, words=words, fraction=1.0).words) == ["noun"]


def test_flat_words_are_prompted_as_nouns(tiny_encoder: TextEncoder) -> None:
    for method in METHODS:
        mined = mine_negatives(["cat"], tiny_encoder, method, ["fog", "wet", "cat"], num_negatives=10)
        assert list(mined.words) == ["word"]
        assert list(mined.templates["word"]) == [NOUN_TEMPLATE[method]]
        assert sorted(mined.texts) == (["fog", "wet"] if method == "krnft" else ["cat", "fog", "wet"])
        assert mined.provenance["words"] == "own list"


def test_all_three_kinds_keep_the_order_of_the_method(tiny_encoder: TextEncoder) -> None:
    words = {"word": ["one"], "adjective": ["wet"], "noun": ["fog"]}
    for method, order in KIND_ORDER.items():
        mined = mine_negatives(["cat"], tiny_encoder, method, words, num_negatives=3)
        assert list(mined.words) == [*order, "word"]


# ---- how many --------------------------------------------------------------------------------------------


def made_up(kind: str, count: int) -> list[str]:
    return [f"{kind} {number}" for number in range(count)]


@pytest.mark.parametrize(("nouns", "adjectives"), [(100, 60), (7, 6), (40, 0), (33, 47)])
@pytest.mark.parametrize("fraction", [None, 0.15, 0.29, 0.5, 1.0])
def test_a_fraction_is_taken_of_each_kind(
    nouns: int, adjectives: int, fraction: float | None, tiny_encoder: TextEncoder
) -> None:
    words = {"noun": made_up("noun", nouns), "adjective": made_up("adjective", adjectives)}
    mined = mine_negatives(["cat"], tiny_encoder, "neglabel", words, fraction=fraction)
    hundredths = round(100 * (fraction or 0.15))
    # At least one of each kind there is.
    expected = {"noun": nouns * hundredths // 100 or 1, "adjective": adjectives * hundredths // 100 or 1}
    assert {kind: len(chosen) for kind, chosen in mined.words.items()} == {
        kind: count for kind, count in expected.items() if words[kind]
    }


@pytest.mark.parametrize(("nouns", "adjectives"), [(100, 60), (20, 10), (10, 20), (1, 1), (30, 1), (40, 0), (0, 40)])
@pytest.mark.parametrize("amount", [1, 10, 29, 30, 10_000])
@pytest.mark.parametrize("method", METHODS)
def test_an_amount_is_shared_over_the_kinds(
    method: str, amount: int, nouns: int, adjectives: int, tiny_encoder: TextEncoder
) -> None:
    words = {"noun": made_up("noun", nouns), "adjective": made_up("adjective", adjectives)}
    mined = mine_negatives(["cat"], tiny_encoder, method, words, num_negatives=amount)
    total = nouns + adjectives
    wanted = min(amount, total)
    # A.4, step 5: the adjectives' share rounded down, the nouns get the rest.
    num_adjectives = wanted * adjectives // total
    found = {kind: len(mined.words.get(kind, [])) for kind in ("adjective", "noun")}
    assert found == {"adjective": num_adjectives, "noun": wanted - num_adjectives}


@pytest.mark.parametrize("amount", range(1, 11))
def test_as_many_as_asked_are_found_with_three_kinds(amount: int, tiny_encoder: TextEncoder) -> None:
    words = {kind: made_up(kind, 3) for kind in ("noun", "adjective", "word")}
    assert len(mine_negatives(["cat"], tiny_encoder, "krnft", words, num_negatives=amount)) == min(amount, 9)


def test_the_amounts_of_the_papers(tiny_encoder: TextEncoder) -> None:
    words = {"noun": made_up("noun", 200)}
    by_neglabel = mine_negatives(["cat"], tiny_encoder, "neglabel", words)
    assert (len(by_neglabel), by_neglabel.provenance["fraction"]) == (30, 0.15)
    by_krnft = mine_negatives(["cat"], tiny_encoder, "krnft", words)
    assert (len(by_krnft), by_krnft.provenance["num_negatives"]) == (200, 10_000)
    # An amount of one's own takes the place of the paper's, whichever of the two it is.
    assert len(mine_negatives(["cat"], tiny_encoder, "neglabel", words, num_negatives=7)) == 7
    assert len(mine_negatives(["cat"], tiny_encoder, "krnft", words, fraction=0.1)) == 20


# ---- templates, provenance --------------------------------------------------------------------------------


def test_templates_of_ones_own_are_those_of_labels_and_all_words(encoder: TextEncoder) -> None:
    words = {"noun": ["fog", "gravel", "cat"], "adjective": ["wet", "loud"]}
    own = ["a photo of a {}.", "art of the {}."]
    mined = mine_negatives(["kitten"], encoder, "krnft", words, num_negatives=5, templates=own)
    assert {kind: list(templates) for kind, templates in mined.templates.items()} == {"adjective": own, "noun": own}
    assert mined.label_templates == own
    values = slow_quantiles(encoder.embed(["fog", "gravel", "cat"], own), encoder.embed(["kitten"], own), "krnft")
    assert_nearest_first(mined.words["noun"], dict(zip(["fog", "gravel", "cat"], values, strict=True)), 3)
    assert mined.words["noun"][-1] == "cat"


def test_provenance_tells_how_the_words_were_found(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    mined = mine_negatives(["cat", "dog"], tiny_encoder, "krnft", {"noun": made_up("noun", 20)}, num_negatives=5)
    expected = {
        "method": "krnft",
        "words": "own list",
        "pool": {"noun": 20},
        "left_out_too_long": 0,
        "quantile": 0.95,
        "fraction": None,
        "num_negatives": 5,
        "labels": ["cat", "dog"],
        "label_templates": ["the nice {}."],
        "text_tower": tiny_encoder.fingerprint,
    }
    assert {key: mined.provenance[key] for key in expected} == expected
    mined.save(tmp_path / "mined.json")
    assert Negatives.load(tmp_path / "mined.json") == mined


# ---- refusals ---------------------------------------------------------------------------------------------


def test_an_unknown_method_suggests_the_nearest(tiny_encoder: TextEncoder) -> None:
    with pytest.raises(UnknownNameError, match=r"'neglable'.*Did you mean 'neglabel'"):
        mine_negatives(["cat"], tiny_encoder, "neglable", ["fog"])


def test_an_unknown_kind_of_words_is_told_the_kinds(tiny_encoder: TextEncoder) -> None:
    with pytest.raises(UnknownNameError, match=r"'nouns'.*Did you mean 'noun'"):
        mine_negatives(["cat"], tiny_encoder, words={"nouns": ["fog"]})


BAD_AMOUNTS: list[dict[str, Any]] = [
    {"num_negatives": 5, "fraction": 0.1},
    {"fraction": 0.0},
    {"fraction": -0.1},
    {"fraction": 1.01},
    {"fraction": math.nan},
    {"num_negatives": 0},
    {"num_negatives": -5},
    {"quantile": 1.01},
    {"quantile": -0.01},
    {"quantile": math.nan},
]


@pytest.mark.parametrize("amounts", BAD_AMOUNTS, ids=str)
@pytest.mark.parametrize("labels", [["cat"], labels_of(30)], ids=len)
def test_amounts_out_of_range_are_refused(
    amounts: dict[str, Any], labels: list[str], tiny_encoder: TextEncoder
) -> None:
    with pytest.raises(NegativesError, match=list(amounts)[-1]):
        mine_negatives(labels, tiny_encoder, words=made_up("noun", 40), **amounts)


@pytest.mark.parametrize(
    "words",
    [[], {}, {"noun": []}, ["", " "], [" ".join(["fog"] * 40)], {"noun": ["cat"]}],
    ids=lambda words: str(words)[:20],
)
def test_no_word_left_is_told(words: Any, tiny_encoder: TextEncoder) -> None:
    with pytest.raises(NegativesError, match="No word is left"):
        mine_negatives(["cat"], tiny_encoder, "krnft", words)


@pytest.mark.parametrize("words", ["fog", {"noun": "fog"}, ["fog", 3], {"adjective": [None]}], ids=str)
def test_words_that_are_no_list_of_strings_are_refused(words: Any, tiny_encoder: TextEncoder) -> None:
    with pytest.raises(NegativesError, match="words"):
        mine_negatives(["cat"], tiny_encoder, words=words)


def test_labels_and_templates_are_checked_as_everywhere(tiny_encoder: TextEncoder) -> None:
    with pytest.raises(LabelError, match="empty"):
        mine_negatives([], tiny_encoder, words=["fog"])
    with pytest.raises(LabelError, match="longer than the 32 tokens"):
        mine_negatives([" ".join(["cat"] * 40)], tiny_encoder, words=["fog"])
    with pytest.raises(TemplateError):
        mine_negatives(["cat"], tiny_encoder, words=["fog"], templates=["no place"])


# ---- WordNet, and mining again ------------------------------------------------------------------------------


@pytest.mark.parametrize("first_only", [False, True])
def test_wordnet_words_are_those_of_the_files(first_only: bool) -> None:
    folder = Path(hf_oodclip.__file__).parent / "assets" / "words"
    pools = []
    for name in ("nouns", "adjectives"):
        lines = lzma.decompress((folder / f"wordnet_{name}.txt.xz").read_bytes()).decode().strip().split("\n")
        rows = [line.split("\t") for line in lines]
        pools.append({word for word, _, place in rows if not first_only or place == "first"})
    found = wordnet_words(first_only)
    assert list(found) == ["noun", "adjective"]
    assert list(found["noun"]) == sorted(pools[0])
    assert list(found["adjective"]) == sorted(pools[1] - pools[0])
    assert len(pools[0] & pools[1]) > 1000


@pytest.fixture
def small_wordnet(monkeypatch: pytest.MonkeyPatch, words: dict[str, list[str]]) -> list[bool]:
    """A WordNet of some hundred words; returns which variants were asked for."""
    asked: list[bool] = []

    def fake(first_only: bool = False) -> dict[str, tuple[str, ...]]:
        asked.append(first_only)
        nouns = tuple(sorted(words["noun"]))
        return {"noun": nouns, "adjective": tuple(sorted(set(words["adjective"]) - set(nouns)))}

    monkeypatch.setattr(mining, "wordnet_words", fake)
    return asked


@pytest.mark.parametrize(("method", "first_only"), [("neglabel", True), ("krnft", False)])
def test_wordnet_is_the_default_list(
    method: str, first_only: bool, encoder: TextEncoder, small_wordnet: list[bool], words: dict[str, list[str]]
) -> None:
    mined = mine_negatives(labels_of(5), encoder, method)
    assert small_wordnet == [first_only]
    assert mined.words == mine_negatives(labels_of(5), encoder, method, words).words
    assert mined.provenance["words"] == "WordNet 3.0"


OPTIONS: list[dict[str, Any]] = [
    {"method": "neglabel"},
    {"method": "krnft", "num_negatives": 50},
    {"method": "neglabel", "fraction": 0.3, "quantile": 0.5},
    {"method": "krnft", "num_negatives": 50, "templates": ["a {}", "{}"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.usefixtures("small_wordnet")
def test_mining_again_is_mining_with_the_same_options(
    options: dict[str, Any], from_file: bool, encoder: TextEncoder, tmp_path: Path
) -> None:
    first = mine_negatives(labels_of(5), encoder, **options)
    if from_file:
        first.save(tmp_path / "mined.json")
        first = Negatives.load(tmp_path / "mined.json")
    others = labels_of(40)[5:]
    again = remine(first, others, encoder)
    assert again == mine_negatives(others, encoder, **options)
    assert again.words != first.words
    assert remine(again, labels_of(5), encoder) == mine_negatives(labels_of(5), encoder, **options)


def test_what_was_not_mined_from_wordnet_comes_back_unchanged(
    encoder: TextEncoder, small_wordnet: list[bool], words: dict[str, list[str]]
) -> None:
    own = Negatives.from_words(["fog", "gravel"])
    assert remine(own, ["cat"], encoder) is own
    mined = mine_negatives(labels_of(5), encoder, words=words)
    assert remine(mined, ["cat"], encoder) is mined
    assert small_wordnet == []
    from_wordnet = mine_negatives(labels_of(5), encoder)
    assert remine(from_wordnet, labels_of(5), encoder) is from_wordnet


# ---- the quantile itself ------------------------------------------------------------------------------------


def unit_rows(count: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    )


@pytest.mark.parametrize("num_labels", [1, 2, 3, 5, 19, 20, 21, 40, 100])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_equal_numpy_and_the_sorted_list(num_labels: int, quantile: float) -> None:
    words, labels = unit_rows(50), unit_rows(num_labels, seed=1)
    cosines = words.numpy() @ labels.numpy().T
    linear = upper_quantile(words, labels, quantile, interpolate=True)
    np.testing.assert_allclose(linear, np.quantile(cosines, quantile, axis=1, method="linear"), rtol=0, atol=1e-12)
    element = upper_quantile(words, labels, quantile, interpolate=False)
    position = min(math.floor(quantile * num_labels), num_labels - 1)
    np.testing.assert_allclose(element, [sorted(row)[position] for row in cosines.tolist()], rtol=0, atol=1e-12)


def test_default_quantile_is_095_interpolated() -> None:
    words, labels = unit_rows(50), unit_rows(13, seed=1)
    expected = np.quantile(words.numpy() @ labels.numpy().T, 0.95, axis=1)
    np.testing.assert_allclose(upper_quantile(words, labels), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("chunk_elements", [1, 29, 30, 31, 400, 10**9])
def test_chunks_change_nothing(chunk_elements: int, interpolate: bool) -> None:
    words, labels = unit_rows(101), unit_rows(30, seed=1)
    whole = upper_quantile(words, labels, 0.9, interpolate)
    in_chunks = upper_quantile(words, labels, 0.9, interpolate, chunk_elements)
    torch.testing.assert_close(in_chunks, whole, rtol=0, atol=1e-12)


def test_fp32_stays_fp32() -> None:
    assert upper_quantile(unit_rows(5).float(), unit_rows(3).float()).dtype == torch.float32


PEAK = """
import torch
from hf_oodclip.mining import upper_quantile

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))

torch.set_num_threads(2)
words, labels = torch.randn(70_000, 64), torch.randn(1_000, 64)
upper_quantile(words[:10], labels)
before = memory("VmRSS")
upper_quantile(words, labels)
print(memory("VmHWM"), memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_mining_wordnet_for_a_thousand_labels_takes_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peak, growth = map(float, done.stdout.split())
    assert peak < 1024
    # All cosines at once would be 267 MiB.
    assert growth < 150
