"""The engine says what a model of one's own would say, and visitors do not disturb each other."""

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_oodclip import (
    NFTConfig,
    OODCLIPForImageClassification,
    OODImageClassificationPipeline,
    TaskResidualConfig,
)
from hf_oodclip.app import engine as engine_module
from hf_oodclip.app.bank import NO_ADAPTER, Setup
from hf_oodclip.app.engine import Engine
from hf_oodclip.app.inputs import AppError, Limits
from hf_oodclip.app.samples import calibration_images, example_images, sample_labels
from hf_oodclip.errors import AdapterError, CalibrationError, UnknownNameError

OTHERS = ("goldfish", "school bus", "teapot")


@pytest.fixture
def others(engine):
    return Setup(OTHERS, engine.start.negatives)


def scores_of(results):
    return [result.ood_scores for result in results]


def same_scores(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert value == pytest.approx(right[key], abs=1e-5, rel=1e-4), key


def test_results_are_those_of_the_pipeline(engine, photos, pocket, words, id_labels):
    model = OODCLIPForImageClassification.from_pretrained(pocket, labels=id_labels, negatives=words)
    model.calibrate(calibration_images())
    classifier = OODImageClassificationPipeline(model=model)
    paths = [*photos["id"][:3], *photos["far"][:2]]
    results, left_out = engine.analyse(engine.start, paths)
    calibration = engine.bank(engine.start).calibrations["neglabel"]
    assert calibration.threshold == pytest.approx(model.calibration.threshold, abs=1e-6)
    assert left_out == []
    for result, path in zip(results, paths, strict=True):
        expected = classifier(str(path), top_k=5)
        assert result.path == path
        assert [label for label, _ in result.labels] == [found["label"] for found in expected["labels"]]
        assert result.labels[0][1] == pytest.approx(expected["score"], abs=1e-5)
        assert result.nearest_negative == expected["nearest_negative"]
        assert result.ood_scores["neglabel"] == pytest.approx(expected["ood_score"], abs=1e-5)
        assert result.ood_scores["mcm"] == pytest.approx(classifier(str(path), score="mcm")["ood_score"], abs=1e-5)
        assert float(calibration.p_values(torch.tensor(result.ood_scores["neglabel"]))) == expected["p_value"]


def test_every_score_offered_is_calibrated_on_the_embedded_images(engine):
    bank = engine.bank(engine.start)
    assert {"neglabel", "mcm", "max_logit", "energy", "gl_mcm", "delta_energy"} <= bank.scores.keys()
    assert bank.calibrations.keys() == bank.scores.keys()
    assert {calibration.num_images for calibration in bank.calibrations.values()} == {320}
    for asked in ("knn", "odin", "adaneg", "clipn"):
        assert asked not in bank.scores


def test_the_order_of_the_embedded_labels_does_not_matter_for_calibration(engine):
    turned = engine.bank(Setup(tuple(reversed(sample_labels())), engine.start.negatives))
    expected = engine.bank(engine.start).calibrations["mcm"].threshold
    assert turned.calibrations["mcm"].threshold == pytest.approx(expected, abs=1e-6)


def test_other_labels_have_banks_of_their_own_around_the_same_towers(engine, others, photos):
    before, _ = engine.analyse(engine.start, photos["id"][:4])
    mine, theirs = engine.bank(others).model, engine.bank(engine.start).model
    assert mine.clip is theirs.clip
    assert tuple(mine.labels) == OTHERS
    assert theirs.labels == sample_labels()
    assert mine.text_bank.label_embeds.shape[0] == 3
    assert engine.bank(others).calibrations == {}
    found, _ = engine.analyse(others, photos["id"][:4])
    assert {label for result in found for label, _ in result.labels} == set(OTHERS)
    same_scores(scores_of(engine.analyse(engine.start, photos["id"][:4])[0]), scores_of(before))


def test_without_negatives_their_scores_are_not_offered(engine):
    bank = engine.bank(Setup(engine.start.labels, "none"))
    assert "neglabel" not in bank.scores
    assert bank.default_score == "mcm"
    assert "max_logit" in engine.bank(Setup(("acorn",), "none")).scores
    assert "mcm" not in engine.bank(Setup(("acorn",), "none")).scores


def test_visitors_at_once_get_what_they_get_alone(engine, others, photos):
    setups = [engine.start, others, Setup(OTHERS, "none"), Setup(("acorn", "desk"), engine.start.negatives)]
    alone = [scores_of(engine.analyse(setup, photos["id"][:6])[0]) for setup in setups]
    together = [[] for _ in setups]

    def visit(number):
        for _ in range(3):
            together[number].append(scores_of(engine.analyse(setups[number], photos["id"][:6])[0]))
            engine.heat_map(setups[number], "max_logit", photos["id"][0])

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(len(setups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        assert len(found) == 3
        for each in found:
            same_scores(each, expected)


def test_a_busy_demo_says_so(engine, monkeypatch, photos):
    monkeypatch.setattr(engine, "limits", Limits(wait_seconds=0.05))
    release, taken = threading.Event(), threading.Event()

    def occupy():
        with engine._using_the_model():
            taken.set()
            release.wait()

    thread = threading.Thread(target=occupy)
    thread.start()
    taken.wait()
    with pytest.raises(AppError, match="busy"):
        engine.analyse(engine.start, photos["id"][:1])
    # Who only moves a threshold is not kept waiting.
    assert engine.bank(engine.start).calibrations
    release.set()
    thread.join()


def test_unreadable_images_are_left_out_and_named(engine, photos):
    results, left_out = engine.analyse(engine.start, [photos["broken"][0], photos["id"][0]])
    assert [result.path for result in results] == photos["id"][:1]
    assert len(left_out) == 1
    assert "broken.png" in left_out[0]


def test_limits_of_count_and_time(engine, monkeypatch, photos):
    monkeypatch.setattr(engine, "limits", Limits(files=39))
    with pytest.raises(AppError, match="40 images are more than the 39"):
        engine.analyse(engine.start, photos["id"])
    monkeypatch.setattr(engine, "limits", Limits(seconds=-1))
    results, left_out = engine.analyse(engine.start, photos["id"])
    assert len(results) == engine_module.BATCH_SIZE
    assert left_out == [f"{40 - engine_module.BATCH_SIZE} images were left out: the time for one analysis was up."]


def test_calibration_on_own_images(engine, photos):
    setup = Setup(tuple(sample_labels()[:19]), "none")
    found, left_out = engine.calibrate(setup, [*photos["broken"], *photos["id"]], 0.8)
    results, _ = engine.analyse(setup, photos["id"])
    assert "broken.png" in left_out[0]
    assert found.keys() == engine.bank(setup).scores.keys()
    expected = sorted(result.ood_scores["mcm"] for result in results)
    # Of 40 images the conformal rank at 80 % is ceil(41 * 0.8) = 33.
    assert found["mcm"].threshold == pytest.approx(expected[32], abs=1e-6)
    assert engine.bank(setup).calibrations == {}


def test_calibration_wants_enough_readable_images(engine, photos):
    with pytest.raises(CalibrationError, match="at least 20 images of your labels and was given 19"):
        engine.calibrate(engine.start, photos["id"][:19])
    with pytest.raises(CalibrationError, match=r"19 of 20 could be read.*broken\.png"):
        engine.calibrate(engine.start, [*photos["broken"], *photos["id"][:19]])


def test_old_banks_make_room(words, monkeypatch):
    monkeypatch.setattr(engine_module, "KEPT_BANKS", 2)
    engine = Engine(labels=OTHERS, negatives=words)
    setups = [Setup((f"label {number}", "acorn"), "none") for number in range(3)]
    banks = [engine.bank(setup) for setup in setups]
    assert engine.bank(setups[2]) is banks[2]
    assert engine.bank(setups[1]) is banks[1]
    assert engine.bank(setups[0]) is not banks[0]


def test_unknown_choices_are_refused(engine, words):
    with pytest.raises(UnknownNameError, match="kind of negatives 'nothing'"):
        engine.bank(Setup(OTHERS, "nothing"))
    with pytest.raises(UnknownNameError, match="adapter 'mine'"):
        engine.bank(Setup(OTHERS, "none", "mine"))
    with pytest.raises(UnknownNameError, match=r"score .* 'knn'"):
        Engine(labels=OTHERS, negatives=words, score="knn")


def test_a_score_can_be_chosen_for_the_start(words):
    started = Engine(labels=OTHERS, negatives=words, score="energy")
    assert started.bank(started.start).default_score == "energy"


@pytest.fixture(scope="module")
def adapters(make_model, tmp_path_factory, words):
    """Folders of two adapters with weights that do something: NFT of this package, and LoRA on the vision tower."""
    folder = tmp_path_factory.mktemp("adapters")
    configs = {"nft": NFTConfig(hidden_size=4), "lora": LoraConfig(target_modules=r"clip\.vision_model.*\.q_proj")}
    for name, config in configs.items():
        model = get_peft_model(make_model(labels=list(OTHERS), negatives=words), config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["nft", "lora"])
def test_an_adapter_acts_for_those_who_choose_it(adapters, name, engine, photos, words, others, pocket):
    adapted = Engine(pocket, [str(adapters / name)], labels=OTHERS, negatives=words)
    assert adapted.adapters == [NO_ADAPTER, name]
    assert adapted.start.adapter == name
    direct = OODCLIPForImageClassification.from_pretrained(pocket, labels=OTHERS, negatives=words)
    direct.load_adapter(str(adapters / name))
    results, _ = adapted.analyse(adapted.start, photos["id"][:4])
    expected = direct.ood_scores([str(path) for path in photos["id"][:4]], ["neglabel"])["neglabel"]
    assert [result.ood_scores["neglabel"] for result in results] == pytest.approx(expected.tolist(), abs=1e-5)
    plain, _ = adapted.analyse(Setup(adapted.start.labels, adapted.start.negatives), photos["id"][:4])
    same_scores(scores_of(plain), scores_of(engine.analyse(others, photos["id"][:4])[0]))
    # LoRA draws half of its weights itself; what is equal above is so to 1e-5.
    assert abs(plain[0].ood_scores["neglabel"] - results[0].ood_scores["neglabel"]) > 1e-4
    plain_model = adapted.bank(Setup(adapted.start.labels, adapted.start.negatives)).model
    shared = adapted.bank(adapted.start).model.clip is plain_model.clip
    assert shared == (name == "nft")


def test_an_adapter_brings_its_labels_negatives_and_base(adapters):
    found = Engine(adapters=[str(adapters / "nft"), str(adapters / "nft")])
    assert found.adapters == [NO_ADAPTER, "nft", "nft (2)"]
    assert found.start == Setup(OTHERS, "as loaded", "nft")
    assert len(found.bank(found.start).model.negatives) == 8


def test_a_full_checkpoint_keeps_its_labels_and_calibration(make_model, real_images, tmp_path):
    model = make_model(labels=list(OTHERS))
    model.calibrate(real_images["id"])
    model.save_pretrained(tmp_path / "full")
    found = Engine(str(tmp_path / "full"))
    assert found.start == Setup(OTHERS, "as loaded")
    calibrations = found.bank(found.start).calibrations
    assert list(calibrations) == ["neglabel"]
    assert calibrations["neglabel"].threshold == model.calibration.threshold
    assert found.bank(Setup(("cat", "dog"), "as loaded")).calibrations == {}


def test_an_adapter_of_other_labels_is_refused_with_reason(make_model, words, tmp_path):
    model = make_model(labels=list(OTHERS), negatives=words)
    get_peft_model(model, TaskResidualConfig(num_labels=3)).save_pretrained(tmp_path / "residual")
    found = Engine(adapters=[str(tmp_path / "residual")])
    assert found.start.labels == OTHERS
    with pytest.raises(AdapterError):
        found.bank(Setup(("cat", "dog"), found.start.negatives, "residual"))


def test_examples_are_real_images_of_both_kinds():
    found = {caption: image.size for image, caption in example_images()}
    assert len(found) == 8
    assert {"acorn", "koala", "digit 0"} <= found.keys()
    assert min(min(size) for size in found.values()) >= 32
