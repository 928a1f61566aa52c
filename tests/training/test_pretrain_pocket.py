"""Pretraining the pocket CLIP: every part against a slow reference, and the program from end to end."""

import copy
import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import typer
import yaml
from accelerate import Accelerator
from hf_oodclip.training import pretrain_pocket
from hf_oodclip.training.pocket.captions import VARIANTS, Captions
from hf_oodclip.training.pocket.image_stage import ImageTraining, VisionTower, accuracy
from hf_oodclip.training.pocket.images import Images, augment, load_images, mix_images, shuffle_tiles, standardise
from hf_oodclip.training.pocket.lexicon import Classes, build_lexicon, read_classes
from hf_oodclip.training.pocket.optimizer import MatrixOptimizer
from hf_oodclip.training.pocket.phases import run_phase
from hf_oodclip.training.pocket.recipe import FOLDER, ImageStage, list_pocket_recipes, load_pocket_recipe
from hf_oodclip.training.pocket.text_stage import MoreText, TextStage
from hf_oodclip.training.pocket.tokenizer import read_tokenizer, train_tokenizer
from hf_oodclip.training.pocket.tower import image_features
from hf_oodclip.training.pocket.wordnet import read_wordnet
from pocket_sources import write_classes, write_images, write_sentence_encoder, write_wordnet
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from hf_oodclip.errors import CheckpointError, DataError, UnknownNameError

SIZES = {"nouns": 300, "common": 200, "adjectives": 10, "glosses": 20, "pairs": 20}


@pytest.fixture(scope="module")
def wordnet_folder(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("words") / "wordnet")


@pytest.fixture(scope="module")
def lexicon(wordnet_folder):
    return build_lexicon(read_wordnet(wordnet_folder), read_classes(), SIZES, 0)


@pytest.fixture(scope="module")
def recipe():
    return load_pocket_recipe("smoke")


def random_encode(dim=64):
    def encode(texts):
        seeds = [sum(map(ord, text)) + 1000 * len(text) for text in texts]
        rows = [torch.randn(dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return normalize(torch.stack(rows), dim=-1)

    return encode


@pytest.fixture
def captions(lexicon):
    return Captions(random_encode(), lexicon, read_classes(), 0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(40) % 170)


def test_wordnet_is_read(wordnet_folder):
    found = read_wordnet(wordnet_folder)
    goldfish = found.nouns["n01443537"]
    assert goldfish.words[0] == "goldfish"
    assert goldfish.gloss == "a thing called goldfish"
    assert found.ancestors("n01443537") == ["n00000001"]
    assert found.noun_counts["goldfish"] == len("goldfish") % 4


def test_wordnet_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="apt-get install"):
        read_wordnet(tmp_path)
    for name in ("data.noun", "index.noun", "index.adj"):
        (tmp_path / name).write_text("nothing of the kind\n")
    with pytest.raises(DataError, match="not as WordNet"):
        read_wordnet(tmp_path)


def test_the_split_of_classes_is_the_one_that_was_drawn():
    split = read_classes()
    assert (len(split.seen), len(split.held_out)) == (170, 30)
    assert not {*split.seen} & {*split.held_out}
    assert "koala" in split.held_out.values()


def test_no_held_out_name_is_a_caption(captions, lexicon):
    held_out = {*read_classes().held_out.values()}
    assert not held_out & {*captions.labels}
    assert not held_out & {name for names in lexicon.ancestors.values() for name in names}
    # Nor a noun that images are held against.
    encode = random_encode()
    far = encode([f"a photo of a {name}." for name in held_out]) @ captions.distractors.T
    assert far.max() <= 0.6


def test_tokenizer_spells_what_it_never_met(lexicon):
    tokenizer = train_tokenizer(lexicon.nouns, 900)
    assert len(tokenizer) <= 900
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    ids = tokenizer("ß 漢 goldfish").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").endswith("goldfish")


def test_tokenizer_is_the_same_every_time():
    # Many merges of equal frequency: their order must not hang on that of a hash table.
    words = ["".join(pair) for pair in itertools.product("abcdefgh", "stuvwxyz")]
    first, *others = (train_tokenizer(words, 600).get_vocab() for _ in range(4))
    assert all(vocab == first for vocab in others)


def test_an_interrupted_run_keeps_its_tokenizer(recipe, lexicon, tmp_path):
    encoder = str(write_sentence_encoder(tmp_path / "encoder"))
    kept = train_tokenizer(["quite other words"], recipe.vocab_size)
    kept.save_pretrained(tmp_path)
    found = [
        TextStage(recipe, lexicon, encoder, torch.device("cpu"), folder).tokenizer.get_vocab()
        for folder in (tmp_path, tmp_path / "nothing")
    ]
    assert found[0] == kept.get_vocab() != found[1]
    kept("a text", padding="max_length", truncation=True, max_length=7)
    kept.save_pretrained(tmp_path / "used")
    again = read_tokenizer(tmp_path / "used")
    again.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("side", [64, 32])
def test_fast_tower_is_the_tower_of_transformers(recipe, side):
    torch.manual_seed(0)
    tower = VisionTower(recipe, recipe.vision)
    pixels = torch.randn(5, 3, side, side)
    found = image_features(tower.clip, pixels)
    expected = tower.clip(pixel_values=pixels, interpolate_pos_encoding=side != 64).image_embeds
    # bf16 against fp32; positions are interpolated bilinearly here, bicubically there.
    cosines = (found * normalize(expected, dim=-1)).sum(-1)
    assert cosines.min() > (0.9995 if side == 64 else 0.98)


def test_dropping_no_patch_changes_nothing_and_half_of_them_something(recipe):
    torch.manual_seed(0)
    tower, pixels = VisionTower(recipe, recipe.vision), torch.randn(3, 3, 64, 64)
    whole = image_features(tower.clip, pixels)
    same = image_features(tower.clip, pixels, 1.0, torch.Generator().manual_seed(1))
    half = image_features(tower.clip, pixels, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, half)


def test_loss_against_a_slow_reference(captions):
    generator = torch.Generator().manual_seed(3)
    embeds = normalize(torch.randn(6, 64, generator=generator), dim=-1)
    labels, scale, count = torch.tensor([0, 1, 5, 100, 169, 5]), torch.tensor(20.0), 30
    own, above = captions.loss(embeds, labels, scale, count, torch.Generator().manual_seed(9))

    again, nodes = torch.Generator().manual_seed(9), len(captions.nodes)
    variants = torch.randint(VARIANTS, (nodes,), generator=again)
    nouns = torch.randint(len(captions.distractors), (count,), generator=again)
    turns = torch.randint(captions.parents.shape[1], (len(labels),), generator=again)
    expected = [[], []]
    for row, label in enumerate(labels.tolist()):
        image = embeds[row].double()
        logits = [20 * float(image @ captions.nodes[n, variants[n]].double()) for n in range(nodes)]
        wrong = [math.exp(logits[n]) for n in range(nodes) if not captions.positive[label, n]]
        wrong += [
            math.exp(20 * float(image @ captions.distractors[noun].double()))
            for noun in nouns.tolist()
            if not captions.forbidden[label, noun]
        ]
        for losses, node in zip(expected, (label, int(captions.parents[label, turns[row]])), strict=True):
            right = math.exp(logits[node])
            losses.append(-math.log(right / (right + sum(wrong))))
    assert own.item() == pytest.approx(np.mean(expected[0]), rel=1e-4)
    assert above.item() == pytest.approx(np.mean(expected[1]), rel=1e-4)


def test_loss_of_images_that_show_nothing_against_a_slow_reference(captions):
    generator = torch.Generator().manual_seed(4)
    embeds, count = normalize(torch.randn(3, 64, generator=generator), dim=-1), 30
    found = captions.nothing_loss(embeds, torch.tensor(20.0), count, torch.Generator().manual_seed(9))

    again, nodes = torch.Generator().manual_seed(9), len(captions.nodes)
    variants = torch.randint(VARIANTS, (nodes,), generator=again).tolist()
    nouns = torch.randint(len(captions.distractors), (count,), generator=again).tolist()
    expected = []
    for image in embeds.double():
        shown = [math.exp(20 * float(image @ captions.nodes[n, variants[n]].double())) for n in range(nodes)]
        other = [math.exp(20 * float(image @ captions.distractors[noun].double())) for noun in nouns]
        expected.append(-math.log(sum(other) / (sum(other) + sum(shown))))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_tiles_are_those_of_the_same_image(seed):
    crops = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).view(2, 3, 32, 32)
    shuffled = shuffle_tiles(crops, torch.Generator().manual_seed(seed))
    across = 4 if shuffled[0, 0, 0, 4] == shuffled[0, 0, 0, 0] + 4 else 8

    def tiles(images):
        size = 32 // across
        return [
            {tuple(image[:, y : y + size, x : x + size].flatten().tolist()) for y in range(0, 32, size)
             for x in range(0, 32, size)} for image in images
        ]  # fmt: skip

    assert tiles(shuffled) == tiles(crops)
    assert not torch.equal(shuffled, crops)
    # The order is each image's own.
    assert not torch.equal(shuffled[1] - crops[1].min(), shuffled[0] - crops[0].min())


def test_shuffled_images_have_a_loss_of_their_own(recipe, captions, images):
    def first_step(share):
        chosen = dataclasses.replace(recipe, shuffled=share, mix=0.0)
        training = ImageTraining(
            "image", chosen, chosen.vision, chosen.stages, captions, images, Accelerator(cpu=True)
        )
        return training.step(0)

    assert set(first_step(0.25)) == {"class_loss", "parent_loss", "shuffled_loss"}
    assert set(first_step(0.0)) == {"class_loss", "parent_loss"}


def test_crops_depend_on_the_generator_alone(images):
    first, again = (augment(images.pixels, 32, 0.35, torch.Generator().manual_seed(5)) for _ in range(2))
    other = augment(images.pixels, 32, 0.35, torch.Generator().manual_seed(6))
    assert first.shape == (40, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_whole_image_is_a_crop_of_itself(images):
    crop = augment(images.pixels, 64, 1.0, torch.Generator().manual_seed(5))
    plain = standardise(images.pixels)

    def alike(one, other):
        one, other = (each - each.mean((2, 3), keepdim=True) for each in (one, other))
        return torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1))

    # Up to aspect ratio and colours an image, or its mirror image.
    best = torch.maximum(alike(crop, plain), alike(crop, plain.flip(-1)))
    assert best.max() > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_mixed_images_have_the_share_they_say(seed):
    crops = torch.stack([torch.full((3, 16, 16), float(value)) for value in range(8)])
    mixed, partner, share = mix_images(crops, torch.Generator().manual_seed(seed))
    expected = share * torch.arange(8) + (1 - share) * partner
    assert mixed.mean((1, 2, 3)).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_optimizer_goes_on_from_its_state(recipe):
    def run(steps, state=None):
        torch.manual_seed(0)
        tower = VisionTower(recipe, recipe.vision)
        optimizer = MatrixOptimizer(tower, 1e-2, 0.05)
        if state is not None:
            tower.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        for _ in range(steps):
            optimizer.zero_grad()
            (image_features(tower.clip, pixels)[:, 0].sum() + tower.log_scale**2).backward()
            optimizer.step()
        return {name: each.clone() for name, each in tower.state_dict().items()}, optimizer.state_dict()

    whole, _ = run(4)
    part, state = run(2)
    rest, _ = run(2, (part, state))
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_an_interrupted_run_ends_at_the_same_weights(recipe, captions, images, tmp_path):
    def training():
        return ImageTraining("image", recipe, recipe.vision, recipe.stages, captions, images, Accelerator(cpu=True))

    def go(each, folder):
        return run_phase(
            each, folder, "digest", measure=lambda: {"x": 1.0}, every=5, is_main=True, say=lambda line: None,
            minutes_between=0.0,
        )  # fmt: skip

    whole, half, rest = training(), training(), training()
    record = go(whole, tmp_path / "whole")
    real, half.num_steps = half.num_steps, 7
    go(half, tmp_path / "parts")
    assert rest.num_steps == real
    go(rest, tmp_path / "parts")
    assert record["history"][-1]["step"] == real == 18
    for name, values in whole.model.state_dict().items():
        assert torch.equal(values, rest.model.state_dict()[name]), name
        assert torch.equal(whole.averaged[name], rest.averaged[name]), name


def test_a_longer_recipe_goes_on_from_a_shorter_one(recipe, captions, images, tmp_path):
    stages = (*recipe.stages, dataclasses.replace(recipe.stages[-1], steps=6, restart=0.5))
    longer = dataclasses.replace(recipe, stages=stages, warmup_steps=2)
    (shorter,) = longer.shorter()
    assert shorter.stages == recipe.stages
    assert shorter.shorter() == []

    def go(chosen, folder, digest, shorter=()):
        each = ImageTraining("image", chosen, chosen.vision, chosen.stages, captions, images, Accelerator(cpu=True))
        run_phase(
            each, folder, digest, measure=lambda: {"x": 1.0}, every=50, is_main=True, say=lambda line: None,
            minutes_between=60.0, shorter=shorter,
        )  # fmt: skip
        return each

    whole = go(longer, tmp_path / "whole", "longer")
    go(shorter, tmp_path / "parts", "shorter")
    with pytest.raises(CheckpointError, match="another recipe"):
        go(longer, tmp_path / "parts", "longer", ["shortest"])
    rest = go(longer, tmp_path / "parts", "longer", ["shortest", "shorter"])
    again = go(longer, tmp_path / "parts", "longer", ["shorter"])
    for name, values in whole.model.state_dict().items():
        assert torch.equal(values, rest.model.state_dict()[name]), name
        assert torch.equal(whole.averaged[name], rest.averaged[name]), name
        assert torch.equal(values, again.model.state_dict()[name]), name


def test_towers_at_the_ends_of_cycles_are_averaged(recipe, captions, images):
    stages = (
        ImageStage(64, 2, 8),
        ImageStage(64, 2, 8, restart=0.5),
        ImageStage(64, 1, 8),
        ImageStage(64, 2, 8, restart=1.0),
    )
    training = ImageTraining("image", recipe, recipe.vision, stages, captions, images, Accelerator(cpu=True))
    ends = []
    for step in range(7):
        training.step(step)
        if step in (1, 4, 6):
            ends.append({name: training.averaged[name].clone() for name in training.model.state_dict()})
        found = training.averaged_tower().state_dict()
        running = {name: training.averaged[name] for name in found}
        parts = [*ends[:-1], running] if step in (1, 4, 6) else [*ends, running]
        for name, values in found.items():
            expected = torch.stack([part[name].double() for part in parts]).mean(0)
            assert torch.allclose(values.double(), expected, atol=1e-6), (step, name)
    assert not torch.equal(ends[0]["log_scale"], ends[2]["log_scale"])


def test_the_learning_rate_by_hand(recipe, captions, images):
    stages = [
        ImageStage(64, 10, 16),
        ImageStage(64, 10, 16),
        ImageStage(64, 10, 16, restart=0.5),
        ImageStage(64, 20, 8),
    ]
    chosen = dataclasses.replace(recipe, stages=tuple(stages), warmup_steps=4, decay_from=0.5)
    training = ImageTraining("image", chosen, chosen.vision, stages, captions, images, Accelerator(cpu=True))
    found = {step: training.stage_of(step) for step in range(51)}
    assert [found[step][0] for step in (0, 9, 10, 19, 20, 29, 30, 49)] == [s for s in stages for _ in range(2)]
    rates = {0: 0.25, 3: 1, 10: 1, 15: 0.5, 19: 0.1, 20: 0.125, 23: 0.5, 30: 0.5, 40: 0.25, 49: 0.025, 50: 0}
    assert {step: found[step][1] for step in rates} == pytest.approx(rates)
    alone = ImageTraining("image", chosen, chosen.vision, stages[:2], captions, images, Accelerator(cpu=True))
    assert [alone.stage_of(step) for step in range(20)] == [found[step] for step in range(20)]


def test_text_read_later_leaves_the_captions_where_they_were(recipe, lexicon, tmp_path, monkeypatch):
    encoder = write_sentence_encoder(tmp_path / "encoder")
    stage = TextStage(dataclasses.replace(recipe, more_text_steps=12), lexicon, str(encoder), torch.device("cpu"))
    for step in range(stage.num_steps):
        stage.step(step)
    assert "koala" not in stage.groups[0]
    stage.add_names(["koala", "koala", "goldfish"])
    assert stage.groups[0].count("koala") == stage.groups[0].count("goldfish") == 1
    expected = stage.space.targets(["koala"])[0]
    assert torch.allclose(stage.targets[stage.place["koala"]], expected, atol=1e-3)

    kept = {}
    for weight in (0.0, 30.0):
        monkeypatch.setattr("hf_oodclip.training.pocket.text_stage.PIN_WEIGHT", weight)
        more = MoreText(copy.deepcopy(stage), [f"a photo of a {name}." for name in lexicon.names])
        before = [each.detach().clone() for each in more.model.parameters()]
        for step in range(more.num_steps):
            assert set(more.step(step)) == {"loss", "cosine", "pinned_cosine"}
        assert not all(torch.equal(one, other) for one, other in zip(before, more.model.parameters(), strict=True))
        kept[weight] = more.fit()["captions"]
    assert kept[30.0] > max(0.97, kept[0.0])


def test_a_checkpoint_depends_on_settings_and_data(recipe, images):
    fields = recipe.to_dict()
    others = Images(255 - images.pixels, images.labels)
    digests = [
        pretrain_pocket._digest(fields),
        pretrain_pocket._digest({**fields, "seed": 1}),
        pretrain_pocket._digest(fields, images, images),
        pretrain_pocket._digest(fields, images, others),
    ]
    assert len(set(digests)) == 4
    assert pretrain_pocket._digest(fields, images, images) == digests[2]
    assert set(pretrain_pocket.TEXT_FIELDS) <= set(fields)


def test_each_image_is_taken_once_an_epoch(recipe, captions, images):
    training = ImageTraining("image", recipe, recipe.vision, recipe.stages, captions, images, Accelerator(cpu=True))
    taken = torch.cat([training._rows(step, training.stage_of(step)[0]) for step in range(5)])
    assert len(taken) == 160
    assert torch.equal(taken.bincount(), torch.full((40,), 4))


def test_a_tower_that_follows_a_teacher_says_so(recipe, captions, images):
    torch.manual_seed(0)
    teacher = VisionTower(recipe, recipe.teacher.tower)
    training = ImageTraining(
        "image", recipe, recipe.vision, recipe.stages, captions, images, Accelerator(cpu=True), teacher=teacher
    )
    assert set(training.step(0)) == {"class_loss", "parent_loss", "shuffled_loss", "teacher_loss"}
    assert all(values.grad is None for values in teacher.parameters())


def test_accuracy_by_hand(recipe, images):
    torch.manual_seed(0)
    tower = VisionTower(recipe, recipe.vision)
    embeds = image_features(tower.clip, standardise(images.pixels))
    own = Images(images.pixels, torch.arange(40))
    assert accuracy(tower, own, embeds.detach()) == (1.0, 1.0)
    small = image_features(tower.clip, torch.nn.functional.avg_pool2d(standardise(images.pixels), 2))
    assert accuracy(tower, own, small.detach(), side=32) == (1.0, 1.0)
    assert accuracy(tower, Images(images.pixels, (torch.arange(40) + 1) % 40), embeds.detach())[0] == 0.0


def test_images_by_name_or_by_wordnet_id(id_dataset, tmp_path):
    split = read_classes()
    path = write_images(tmp_path, id_dataset, range(60))
    found = load_images([str(path)], split.seen)
    assert found.pixels.shape == (60, 3, 64, 64)
    names = list(split.seen.values())
    assert [names[label] for label in found.labels] == [
        id_dataset.features["label"].names[label] for label in id_dataset.select(range(60))["label"]
    ]
    with pytest.raises(DataError, match="none of the 1 classes"):
        load_images([str(path)], {"n00000000": "unicorn"})


def test_recipes_are_whole():
    for name in list_pocket_recipes():
        recipe = load_pocket_recipe(name)
        assert recipe.description
        assert recipe.stages[-1].pixels == 64
    with pytest.raises(UnknownNameError, match="cpu-1h"):
        load_pocket_recipe("cpu-1hour")


def test_classes_of_another_shape_are_refused(tmp_path):
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(DataError, match="no file of classes"):
        read_classes(tmp_path / "classes.json")


def test_a_lexicon_without_the_classes_is_refused(wordnet_folder):
    classes = Classes({"n00000077": "unicorn"}, {}, frozenset())
    with pytest.raises(DataError, match="unicorn"):
        build_lexicon(read_wordnet(wordnet_folder), classes, SIZES, 0)


@pytest.mark.slow
def test_the_program_from_end_to_end(wordnet_folder, id_dataset, tmp_path):
    names = id_dataset.features["label"].names
    settings = {
        "train": [str(write_images(tmp_path, id_dataset, range(0, 400)))],
        "validation": str(write_images(tmp_path, id_dataset, range(400, 800))),
        "output_dir": tmp_path / "run",
        "wordnet": wordnet_folder,
        "sentence_encoder": str(write_sentence_encoder(tmp_path / "encoder")),
        "classes": write_classes(tmp_path / "classes.json", names[:15], names[15:]),
        "recipe": "smoke",
        "seed": None,
        "smoke": True,
        "resume": False,
        "overwrite": False,
    }
    pretrain_pocket.main(**settings)
    folder = tmp_path / "run" / "checkpoint"
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["checkpoint"]["weight_bytes"] == (folder / "model.safetensors").stat().st_size
    assert 0 <= record["figures"]["seen_top1"] <= record["figures"]["seen_top5"] <= 1
    assert (tmp_path / "run" / "learning_curve.png").exists()
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=["a goldfish"], images=id_dataset[0]["image"], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)
    assert all(values.dtype is torch.float32 for values in model.parameters())
    card = (folder / "README.md").read_text()
    assert "Not measured" not in card
    assert "it knows 15 of 20" in card
    with pytest.raises(typer.Exit):
        pretrain_pocket.main(**settings)

    # Other image stages, with the text tower of the first run.
    values = yaml.safe_load((FOLDER / "smoke.yaml").read_text())
    values |= {"stages": [{"pixels": 64, "steps": 2, "batch_size": 16}], "teacher": None}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(tmp_path / "run" / "checkpoints" / "text", tmp_path / "again" / "checkpoints" / "text")
    other = {"recipe": str(tmp_path / "other.yaml"), "smoke": False, "resume": True, "output_dir": tmp_path / "again"}
    pretrain_pocket.main(**{**settings, **other})
    again = json.loads((tmp_path / "again" / "training.json").read_text())
    assert again["text"] == record["text"]
    assert [each["step"] for each in again["image"]["history"]] == [2]

    # The finished run, longer: text, teacher and first image stages stay as they are.
    values = yaml.safe_load((FOLDER / "smoke.yaml").read_text())
    values["stages"].append({"pixels": 64, "steps": 3, "batch_size": 16, "restart": 0.5})
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump({**values, "description": "Smoke, and more of it."}))
    pretrain_pocket.main(**{**settings, "recipe": str(tmp_path / "longer.yaml"), "smoke": False, "resume": True})
    longer = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [longer[name] for name in ("text", "teacher", "more_text")] == [
        record[name] for name in ("text", "teacher", "more_text")
    ]
    assert longer["image"]["history"][:-1] == record["image"]["history"]
    assert longer["image"]["history"][-1]["step"] == 21
    assert longer["checkpoint"]["sha256"] != record["checkpoint"]["sha256"]
    assert "16 images at 64 px, the learning rate anew from 50 %" in " ".join(
        (folder / "README.md").read_text().split()
    )
