"""What every score must do; the cases come from the table, so a new score costs no line here."""

import dataclasses
import doctest
import importlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_oodclip import scores as scores_module
from hf_oodclip.errors import NonFiniteError, ScoreInputError, UnknownNameError
from hf_oodclip.scores import SCORES, Score, ScoreInfo, ScoreInputs, get_score, list_scores, register_score
from hf_oodclip.scores import get_score_class as score_class_of

NAMES = sorted(SCORES)
TEMPERED = [name for name in NAMES if "temperature" in get_score(name).options]
WITH_NEGATIVES = [name for name in NAMES if "negative_similarity" in score_class_of(name).needs]
BATCH, NUM_LABELS, NUM_NEGATIVES, DIM, NUM_PATCHES = 6, 5, 24, 16, 9


def make_inputs(
    batch: int = BATCH, num_labels: int = NUM_LABELS, num_negatives: int = NUM_NEGATIVES, seed: int = 0
) -> ScoreInputs:
    """Return random inputs with everything any score may need."""
    generator = torch.Generator().manual_seed(seed)

    def cosines(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 0.5 - 0.1

    return ScoreInputs(
        similarity=cosines(batch, num_labels),
        negative_similarity=cosines(batch, num_negatives),
        image_embeds=torch.randn(batch, DIM, generator=generator),
        patch_similarity=cosines(batch, NUM_PATCHES, num_labels),
    )


def map_tensors(inputs: ScoreInputs, change: Any) -> ScoreInputs:
    """Return the inputs with every tensor changed."""
    values = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return ScoreInputs(**{name: change(v) if isinstance(v, Tensor) else v for name, v in values.items()})


def changed_value(default: Any) -> Any:
    """Return a valid option value other than the default."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    assert isinstance(default, float), f"teach this test how to change {default!r}"
    return default * 0.5 + 0.01


def options_of(score: Score) -> list[str]:
    return [option.name for option in dataclasses.fields(score) if option.init]


@pytest.fixture(params=NAMES)
def score(request: pytest.FixtureRequest) -> Score:
    """Every score of the table, with its defaults."""
    return get_score(request.param)


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
    ood_score = score(make_inputs(batch))
    assert ood_score.shape == (batch,)
    assert ood_score.dtype == torch.float32
    assert torch.isfinite(ood_score).all()


def test_scores_differ_between_images(score: Score) -> None:
    assert len(score(make_inputs()).unique()) == BATCH


def test_a_batch_is_the_same_as_one_by_one(score: Score) -> None:
    inputs = make_inputs()
    alone = [score(map_tensors(inputs, lambda t, row=row: t[row : row + 1])) for row in range(BATCH)]
    torch.testing.assert_close(score(inputs), torch.cat(alone), rtol=1e-6, atol=1e-7)


def test_the_order_of_labels_does_not_matter(score: Score) -> None:
    inputs = make_inputs()
    order = torch.randperm(NUM_LABELS, generator=torch.Generator().manual_seed(1))
    assert order.tolist() != sorted(order.tolist())
    assert inputs.patch_similarity is not None
    permuted = dataclasses.replace(
        inputs, similarity=inputs.similarity[:, order], patch_similarity=inputs.patch_similarity[..., order]
    )
    torch.testing.assert_close(score(permuted), score(inputs), rtol=2e-6, atol=1e-7)


def test_inputs_are_left_as_they_were(score: Score) -> None:
    inputs = make_inputs()
    before = map_tensors(inputs, torch.clone)
    score(inputs)
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
    ood_score = score(halves)
    assert set(seen_dtypes) == {torch.float32}
    assert ood_score.dtype == torch.float32
    assert torch.equal(ood_score, score(map_tensors(halves, torch.Tensor.float)))


def test_fp64_inputs_are_computed_in_fp64(score: Score, seen_dtypes: list[torch.dtype]) -> None:
    inputs = make_inputs()
    ood_score = score(map_tensors(inputs, torch.Tensor.double))
    assert set(seen_dtypes) == {torch.float64}
    assert ood_score.dtype == torch.float32
    torch.testing.assert_close(ood_score, score(inputs), rtol=1e-5, atol=1e-5)


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
    embeds = torch.nn.functional.normalize(torch.randn(batch, DIM, generator=generator), dim=-1)
    own = ScoreInputs(matched, 0.12 + noise(batch, NUM_NEGATIVES), embeds, patches)
    foreign_patches = 0.12 + noise(batch, NUM_PATCHES, NUM_LABELS)
    return own, ScoreInputs(0.12 + noise(batch, NUM_LABELS), foreign_negatives, embeds, foreign_patches)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_that_matches_a_label_is_less_ood(score: Score, seed: int) -> None:
    own, foreign = matching_inputs(50, seed)
    assert score(own).max() < score(foreign).min()


def test_a_better_match_of_the_best_label_is_less_ood(score: Score) -> None:
    inputs, _ = matching_inputs(50, seed=4)
    assert inputs.patch_similarity is not None
    best = inputs.similarity == inputs.similarity.amax(1, keepdim=True)
    better = dataclasses.replace(
        inputs,
        similarity=inputs.similarity - 0.1 * best,
        patch_similarity=inputs.patch_similarity - 0.1 * best[:, None],
    )
    assert (score(better) > score(inputs)).all()


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
    fresh = get_score(score.name, **score.options)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(make_inputs()), score(make_inputs()))


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
        for bad in (math.nan, math.inf, -math.inf):
            inputs = map_tensors(make_inputs(), torch.clone)
            getattr(inputs, name)[2, 1] = bad
            getattr(inputs, name)[4, 0] = bad
            with pytest.raises(NonFiniteError, match=rf"{name} .*rows \[2, 4\]"):
                score(inputs)


def test_a_result_that_is_not_finite_is_refused(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(score), "compute", lambda self, inputs: torch.tensor([0.5, math.nan]))
    with pytest.raises(NonFiniteError):
        score(make_inputs(2))


def test_an_input_the_score_does_not_need_may_be_anything(score: Score) -> None:
    values = {f.name: getattr(make_inputs(), f.name) for f in dataclasses.fields(ScoreInputs)}
    for name in values:
        if name in (*score.needs, "similarity", "logit_scale"):
            continue
        without = score(ScoreInputs(**{**values, name: None}))
        spoilt = score(ScoreInputs(**{**values, name: torch.full_like(values[name], math.nan)}))
        assert torch.equal(without, spoilt)


@pytest.mark.parametrize("missing", [None, torch.zeros(BATCH, 0)], ids=["none", "no columns"])
@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_missing_negatives_are_asked_for(name: str, missing: Tensor | None) -> None:
    inputs = dataclasses.replace(make_inputs(), negative_similarity=missing)
    with pytest.raises(ScoreInputError, match=rf"'{name}' needs negative_similarity.*negatives="):
        get_score(name)(inputs)


def test_no_labels_are_refused(score: Score) -> None:
    with pytest.raises(ScoreInputError, match="at least one label"):
        score(make_inputs(num_labels=0))


def test_one_label_is_refused_where_the_score_would_be_constant(score: Score) -> None:
    inputs = make_inputs(num_labels=1)
    if score.min_labels == 1:
        assert len(score(inputs).unique()) == BATCH
    else:
        with pytest.raises(ScoreInputError, match="max_logit"):
            score(inputs)


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
        score(dataclasses.replace(make_inputs(), similarity=torch.full(shape, 0.2)))
    # Wrong in two ways: either may be told first.
    with pytest.raises((ScoreInputError, NonFiniteError)):
        score(dataclasses.replace(make_inputs(), similarity=torch.full(shape, math.nan)))


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
    module, _, class_name = SCORES[name].partition(":")
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
