"""CSP's way of mining: ensembles averaged raw, adjectives with a super-class, some files of WordNet left out."""

import pytest
import torch
from torch.nn.functional import normalize

from hf_oodclip.mining import MINING_METHODS, mine_negatives, wordnet_words

LABELS = ["goldfish", "school bus", "violin"]
NOUNS = ["gravel", "fog", "sweater", "trout", "stripe", "lantern", "meadow", "violin", "tax", "brick", "engine"]
ADJECTIVES = ["foggy", "striped", "wooden", "loud", "gravel"]
WRAPPERS = ["{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}"]


@pytest.fixture(scope="module")
def encoder(shared_model):
    return shared_model.text_encoder()


def test_words_of_the_files_left_out_are_gone():
    rules = MINING_METHODS["csp"]
    kept, all_words = wordnet_words(True, rules.left_out), wordnet_words(True)
    # Only a person; a person and an artifact; only an adjective that pertains to something.
    assert {"abbess", "abbot"} <= set(all_words["noun"]) - set(kept["noun"])
    assert "gravel" in kept["noun"]
    assert len(kept["noun"]) < len(all_words["noun"])
    assert len(kept["adjective"]) < len(all_words["adjective"])
    assert set(kept["noun"]) <= set(all_words["noun"])
    assert not set(kept["noun"]) & set(kept["adjective"])


def test_every_adjective_has_one_super_class_whatever_the_order(encoder):
    def mine(adjectives):
        words = {"noun": NOUNS, "adjective": adjectives}
        return mine_negatives(LABELS, encoder, "csp", words, fraction=1.0).words["adjective"]

    mined = mine(ADJECTIVES)
    # "gravel" is a noun as well, and kept as that.
    assert sorted(phrase.split()[0] for phrase in mined) == ["foggy", "loud", "striped", "wooden"]
    assert {phrase.split()[1] for phrase in mined} <= set(MINING_METHODS["csp"].super_classes)
    state = torch.get_rng_state()
    assert mine(ADJECTIVES[::-1]) == mined
    assert torch.equal(torch.get_rng_state(), state)


def test_the_words_kept_are_the_farthest_by_the_raw_ensemble(encoder, shared_model):
    words = {"noun": NOUNS, "adjective": ADJECTIVES}
    mined = mine_negatives(LABELS, encoder, "csp", words, fraction=0.5)

    def raw(texts, templates):
        tokens = [
            shared_model.tokenizer([t.replace("{}", x) for x in texts], padding=True, return_tensors="pt")
            for t in templates
        ]
        with torch.no_grad():
            return normalize(sum(shared_model.clip.get_text_features(**each).pooler_output for each in tokens), dim=-1)

    labels = raw(LABELS, mined.label_templates)
    assert len(mined.label_templates) == 8
    assert mined.templates["noun"] == mined.label_templates
    assert mined.templates["adjective"] == WRAPPERS
    every = mine_negatives(LABELS, encoder, "csp", words, fraction=1.0)
    for kind, pool in (("noun", sorted(NOUNS)), ("adjective", sorted(every.words["adjective"]))):
        cosines = raw(pool, mined.templates[kind]) @ labels.T
        distance = torch.quantile(cosines, 0.95, dim=1)
        distance[cosines.amax(1) > 0.95] = 1.0
        farthest = [pool[index] for index in distance.argsort()[: len(pool) // 2].tolist()]
        assert list(mined.words[kind]) == farthest


def test_a_word_that_equals_a_label_comes_last(encoder):
    # Among 21 labels the 0.95 quantile alone forgives one that is near.
    labels = [*LABELS, *(f"{name} number {index}" for index in range(6) for name in LABELS)]
    words = {"noun": ["goldfish", *NOUNS]}
    assert mine_negatives(labels, encoder, "csp", words, fraction=1.0).texts[-2:] in (
        ["goldfish", "violin"],
        ["violin", "goldfish"],
    )


def test_a_model_takes_csp_by_name(make_model, pixel_values):
    model = make_model(negatives=None)
    words = {"noun": NOUNS, "adjective": ADJECTIVES}
    mined = mine_negatives(model.labels, model.text_encoder(), "csp", words, fraction=0.5)
    model.set_labels(model.labels, negatives=mined, average="raw")
    assert model.config.num_negatives == len(mined) == 7
    assert torch.isfinite(model(pixel_values).ood_score).all()
