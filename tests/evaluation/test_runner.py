"""A benchmark is run as it says, and its figures follow from the samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hf_oodclip.evaluation import runner
from hf_oodclip.evaluation.benchmark import Published
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from hf_oodclip.evaluation.sample_table import read_run
from PIL import Image
from small_benchmarks import (
    ALL,
    CALIBRATION,
    FAR,
    ID,
    NAMES,
    NEAR,
    PARQUET,
    SCORES,
    SHIFTED,
    WORDS,
    benchmark_of,
    detection_of,
    recomputed,
    samples_of,
    settings_of,
)

from hf_oodclip import OODCLIPForImageClassification, get_score
from hf_oodclip.feature_store import FeatureStore


@pytest.fixture(scope="module")
def ran(model, root, tmp_path_factory):
    """Results and samples of all sets, as a reader of the run folder finds them, and the image reader."""
    found = evaluate_benchmark(model, benchmark_of(*ALL), settings_of(num_bootstrap=60), root=root)
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, *found[:2])
    return *read_run(folder), found[2]


def test_metrics_follow_from_the_samples(ran):
    results, samples, _ = ran
    found = detection_of(results)
    own = samples_of(samples, "own")
    for score in SCORES:
        each = {}
        for name in ("near by", "away", "rows"):
            ood = samples_of(samples, name)[f"score:{score}"]
            row = found[score, name]
            each[name] = recomputed(own[f"score:{score}"], ood)
            assert {metric: row[metric] for metric in each[name]} == pytest.approx(each[name], abs=1e-12)
            assert (row["num_id"], row["num_ood"]) == (48, len(ood))
            assert all(0 <= row[f"{metric}_low"] <= row[f"{metric}_high"] <= 1 for metric in each[name])
        # Every set counts alike, however many images it has.
        for name, members in (("far", ("away", "rows")), ("all", ("near by", "away", "rows"))):
            means = {metric: np.mean([each[member][metric] for member in members]) for metric in each["away"]}
            row = found[score, f"mean of {name}"]
            assert {metric: row[metric] for metric in means} == pytest.approx(means, abs=1e-12)
    assert ("mcm", "mean of near") not in found and len(found) == 2 * 5
    accuracies = {row["set"]: row for row in results["accuracy"]}
    assert set(accuracies) == {"own", "drawn"}
    for name, row in accuracies.items():
        each = samples_of(samples, name)
        assert row["value"] == np.mean(each["label"] == each["prediction"]) and row["count"] == len(each["label"])
        assert row["low"] <= row["value"] <= row["high"]


def test_samples_are_what_the_model_says_of_each_image(ran, model, root):
    results, samples, read = ran
    assert samples.num_rows == sum(report["count"] for report in results["sets"])
    assert list(dict.fromkeys(samples["set"].to_pylist())) == [each.name for each in ALL]
    for name, row in (("own", 30), ("drawn", 4), ("away", 2), ("rows", 5)):
        each = {column: values[row] for column, values in samples_of(samples, name).items()}
        pixels = model.image_processor(images=[read(name, row)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model(pixel_values=pixels)
            embeds = torch.nn.functional.normalize(model.clip.get_image_features(pixels).pooler_output, dim=-1)
            cosines = [
                embeds
                @ torch.nn.functional.normalize(
                    model.clip.get_text_features(
                        **model.tokenizer([f"a photo of a {word}."], return_tensors="pt")
                    ).pooler_output,
                    dim=-1,
                ).T
                for word in WORDS
            ]
        probabilities = output.logits[0].softmax(-1)
        assert each["row"] == row and each["prediction"] == int(probabilities.argmax())
        assert each["confidence"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert each["nearest_negative"] == WORDS[int(torch.tensor(cosines).argmax())]
        assert each["score:mcm"] == pytest.approx(float(model.ood_scores([read(name, row)], ["mcm"])["mcm"]), abs=1e-6)
    own, drawn = samples_of(samples, "own"), samples_of(samples, "drawn")
    for each, folder, count in ((own, "id", 12), (drawn, "shifted", 3)):
        assert each["label"].tolist() == [place // count for place in range(len(each["label"]))]
        for path, label in zip(each["file"], each["label"], strict=True):
            assert Path(path).parent == root / folder / NAMES[label]
    for name in ("near by", "away", "rows"):
        assert set(samples_of(samples, name)["label"]) == {-1}
    # Scored once again from the samples' own rows, images are the same.
    assert np.array_equal(read("own", 13), Image.open(own["file"][13]).convert("RGB"))
    assert set(samples_of(samples, "rows")["file"]) == {None}


def test_few_calibration_images_are_told_once_not_for_every_score(model, root, warned):
    evaluate_benchmark(model, benchmark_of(ID, CALIBRATION, FAR), settings_of("mcm", "msp", "energy"), root=root)
    assert [text[:18] for text in warned if "for calibration" in text] == ["Only 24 ID images "]


def test_calibration_accepts_by_its_threshold(ran):
    results, samples, _ = ran
    held = samples_of(samples, "held")
    assert len(results["calibration"]) == 2
    for row in results["calibration"]:
        reference = held[f"score:{row['score']}"]
        # 25 places for 24 images: 95 % are the 24th.
        assert row["threshold"] == sorted(reference)[23] and row["num_images"] == 24
        assert set(row["accepted"]) == {"own", "drawn", "near by", "away", "rows"}
        for name, accepted in row["accepted"].items():
            each = samples_of(samples, name)
            values = each[f"score:{row['score']}"]
            assert accepted == pytest.approx(np.mean(values <= row["threshold"]))
            expected = [(1 + np.sum(reference >= value)) / 25 for value in values]
            assert each[f"p_value:{row['score']}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("id_filter", ["all", "correct"])
def test_which_images_count_as_in_distribution(model, root, ran, id_filter, is_full):
    settings = settings_of(id_filter=id_filter, full_spectrum=is_full)
    results, _, _ = evaluate_benchmark(model, benchmark_of(*ALL), settings, root=root)
    assert (results["id_filter"], results["full_spectrum"]) == (id_filter, is_full)
    columns = [samples_of(ran[1], name) for name in (("own", "drawn") if is_full else ("own",))]
    label, prediction, score = (
        np.concatenate([each[name] for each in columns]) for name in ("label", "prediction", "score:mcm")
    )
    kept = label == prediction if id_filter == "correct" else np.full(len(label), True)
    assert kept.sum() < len(label) if id_filter == "correct" else len(label) == (54 if is_full else 48)
    for name in ("near by", "away"):
        row = detection_of(results)["mcm", name]
        expected = recomputed(score[kept], samples_of(ran[1], name)["score:mcm"])
        assert row["num_id"] == kept.sum()
        assert {metric: row[metric] for metric in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("adapter", [None, "some/adapter"])
def test_published_figures_stand_beside_runs_of_their_kind(model, root, adapter):
    zero_shot = [
        ("mcm", "away", "fpr95_id_pos"), ("mcm", "near", "auroc"), ("mcm", "far", "auroc"), ("mcm", "all", "auroc"),
        ("own", "own", "id_accuracy"), ("energy", "away", "auroc"),
    ]  # fmt: skip
    published = [Published(*place, 40.0, "MCM", "B", "S") for place in zero_shot]
    published += [Published(*place, 40.0, "MCM", "B", "S", adapter="nft") for place in zero_shot]
    found = evaluate_benchmark(
        model, benchmark_of(ID, NEAR, FAR, PARQUET, published=published), settings_of(), root=root, adapter=adapter
    )[0]
    detection = detection_of(found)
    expected = [
        detection["mcm", "away"]["fpr95_id_pos"],
        # One set is its own mean.
        detection["mcm", "near by"]["auroc"],
        np.mean([detection["mcm", name]["auroc"] for name in ("away", "rows")]),
        np.mean([detection["mcm", name]["auroc"] for name in ("near by", "away", "rows")]),
        found["accuracy"][0]["value"],
        None,
    ]
    halves = found["published"][:6], found["published"][6:]
    comparable, other = halves if adapter is None else halves[::-1]
    assert [row["ours"] for row in other] == [row["difference"] for row in other] == [None] * 6
    for row, value in zip(comparable, expected, strict=True):
        assert row["published"] == 40.0
        assert row["ours"] == (None if value is None else pytest.approx(100 * value))
        assert row["difference"] == (None if value is None else pytest.approx(100 * value - 40))


def test_a_fitted_score_is_run(tiny_clip, root, real_images):
    fitted = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES).eval()
    fitted.fit_score(real_images["id"][:12], score=get_score("knn", k=3))
    settings = Settings(chosen_scores("knn", fitted), num_bootstrap=0)
    results, samples, read = evaluate_benchmark(fitted, benchmark_of(ID, FAR), settings, root=root)
    assert results["skipped_scores"] == {}
    expected = fitted.ood_scores([read("away", row) for row in range(5)])["knn(k=3)"]
    assert samples_of(samples, "away")["score:knn(k=3)"] == pytest.approx(expected.numpy(), abs=1e-5)


# Parts smaller than a shard, that do not divide it, and larger.
@pytest.mark.parametrize(("rows", "shard_rows"), [(7, 256), (7, 5), (20, 6)])
def test_scoring_in_parts_changes_nothing(model, root, ran, tmp_path, monkeypatch, rows, shard_rows):
    monkeypatch.setattr(runner, "CHUNK_ELEMENTS", rows * model.config.clip_config.projection_dim)
    sizes, score_inputs = [], model.score_inputs
    monkeypatch.setattr(
        model, "score_inputs", lambda image_embeds, **options: sizes.append(len(image_embeds))
        or score_inputs(image_embeds=image_embeds, **options)
    )  # fmt: skip
    store = FeatureStore(tmp_path, shard_rows)
    _, samples, _ = evaluate_benchmark(model, benchmark_of(*ALL), settings_of(), root=root, store=store)
    # 48 images of the first set, rows at a time.
    assert sizes[: 48 // rows + 1] == [rows] * (48 // rows) + [48 % rows] and max(sizes) == rows
    for column in samples.column_names:
        found, expected = samples[column].to_pylist(), ran[1][column].to_pylist()
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(found[0], float) else expected)


def test_only_shifted_sets_give_accuracy_alone(model, root):
    results, _, _ = evaluate_benchmark(model, benchmark_of(ID, SHIFTED), settings_of(), root=root)
    assert results["detection"] == [] and [row["set"] for row in results["accuracy"]] == ["own", "drawn"]
