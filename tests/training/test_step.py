"""One training step against KR-NFT's objective written as the paper has it: image by image, crop by crop, in fp64."""

import copy

import pytest
import torch
from hf_oodclip.training.step import Batch, TrainingStep
from hf_oodclip.training.trainer import add_adapter
from small_runs import WORDS, make_trainer, random_inputs, small_recipe
from torch.nn.functional import normalize

from hf_oodclip.errors import NonFiniteError, RecipeError

DIM, CROPS = 24, 3
LABELS = ("goldfish", "school bus", "acorn")


@pytest.fixture(scope="module")
def double_model(tiny_clip, make_model):
    """The tiny model in float64, with its text bank."""
    model = make_model(tiny_clip, labels=list(LABELS), negatives=WORDS).double()
    return model


def randomised(model, recipe):
    """A copy of a model with a recipe's adapter on it, all of whose parameters are random."""
    model = copy.deepcopy(model)
    add_adapter(model, recipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def random_batch(size=4, seed=2):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(size, *shape, DIM, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, len(LABELS), (size,), generator=generator)
    return Batch(labels, list(range(100, 100 + size)), random(), random(CROPS), random(CROPS))


def slow_objective(model, batch, condition, weights):
    """`L = L_p + w1 L_n + w2 L_kr` by loops over images and crops; the text features are built one by one."""
    get = {
        name.split("tuned_")[1].removesuffix(".default"): value
        for name, value in model.named_parameters()
        if "tuned_" in name
    }
    scale = model.clip.logit_scale.exp()
    groups = [normalize(each, dim=-1) for each in (model.text_bank.label_embeds, model.text_bank.negative_embeds)]

    def moved(mover):
        """c' of every label and negative, and their cosines with c."""
        image, texts, kept = mover / mover.norm(), [], []
        for group, classes in enumerate(groups):
            factors = []
            for name in ("scale", "shift"):
                hidden = torch.relu(get[f"{name}_down_weight"][group] @ image + get[f"{name}_down_bias"][group])
                factors.append(
                    get[name][group] + get[f"{name}_up_weight"][group] @ hidden + get[f"{name}_up_bias"][group]
                )
            for one in classes:
                new = (1 + factors[0]) * one + factors[1]
                texts.append(new / new.norm())
                kept.append(texts[-1] @ one)
        return texts, kept

    positives, negatives, kept = [], [], []
    for index, label in enumerate(batch.labels):
        movers = {"image": batch.images[index], "best_crop": batch.positives[index, 0]}
        if condition != "self":
            kept += moved(movers[condition])[1]
        for crops, losses in ((batch.positives[index], positives), (batch.negatives[index], negatives)):
            for crop in crops:
                texts, near = moved(crop if condition == "self" else movers[condition])
                if condition == "self":
                    kept += near
                logits = torch.stack([scale * (crop / crop.norm()) @ text for text in texts])
                mass = torch.softmax(logits, dim=0)
                if losses is positives:
                    losses.append(-torch.log(mass[label]))
                else:
                    losses.append(torch.log(mass[: len(LABELS)].sum()))
    found = {
        "classification_with_negatives": torch.stack(positives).mean(),
        "ood_negatives": torch.stack(negatives).mean(),
        "knowledge_regularization": 1 - torch.stack(kept).mean(),
    }
    return {**found, "loss": sum(weights[name] * found[name] for name in found)}


def gradients(model, loss):
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    found = torch.autograd.grad(loss, [each for _, each in named])
    return {name: gradient for (name, _), gradient in zip(named, found, strict=True)}


@pytest.mark.parametrize("condition", ["self", "best_crop", "image"])
def test_krnft_objective_equals_the_paper(condition, double_model, tmp_path):
    changes = {"adapter__hidden_size": 5, "losses__knowledge_regularization__weight": 7}
    recipe = small_recipe("krnft", "pocket", tmp_path, condition=condition, **changes)
    model, batch = randomised(double_model, recipe), random_batch()
    found = TrainingStep(model, recipe)(batch)
    weights = {"classification_with_negatives": 1.0, "ood_negatives": 0.3, "knowledge_regularization": 7.0}
    expected = slow_objective(model, batch, condition, weights)
    assert found.keys() == expected.keys()
    assert expected["knowledge_regularization"] > 0.05
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
    slow, fast = gradients(model, expected["loss"]), gradients(model, found["loss"])
    assert len(slow) == 10
    for name, gradient in slow.items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(fast[name], gradient, rtol=1e-9, atol=1e-9)


def test_conditions_differ(double_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path)
    model = randomised(double_model, recipe)
    recipes = [small_recipe("krnft", "pocket", tmp_path, condition=each) for each in ("self", "best_crop", "image")]
    losses = [float(TrainingStep(model, each)(random_batch())["loss"].detach()) for each in recipes]
    assert len(set(losses)) == 3


def test_every_loss_gets_what_it_needs(double_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path)
    model, batch = randomised(double_model, recipe), random_batch()
    outputs = TrainingStep(model, recipe).outputs(batch)
    scale = model.clip.logit_scale.exp()
    texts = [normalize(each, dim=-1) for each in (model.text_bank.label_embeds, model.text_bank.negative_embeds)]
    for crops, names in (
        (batch.positives, ("label_logits", "negative_logits")),
        (batch.negatives, ("ood_label_logits", "ood_negative_logits")),
    ):
        for name, count in zip(names, (len(LABELS), len(WORDS)), strict=True):
            found = getattr(outputs, name)
            assert found.shape == (4, CROPS, count)
            # One crop by itself, which moves the text features it is compared with.
            crop = crops[2, 1]
            alone = model.training_cosines(crop[None])
            part = alone.labels if "label" in name else alone.negatives
            torch.testing.assert_close(found[2, 1], (scale * part)[0], rtol=1e-12, atol=1e-12)
    assert outputs.kept_labels.shape == (2 * 4 * CROPS, len(LABELS))
    assert torch.equal(outputs.image_embeds, batch.positives)
    for name, each in zip(("original_label_logits", "original_negative_logits"), texts, strict=True):
        expected = scale * torch.einsum("bqd,kd->bqk", normalize(batch.positives, dim=-1), each)
        torch.testing.assert_close(getattr(outputs, name), expected, rtol=1e-12, atol=1e-12)
        assert not getattr(outputs, name).requires_grad
    with pytest.raises(RecipeError, match="never builds"):
        _ = outputs.label_embeds


def test_knowledge_is_compared_with_the_model_without_its_adapter(double_model, tmp_path):
    # CLIP-Adapter changes the images: the original logits are those of the images before it.
    recipe = small_recipe("clip-adapter", "pocket", tmp_path, losses={"knowledge_regularization": {"on": "logit"}})
    recipe.inputs = "images"
    model, batch = randomised(double_model, recipe), random_batch()
    outputs = TrainingStep(model, recipe).outputs(Batch(batch.labels, batch.rows, batch.images))
    scale = model.clip.logit_scale.exp()
    expected = scale * normalize(batch.images, dim=-1) @ normalize(model.text_bank.label_embeds, dim=-1).T
    torch.testing.assert_close(outputs.original_label_logits, expected, rtol=1e-12, atol=1e-12)
    assert (outputs.label_logits - expected).abs().max() > 0.1


def test_original_logits_are_exact_under_autocast(tiny_clip, make_model, tmp_path):
    model = make_model(tiny_clip, labels=list(LABELS), negatives=WORDS)
    recipe = small_recipe("krnft", "pocket", tmp_path, condition="image")
    add_adapter(model, recipe)
    batch = random_batch()
    batch = Batch(
        batch.labels, batch.rows, *(each.float() for each in (batch.images, batch.positives, batch.negatives))
    )
    step = TrainingStep(model, recipe)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = step.outputs(batch)
        inside = (outputs.original_label_logits, outputs.label_logits)
    outside = step.outputs(batch).original_label_logits
    # A new adapter changes nothing, so all three are the same logits.
    for each in inside:
        torch.testing.assert_close(each, outside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["views", "images", "pixels"])
def test_a_loss_on_negative_crops_needs_crops(kind, double_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path, inputs=kind)
    with pytest.raises(RecipeError, match=rf"ood_negatives needs negative crops.*'{kind}'"):
        TrainingStep(double_model, recipe)


def test_a_loss_on_negatives_needs_negatives(tiny_clip, make_model, tmp_path):
    bare = make_model(tiny_clip, labels=list(LABELS), negatives=[])
    with pytest.raises(RecipeError, match="need negatives, and the recipe has none"):
        TrainingStep(bare, small_recipe("krnft", "pocket", tmp_path, negatives=None))


def test_negative_crops_are_left_alone_when_no_loss_asks_for_them(double_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path, losses__ood_negatives=None)
    model, batch = randomised(double_model, recipe), random_batch()
    step = TrainingStep(model, recipe)
    without = Batch(
        batch.labels, batch.rows, batch.images, batch.positives, torch.full_like(batch.negatives, torch.nan)
    )
    assert torch.equal(step(without)["loss"], step(batch)["loss"])


def test_a_loss_that_is_not_finite_names_its_rows(double_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path)
    model, batch = randomised(double_model, recipe), random_batch()
    batch.positives[1, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"classification_with_negatives.*\[100, 101, 102, 103\]"):
        TrainingStep(model, recipe)(batch)


class OneOfSeveral:
    """Stands for one process of several: keeps what it would send, and gets the sum of all back."""

    def __init__(self, accelerator, index, count):
        self.accelerator, self.process_index, self.num_processes, self.sent = accelerator, index, count, None

    def __getattr__(self, name):
        return getattr(self.accelerator, name)

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.sent = tensor.clone()
        return tensor


def gradients_of_step(model, recipe, inputs, process=(0, 1)):
    """Gradients and losses before the first optimizer step, as one process has, or would send, them."""
    trainer = make_trainer(copy.deepcopy(model), recipe, inputs)
    for parameter in trainer.parameters.values():
        parameter.data = parameter.data.to(inputs.tensors["image_embeds"].dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in trainer.parameters.values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    kept = {}

    def keep():
        kept.update({name: each.grad.clone() for name, each in trainer.parameters.items()})

    trainer.optimizer.step = keep
    trainer.accelerator = OneOfSeveral(trainer.accelerator, *process)
    losses = trainer._take(0)
    sent = trainer.accelerator.sent
    return (losses, kept) if sent is None else sent


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["krnft", "krnft-code", "coop"])
def test_how_a_batch_is_spread_changes_nothing(name, dtype, tolerance, tiny_clip, make_model, tmp_path):
    model = make_model(tiny_clip, labels=list(LABELS), negatives=WORDS).to(dtype)
    labels = [0, 1, 2, 0, 1, 2, 0]
    whole_recipe = small_recipe(name, "pocket", tmp_path, batch_size=5)
    inputs = random_inputs(whole_recipe, labels, DIM, dtype=dtype)
    losses, whole = gradients_of_step(model, whole_recipe, inputs)
    size = max(float(each.abs().max()) for each in whole.values())
    assert size > 1e-3

    for micro in (1, 2):
        recipe = small_recipe(name, "pocket", tmp_path, batch_size=5, micro_batch_size=micro)
        found_losses, found = gradients_of_step(model, recipe, random_inputs(recipe, labels, DIM, dtype=dtype))
        assert found_losses == pytest.approx(losses, rel=tolerance, abs=tolerance)
        for key, gradient in whole.items():
            torch.testing.assert_close(found[key] / size, gradient / size, rtol=0, atol=tolerance)

    expected = torch.cat([each.flatten() for each in whole.values()])
    for count in (2, 3, 7):
        sent = sum(gradients_of_step(model, whole_recipe, inputs, (index, count)) for index in range(count))
        assert sent.dtype == dtype
        assert sent[: len(losses)].tolist() == pytest.approx(list(losses.values()), rel=1e-6, abs=1e-6)
        torch.testing.assert_close(sent[len(losses) :] / size, expected / size, rtol=0, atol=tolerance)
