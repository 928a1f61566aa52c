"""What every score must do; the cases come from the table, so a new score costs no line here."""

import dataclasses
import doctest
import importlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_oodclip import scores as scores_module
from hf_oodclip.errors import NonFiniteError, ScoreInputError, UnknownNameError
from hf_oodclip.scores import (
    FURTHER_SCORES,
    SCORES,
    Score,
    ScoreInfo,
    ScoreInputs,
    get_score,
    list_scores,
    register_score,
)
from hf_oodclip.scores import get_score_class as score_class_of
from hf_oodclip.scores.fitted import FittedScore

TABLE = {**SCORES, **FURTHER_SCORES}
NAMES = sorted(TABLE)
TEMPERED = [name for name in NAMES if "temperature" in get_score(name).options]
WITH_NEGATIVES = [name for name in NAMES if "negative_similarity" in score_class_of(name).needs]
FITTED = [name for name in NAMES if score_class_of(name).requires_fit]
COSINES = {"similarity", "negative_similarity", "patch_similarity", "perturbed_similarity", "no_similarity"}
# What these say follows from cosines alone, image by image.
BY_COSINES = [name for name in NAMES if {*score_class_of(name).needs} <= {*COSINES, "candidate_similarity"}]
BY_EMBEDS = sorted({*NAMES} - {*BY_COSINES})
# Wide and many enough for the default options of the fitted scores.
BATCH, NUM_LABELS, NUM_NEGATIVES, DIM, NUM_PATCHES, NUM_ID = 6, 5, 24, 264, 9, 600
CHOICES = {"raw": "normalized", "normalized": "raw", "atd": "ctw", "b": "s"}


def make_inputs(
    batch: int = BATCH, num_labels: int = NUM_LABELS, num_negatives: int = NUM_NEGATIVES, seed: int = 0
) -> ScoreInputs:
    """Return random inputs with everything any score may need."""
    generator = torch.Generator().manual_seed(seed)

    def vectors(count: int) -> Tensor:
        # A common direction makes all cosines larger, as those of CLIP are.
        return torch.randn(count, DIM, generator=generator) + 0.4

    def cosines(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 0.5 - 0.1

    labels, negatives, images = vectors(num_labels), vectors(num_negatives), vectors(batch)
    candidates = cosines(batch, 4)
    candidates[1::2, 2:] = -torch.inf
    return ScoreInputs(
        similarity=normalize(images, dim=-1) @ normalize(labels, dim=-1).T,
        negative_similarity=normalize(images, dim=-1) @ normalize(negatives, dim=-1).T,
        image_embeds=images,
        patch_similarity=cosines(batch, NUM_PATCHES, num_labels),
        label_embeds=labels,
        perturbed_similarity=cosines(batch, num_labels),
        no_similarity=cosines(batch, num_labels),
        candidate_similarity=candidates,
    )


@cache
def fitted_state(name: str) -> dict[str, Tensor]:
    """Return what a score with its default options learns from random ID images."""
    score = get_score(name)
    assert isinstance(score, FittedScore)
    return score.fit(make_inputs(NUM_ID, seed=7), torch.arange(NUM_ID) % NUM_LABELS).state_dict()


def ready(name: str) -> Score:
    """Return a score with its defaults, fitted where it has to be."""
    score = get_score(name)
    if score.requires_fit:
        score.load_state_dict(fitted_state(name))
    return score


def run(score: Score, inputs: ScoreInputs) -> Tensor:
    """Return the scores of the first images a score ever sees."""
    if score.online:
        score.reset()  # type: ignore[attr-defined]
    return score(inputs)


def rounding(score: Score) -> dict[str, float]:
    """Return how far two ways to the same fp32 number may lie apart."""
    # These are differences or sums of hundreds; cosines and probabilities stay around 1.
    large = score.name in ("mahalanobis", "rmds", "vim")
    return {"rtol": 1e-5, "atol": 2e-3} if large else {"rtol": 2e-6, "atol": 5e-7}


def map_tensors(inputs: ScoreInputs, change: Any) -> ScoreInputs:
    """Return the inputs with every tensor changed."""
    values = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return ScoreInputs(**{name: change(v) if isinstance(v, Tensor) else v for name, v in values.items()})


def rows_of(inputs: ScoreInputs, row: int) -> ScoreInputs:
    """Return the inputs of one image; the labels are those of all."""
    alone = map_tensors(inputs, lambda tensor: tensor[row : row + 1])
    return dataclasses.replace(alone, label_embeds=inputs.label_embeds)


def changed_value(default: Any) -> Any:
    """Return a valid option value other than the default."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return CHOICES[default]
    if isinstance(default, int):
        return default + 1
    assert isinstance(default, float), f"teach this test how to change {default!r}"
    return default * 0.5 + 0.01


def options_of(score: Score) -> list[str]:
    return [option.name for option in dataclasses.fields(score) if option.init]


@pytest.fixture(params=NAMES)
def score(request: pytest.FixtureRequest) -> Score:
    """Every score of the tables, with its defaults, ready for use."""
    return ready(request.param)


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget what the test registers."""
    before = dict(scores_module._registered)
    yield
    scores_module._registered.clear()
    scores_module._registered.update(before)


# ---- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1, BATCH])
def test_one_finite_fp32_number_an_image(score: Score, batch: int) -> None:
    ood_score = run(score, make_inputs(batch))
    assert ood_score.shape == (batch,)
    assert ood_score.dtype == torch.float32
    assert torch.isfinite(ood_score).all()


def test_scores_differ_between_images(score: Score) -> None:
    assert len(run(score, make_inputs()).unique()) == BATCH


@pytest.mark.parametrize("name", [name for name in NAMES if not score_class_of(name).online])
def test_a_batch_is_the_same_as_one_by_one(name: str) -> None:
    score, inputs = ready(name), make_inputs()
    alone = [run(score, rows_of(inputs, row)) for row in range(BATCH)]
    torch.testing.assert_close(run(score, inputs), torch.cat(alone), **rounding(score))


def test_the_order_of_labels_does_not_matter(score: Score) -> None:
    inputs = make_inputs()
    order = torch.randperm(NUM_LABELS, generator=torch.Generator().manual_seed(1))
    assert order.tolist() != sorted(order.tolist())
    assert inputs.label_embeds is not None
    by_label = ("similarity", "patch_similarity", "perturbed_similarity", "no_similarity")
    permuted = dataclasses.replace(
        inputs,
        label_embeds=inputs.label_embeds[order],
        **{name: getattr(inputs, name)[..., order] for name in by_label},
    )
    torch.testing.assert_close(run(score, permuted), run(score, inputs), **rounding(score))


def test_inputs_are_left_as_they_were(score: Score) -> None:
    inputs = make_inputs()
    before = map_tensors(inputs, torch.clone)
    run(score, inputs)
    for name in score.needs:
        assert torch.equal(getattr(inputs, name), getattr(before, name))


# ---- precision ----------------------------------------------------------------------------------


@pytest.fixture
def seen_dtypes(score: Score, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of what `compute` is given and of what it returns."""
    seen: list[torch.dtype] = []
    compute = type(score).compute

    def spy(self: Score, inputs: ScoreInputs) -> Tensor:
        result = compute(self, inputs)
        seen.extend([*(getattr(inputs, name).dtype for name in self.needs), result.dtype])
        return result

    monkeypatch.setattr(type(score), "compute", spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_fp32(
    score: Score, dtype: torch.dtype, seen_dtypes: list[torch.dtype]
) -> None:
    halves = map_tensors(make_inputs(), lambda tensor: tensor.to(dtype))
    ood_score = run(score, halves)
    assert set(seen_dtypes) == {torch.float32}
    assert ood_score.dtype == torch.float32
    assert torch.equal(ood_score, run(score, map_tensors(halves, torch.Tensor.float)))


def test_fp64_inputs_are_computed_in_fp64(score: Score, seen_dtypes: list[torch.dtype]) -> None:
    inputs = make_inputs()
    ood_score = run(score, map_tensors(inputs, torch.Tensor.double))
    assert set(seen_dtypes) == {torch.float64}
    assert ood_score.dtype == torch.float32
    torch.testing.assert_close(ood_score, run(score, inputs), rtol=1e-5, atol=max(1e-5, rounding(score)["atol"]))


# ---- sign: larger = more OOD ---------------------------------------------------------------------


def matching_inputs(batch: int, seed: int) -> tuple[ScoreInputs, ScoreInputs]:
    """Return images that match one label far better than anything else, and images that match none."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) - 0.5) * 0.04

    matched = 0.12 + noise(batch, NUM_LABELS)
    rows = torch.arange(batch)
    winners = torch.randint(NUM_LABELS, (batch,), generator=generator)
    matched[rows, winners] += 0.18
    patches = 0.12 + noise(batch, NUM_PATCHES, NUM_LABELS)
    patches[rows, 0, winners] += 0.18
    foreign_negatives = 0.12 + noise(batch, NUM_NEGATIVES)
    foreign_negatives[rows, torch.randint(NUM_NEGATIVES, (batch,), generator=generator)] += 0.18
    own = ScoreInputs(
        similarity=matched,
        negative_similarity=0.12 + noise(batch, NUM_NEGATIVES),
        patch_similarity=patches,
        perturbed_similarity=matched + noise(batch, NUM_LABELS),
        no_similarity=0.12 + noise(batch, NUM_LABELS),
        candidate_similarity=0.12 + noise(batch, 3),
    )
    foreign = ScoreInputs(
        similarity=0.12 + noise(batch, NUM_LABELS),
        negative_similarity=foreign_negatives,
        patch_similarity=0.12 + noise(batch, NUM_PATCHES, NUM_LABELS),
        perturbed_similarity=0.12 + noise(batch, NUM_LABELS),
        no_similarity=0.18 + noise(batch, NUM_LABELS),
        candidate_similarity=0.30 + noise(batch, 3),
    )
    return own, foreign


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BY_COSINES)
def test_an_image_that_matches_a_label_is_less_ood(name: str, seed: int) -> None:
    own, foreign = matching_inputs(50, seed)
    assert get_score(name)(own).max() < get_score(name)(foreign).min()


@pytest.mark.parametrize("name", BY_COSINES)
def test_a_worse_match_of_the_best_label_is_more_ood(name: str) -> None:
    inputs, _ = matching_inputs(50, seed=4)
    assert inputs.patch_similarity is not None
    assert inputs.perturbed_similarity is not None
    best = inputs.similarity == inputs.similarity.amax(1, keepdim=True)
    worse = dataclasses.replace(
        inputs,
        similarity=inputs.similarity - 0.1 * best,
        perturbed_similarity=inputs.perturbed_similarity - 0.1 * best,
        patch_similarity=inputs.patch_similarity - 0.1 * best[:, None],
    )
    assert (get_score(name)(worse) > get_score(name)(inputs)).all()


def clustered_inputs(batch: int, is_id: bool, seed: int) -> tuple[ScoreInputs, Tensor]:
    """Return images near a label each, and which; or, not ID, near a negative each."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))).Q
    labels, negatives = axes[:NUM_LABELS], axes[NUM_LABELS : NUM_LABELS + NUM_NEGATIVES]
    texts = labels if is_id else negatives
    classes = torch.arange(batch) % len(texts)
    images = 10 * (texts[classes] + 0.02 * torch.randn(batch, DIM, generator=generator))
    unit = normalize(images, dim=-1)
    return ScoreInputs(unit @ labels.T, unit @ negatives.T, images, label_embeds=labels), classes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BY_EMBEDS)
def test_an_image_near_a_label_is_less_ood(name: str, seed: int) -> None:
    score = get_score(name)
    if isinstance(score, FittedScore):
        score.fit(*clustered_inputs(NUM_ID, True, seed + 10))
    own, _ = clustered_inputs(50, True, seed)
    foreign, _ = clustered_inputs(50, False, seed)
    assert score(own).max() < score(foreign).min()


# ---- options, key, state -------------------------------------------------------------------------


def test_options_are_plain_values_that_rebuild_the_score(score: Score) -> None:
    assert sorted(score.options) == sorted(options_of(score))
    restored = get_score(score.name, **json.loads(json.dumps(score.options)))
    assert restored == score
    for option in options_of(score):
        changed = get_score(score.name, **{option: changed_value(score.options[option])})
        assert changed != score
        restored = get_score(changed.name, **json.loads(json.dumps(changed.options)))
        assert restored == changed
        assert restored.key == changed.key


def test_key_lists_the_changed_options_only(score: Score) -> None:
    assert score.key == score.name
    changes = {option: changed_value(score.options[option]) for option in options_of(score)}
    for option, value in changes.items():
        assert get_score(score.name, **{option: value}).key == f"{score.name}({option}={value!r})"
        assert get_score(score.name, **{option: score.options[option]}).key == score.name
    if len(changes) > 1:
        listed = ", ".join(f"{option}={value!r}" for option, value in changes.items())
        assert get_score(score.name, **dict(reversed(changes.items()))).key == f"{score.name}({listed})"


@pytest.mark.parametrize("same", [2, 2.0, np.float64(2.0), np.float32(2.0)], ids=lambda value: type(value).__name__)
def test_equal_options_give_equal_keys_whatever_their_number_type(same: Any) -> None:
    # A key finds a calibration again: `temperature=2` today and `2.0` from a file must be one score.
    score = get_score("mcm", temperature=same)
    assert score == get_score("mcm", temperature=2.0)
    assert score.key == "mcm(temperature=2.0)"
    assert json.dumps(score.options) == '{"temperature": 2.0}'


def test_state_survives_a_round_trip(score: Score) -> None:
    state = score.state_dict()
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    assert bool(state) == score.requires_fit
    fresh = get_score(score.name, **score.options)
    fresh.load_state_dict(state)
    assert torch.equal(run(fresh, make_inputs()), run(score, make_inputs()))


@pytest.mark.parametrize("name", FITTED)
def test_a_score_that_is_not_fitted_says_how_to_fit_it(name: str) -> None:
    with pytest.raises(ScoreInputError, match=rf"'{name}' is not fitted: call model.fit_score\(images, labels"):
        get_score(name)(make_inputs())


@pytest.mark.parametrize("name", FITTED)
def test_an_option_the_fit_depends_on_undoes_the_fit(name: str) -> None:
    score = ready(name)
    for option in options_of(score):
        changed = get_score(score, **{option: changed_value(score.options[option])})
        assert bool(changed.state_dict()) == (option not in score.fit_options)
    assert score.state_dict()


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_in_half_precision_is_that_of_the_rounded_values(name: str) -> None:
    halves, labels = map_tensors(make_inputs(NUM_ID, seed=7), torch.Tensor.bfloat16), torch.arange(NUM_ID) % NUM_LABELS
    state = get_score(name).fit(halves, labels).state_dict()  # type: ignore[attr-defined]
    same = get_score(name).fit(map_tensors(halves, torch.Tensor.float), labels).state_dict()  # type: ignore[attr-defined]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(torch.equal(state[key], same[key]) for key in same)


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_of_too_little_is_refused(name: str) -> None:
    with pytest.raises(ScoreInputError, match="at least 2 ID images"):
        get_score(name).fit(make_inputs(1), [0])  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match="NaN"):
        get_score(name).fit(map_tensors(make_inputs(), lambda t: t * math.nan), [0] * 6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("labels", [None, [0, 1], [0.0] * 6, [-1, 0, 1, 2, 3, 4], [5, 0, 1, 2, 3, 4], [True] * 6])
@pytest.mark.parametrize("name", [name for name in FITTED if score_class_of(name).needs_class_indices])
def test_class_indices_that_are_none_are_refused(name: str, labels: Any) -> None:
    with pytest.raises(ScoreInputError, match="labels"):
        get_score(name).fit(make_inputs(6), labels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FITTED)
def test_embeddings_of_another_width_are_refused(name: str) -> None:
    inputs = make_inputs()
    assert inputs.image_embeds is not None
    assert inputs.label_embeds is not None
    narrow = dataclasses.replace(
        inputs, image_embeds=inputs.image_embeds[:, :200], label_embeds=inputs.label_embeds[:, :200]
    )
    if name == "react":  # It learns one number, the same for all dimensions.
        assert torch.isfinite(ready(name)(narrow)).all()
    else:
        with pytest.raises(ScoreInputError, match=rf"'{name}' was fitted to embeddings of width {DIM} but got 200"):
            ready(name)(narrow)


def test_state_that_is_not_known_is_refused(score: Score) -> None:
    with pytest.raises(ScoreInputError, match=f"'{score.name}'.*'whatever'"):
        score.load_state_dict({"whatever": torch.zeros(2)})


def test_get_score_passes_a_score_through_and_can_change_its_options(score: Score) -> None:
    assert get_score(score) is score
    for option in options_of(score):
        value = changed_value(score.options[option])
        assert get_score(score, **{option: value}) == get_score(score.name, **{option: value})


@pytest.mark.parametrize("bad", [0, 0.0, -1.0, -0.01, math.nan, math.inf, "hot"])
@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_must_be_a_positive_number(name: str, bad: Any) -> None:
    with pytest.raises(ScoreInputError, match=rf"'{name}'.*temperature"):
        get_score(name, temperature=bad)


# ---- refusals -------------------------------------------------------------------------------------


def test_nan_and_infinity_are_refused_by_row(score: Score) -> None:
    for name in score.needs:
        # A candidate of -inf is none.
        for bad in (math.nan, math.inf, -math.inf)[: 2 if name == "candidate_similarity" else 3]:
            inputs = map_tensors(make_inputs(), torch.clone)
            getattr(inputs, name)[2, 1] = bad
            getattr(inputs, name)[4, 0] = bad
            with pytest.raises(NonFiniteError, match=rf"{name} .*rows \[2, 4\]"):
                run(score, inputs)


def test_a_result_that_is_not_finite_is_refused(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(score), "compute", lambda self, inputs: torch.tensor([0.5, math.nan]))
    with pytest.raises(NonFiniteError):
        run(score, make_inputs(2))


def test_an_input_the_score_does_not_need_may_be_anything(score: Score) -> None:
    values = {f.name: getattr(make_inputs(), f.name) for f in dataclasses.fields(ScoreInputs)}
    for name in values:
        if name in (*score.needs, "similarity", "logit_scale"):
            continue
        without = run(score, ScoreInputs(**{**values, name: None}))
        spoilt = run(score, ScoreInputs(**{**values, name: torch.full_like(values[name], math.nan)}))
        assert torch.equal(without, spoilt)


@pytest.mark.parametrize("missing", [None, torch.zeros(BATCH, 0)], ids=["none", "no columns"])
@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_missing_negatives_are_asked_for(name: str, missing: Tensor | None) -> None:
    inputs = dataclasses.replace(make_inputs(), negative_similarity=missing)
    with pytest.raises(ScoreInputError, match=rf"'{name}' needs negative_similarity.*negatives="):
        get_score(name)(inputs)


def test_no_labels_are_refused(score: Score) -> None:
    with pytest.raises(ScoreInputError, match="at least one label"):
        run(score, make_inputs(num_labels=0))


def test_one_label_is_refused_where_the_score_would_be_constant(score: Score) -> None:
    inputs = make_inputs(num_labels=1)
    if score.min_labels == 1:
        assert len(run(score, inputs).unique()) == BATCH
    else:
        with pytest.raises(ScoreInputError, match="max_logit"):
            run(score, inputs)


def test_softmax_scores_declare_two_labels() -> None:
    declared = {name for name in NAMES if score_class_of(name).min_labels == 2}
    assert declared >= {"mcm", "msp", "entropy", "gen"}
    assert declared.isdisjoint({"max_logit", "energy", "neglabel", "delta_energy"})


BAD_SHAPES = {
    "scalar": (),
    "one dimension": (NUM_LABELS,),
    "three dimensions": (2, BATCH, NUM_LABELS),
}


@pytest.mark.parametrize("shape", BAD_SHAPES.values(), ids=list(BAD_SHAPES))
def test_similarity_of_a_wrong_shape_is_refused(score: Score, shape: tuple[int, ...]) -> None:
    with pytest.raises(ScoreInputError, match=re.escape(str(shape))):
        run(score, dataclasses.replace(make_inputs(), similarity=torch.full(shape, 0.2)))
    # Wrong in two ways: either may be told first.
    with pytest.raises((ScoreInputError, NonFiniteError)):
        run(score, dataclasses.replace(make_inputs(), similarity=torch.full(shape, math.nan)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named_with_where_to_get_it(name: str) -> None:
    for needed in {*score_class_of(name).needs} - {"similarity"}:
        with pytest.raises(ScoreInputError, match=rf"'{name}' needs {needed}, which is missing: \w+"):
            run(ready(name), dataclasses.replace(make_inputs(), **{needed: None}))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_for_other_labels_or_images_is_refused(name: str) -> None:
    inputs = make_inputs()
    for needed in {*score_class_of(name).needs} - {"similarity"}:
        with pytest.raises(ScoreInputError, match=needed):
            run(ready(name), dataclasses.replace(inputs, **{needed: getattr(inputs, needed)[1:]}))
        if needed in ("patch_similarity", "perturbed_similarity", "no_similarity"):
            with pytest.raises(ScoreInputError, match=f"{needed} is for {NUM_LABELS - 1} labels"):
                run(ready(name), dataclasses.replace(inputs, **{needed: getattr(inputs, needed)[..., 1:]}))


@pytest.mark.parametrize(
    "shape", [(), (NUM_NEGATIVES,), (1, NUM_NEGATIVES), (BATCH + 1, NUM_NEGATIVES), (1, BATCH, 4)]
)
@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_negatives_of_a_wrong_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ScoreInputError, match="negative_similarity"):
        get_score(name)(dataclasses.replace(make_inputs(), negative_similarity=torch.full(shape, 0.2)))


# ---- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "nearest"), [("neglable", "neglabel"), ("MCM", "mcm"), ("maxlogit", "max_logit")])
def test_an_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"'{wrong}'.*Did you mean '{nearest}'") as caught:
        get_score(wrong)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Unknown score 'zzzzzz'") as caught:
        get_score("zzzzzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("as_object", [False, True])
def test_an_unknown_option_suggests_the_nearest(as_object: bool) -> None:
    with pytest.raises(UnknownNameError, match=r"'temprature'.*Did you mean 'temperature'"):
        get_score(get_score("mcm") if as_object else "mcm", temprature=2.0)


def test_an_option_of_a_score_without_any_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"option of score 'max_logit' 'temperature'"):
        get_score("max_logit", temperature=1.0)


# ---- documentation ---------------------------------------------------------------------------------


def test_the_table_names_what_is_there() -> None:
    assert set(NAMES) <= set(list_scores())
    for name in NAMES:
        assert score_class_of(name).name == name


def test_info_is_complete(score: Score) -> None:
    info = score.info
    assert isinstance(info, ScoreInfo)
    assert all(text.strip() == text and text for text in (info.title, info.paper, info.venue, info.url))
    assert 2012 <= info.year <= 2030
    assert re.fullmatch(r"https://\S+", info.url)


def test_docstring_gives_sign_source_and_options(score: Score) -> None:
    doc = " ".join((type(score).__doc__ or "").split())
    assert "returns `-S`" in doc
    source = doc.partition("Source:")[2].partition("Example:")[0]
    assert score.info.venue in source
    assert str(score.info.year) in source
    arguments = doc.partition("Args:")[2].partition("Source:")[0]
    assert all(f"{option}: " in arguments for option in options_of(score))


@pytest.mark.parametrize("name", NAMES)
def test_every_score_has_a_file_and_a_test_of_its_own(name: str) -> None:
    module, _, class_name = TABLE[name].partition(":")
    assert module == name
    assert score_class_of(name).__name__ == class_name
    assert (Path(__file__).parent / "scores" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", [*(f".{name}" for name in NAMES), ".base", ""])
def test_examples_in_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(f"hf_oodclip.scores{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


# ---- a score of one's own -------------------------------------------------------------------------


@dataclass
class ToyFitted(Score):
    """Distance to a fitted mean image; `-S` is that distance."""

    power: float = 2.0
    mean_embeds: Tensor | None = field(default=None, init=False, compare=False)

    name: ClassVar[str] = "toy_fitted"
    needs: ClassVar[tuple[str, ...]] = ("image_embeds",)
    requires_fit: ClassVar[bool] = True
    info: ClassVar[ScoreInfo] = ScoreInfo("Toy", "Toy paper", "Nowhere", 2025, "https://example.org")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.image_embeds is not None
        assert self.mean_embeds is not None
        return (inputs.image_embeds - self.mean_embeds).abs().pow(self.power).sum(dim=-1)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.mean_embeds is None else {"mean_embeds": self.mean_embeds}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean_embeds = state.get("mean_embeds")


@pytest.mark.usefixtures("registry")
def test_a_registered_score_works_like_the_others() -> None:
    assert register_score(ToyFitted) is ToyFitted
    assert "toy_fitted" in list_scores()
    fitted = get_score("toy_fitted", power=1.0)
    assert fitted.key == "toy_fitted(power=1.0)"
    assert fitted.options == {"power": 1.0}
    fitted.load_state_dict({"mean_embeds": torch.ones(DIM)})
    restored = get_score("toy_fitted", **fitted.options)
    restored.load_state_dict(fitted.state_dict())
    inputs = make_inputs()
    assert inputs.image_embeds is not None
    expected = torch.tensor([sum(abs(value - 1) for value in row) for row in inputs.image_embeds.tolist()])
    torch.testing.assert_close(restored(inputs), expected)
    with pytest.raises(ScoreInputError, match="needs image_embeds"):
        restored(ScoreInputs(inputs.similarity))
    with pytest.raises(UnknownNameError, match="Did you mean 'toy_fitted'"):
        get_score("toy_fited")


@pytest.mark.usefixtures("registry")
def test_a_taken_name_is_refused() -> None:
    register_score(ToyFitted)
    # The same class again, as when a notebook cell runs twice.
    register_score(ToyFitted)

    class Other(ToyFitted):
        pass

    with pytest.raises(ScoreInputError, match="'toy_fitted' is taken"):
        register_score(Other)
    assert scores_module._registered["toy_fitted"] is ToyFitted

    class MyMCM(ToyFitted):
        name = "mcm"

    with pytest.raises(ScoreInputError, match="'mcm' is taken"):
        register_score(MyMCM)
    assert type(get_score("mcm")).__name__ == "MCM"


@pytest.mark.usefixtures("registry")
def test_a_score_without_name_or_info_is_refused() -> None:
    class Nameless(Score):
        def compute(self, inputs: ScoreInputs) -> Tensor:
            return inputs.similarity.sum(dim=-1)

    with pytest.raises(ScoreInputError, match="Nameless has no class attribute 'name'"):
        register_score(Nameless)
    Nameless.name = "nameless"
    with pytest.raises(ScoreInputError, match="Nameless has no class attribute 'info'"):
        register_score(Nameless)
    assert "nameless" not in list_scores()
