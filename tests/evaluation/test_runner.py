"""A benchmark is run as it says: figures follow from the samples, what cannot be used is reported."""

import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hf_oodclip.evaluation import runner
from hf_oodclip.evaluation.benchmark import Benchmark, Published, SetSpec, list_benchmarks, load_benchmark
from hf_oodclip.evaluation.report import write_report
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from hf_oodclip.evaluation.sample_table import read_run
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from test_benchmark_files import build

from hf_oodclip import OODCLIPForImageClassification, Score, get_score
from hf_oodclip.errors import RunError, UnknownNameError
from hf_oodclip.feature_store import FeatureStore

NAMES = ("acorn", "desk", "police van", "tabby cat")
WORDS = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")
SCORES = ("neglabel", "mcm")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def model(tiny_clip):
    return OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS).eval()


@pytest.fixture(scope="module")
def jpegs(id_dataset):
    return [each["bytes"] for each in id_dataset.cast_column("image", datasets.Image(decode=False))[:120]["image"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory, jpegs):
    """Four classes of 12, a shifted set of two of them, 24 images to calibrate on, three OOD sets."""
    root, content = tmp_path_factory.mktemp("data"), iter(jpegs)
    for folder, count in (("id", 12), ("few", 2), ("calibration", 6)):
        for name in NAMES:
            write_images(root / folder / name, [next(content) for _ in range(count)])
    for name in NAMES[:2]:
        write_images(root / "shifted" / name, [next(content) for _ in range(3)])
    write_images(root / "near", [next(content) for _ in range(7)])
    write_images(root / "far", [next(content) for _ in range(5)])
    rows = {"image": [{"bytes": next(content), "path": None} for _ in range(6)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "far.parquet")
    return root


def write_images(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number:02}.jpg").write_bytes(image)


ID, SHIFTED = SetSpec("own", "id", "id", count=48), SetSpec("drawn", "shifted", "shifted", classes=list(NAMES[:2]))
CALIBRATION = SetSpec("held", "calibration", "calibration")
NEAR, FAR, PARQUET = (
    SetSpec("near by", "near", "near"),
    SetSpec("away", "far", "far"),
    SetSpec("rows", "far", "far.parquet"),
)
ALL = (ID, SHIFTED, CALIBRATION, NEAR, FAR, PARQUET)


def benchmark_of(*sets, published=()):
    return Benchmark("small", "A small one", "", list(NAMES), None, sets, tuple(published))


def settings_of(*scores, **options):
    chosen = [get_score(score) if isinstance(score, str) else score for score in scores or SCORES]
    return Settings(tuple(chosen), **{"num_bootstrap": 0, **options})


def samples_of(samples, name):
    """The columns of one set as arrays."""
    rows = samples.filter(np.asarray(samples["set"].to_pylist()) == name)
    return {column: np.asarray(rows[column].to_pylist()) for column in rows.column_names}


def detection_of(results):
    return {(row["score"], row["set"]): row for row in results["detection"]}


def reports_of(results):
    return {report["name"]: report for report in results["sets"]}


@pytest.fixture(scope="module")
def ran(model, root, tmp_path_factory):
    """Results and samples of all sets, as a reader of the run folder finds them, and the image reader."""
    found = evaluate_benchmark(model, benchmark_of(*ALL), settings_of(num_bootstrap=60), root=root)
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, *found[:2])
    return *read_run(folder), found[2]


def first_rate(positive, negative):
    """The false positive rate where 95 % of the positives are first found."""
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    rates, hits, _ = roc_curve(truth, np.r_[positive, negative], drop_intermediate=False)
    return rates[np.argmax(hits >= 0.95)]


def recomputed(id_scores, ood_scores):
    truth, scores = np.r_[np.zeros(len(id_scores)), np.ones(len(ood_scores))], np.r_[id_scores, ood_scores]
    return {
        "auroc": roc_auc_score(truth, scores),
        "aupr_in": average_precision_score(1 - truth, -scores),
        "aupr_out": average_precision_score(truth, scores),
        "fpr95_id_pos": first_rate(-id_scores, -ood_scores),
        "fpr95_ood_pos": first_rate(ood_scores, id_scores),
    }


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


def test_too_few_images_to_calibrate_on_are_reported(model, root):
    lines = []
    few = SetSpec("held", "calibration", "few")
    found = evaluate_benchmark(model, benchmark_of(ID, few, FAR), settings_of(), root=root, say=lines.append)
    results, samples, _ = found
    assert results["calibration"] == [] and not any(name.startswith("p_value") for name in samples.column_names)
    held = reports_of(results)["held"]
    assert held["status"] == "ok" and held["count"] == 8 and "at least 20 ID images and was given 8" in held["reason"]
    assert any("not calibrated" in line for line in lines)
    assert len(results["detection"]) == 2


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


def test_nothing_classified_correctly_leaves_nothing_to_compare(model, root, tmp_path, jpegs):
    _, samples, _ = evaluate_benchmark(model, benchmark_of(ID, FAR), settings_of(), root=root)
    rows = samples.to_pylist()
    wrong = next(each for each in rows if each["set"] == "own" and each["label"] != each["prediction"])
    write_images(tmp_path / "id", [Path(wrong["file"]).read_bytes()])
    (tmp_path / "list.txt").write_text(f"00.jpg {wrong['label']}\n")
    one = SetSpec("own", "id", image_list="list.txt", image_root="id", classes=[NAMES[wrong["label"]]])
    write_images(tmp_path / "far", jpegs[:2])
    with pytest.raises(RunError, match=r"No ID image is classified correctly.*use 'all'"):
        evaluate_benchmark(model, benchmark_of(one, FAR), settings_of(id_filter="correct"), root=tmp_path)


def test_sets_that_cannot_be_used_are_reported_and_left_out(model, root, tmp_path):
    for folder in ("id", "far"):
        (tmp_path / folder).symlink_to(root / folder)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    write_images(tmp_path / "unreadable", [b"no image", b"nor this"])
    sets = (
        replace(ID, count=50),
        replace(FAR, count=5),
        SetSpec("gone", "far", "nowhere", where="Fetch it from example.org."),
        SetSpec("broken", "near", "broken.parquet"),
        SetSpec("unreadable", "far", "unreadable"),
        SetSpec("split", "far", "far", split="nope"),
        SetSpec("lost", "calibration", "lost"),
    )
    published = [Published("mcm", name, "auroc", 50.0, "MCM", "B", "S") for name in ("gone", "far", "all", "away")]
    lines = []
    results, samples, _ = evaluate_benchmark(
        model, benchmark_of(*sets, published=published), settings_of(), root=tmp_path, say=lines.append
    )
    reports = reports_of(results)
    assert {name: report["status"] for name, report in reports.items()} == {
        "own": "ok", "away": "ok", "gone": "missing", "broken": "failed", "unreadable": "failed", "split": "failed",
        "lost": "missing",
    }  # fmt: skip
    assert str(tmp_path / "nowhere") in reports["gone"]["reason"] and "example.org" in reports["gone"]["reason"]
    assert "broken.parquet" in reports["broken"]["reason"] and "'nope'" in reports["split"]["reason"]
    assert "None of its 2 images can be read" in reports["unreadable"]["reason"]
    assert reports["own"]["reason"] == "48 images where the benchmark defines 50" and reports["own"]["count"] == 48
    assert reports["away"]["reason"] == "" and reports["own"]["expected"] == 50
    assert len(lines) == len(sets) and set(samples["set"].to_pylist()) == {"own", "away"}
    assert {row["set"] for row in results["detection"]} == {"away"}
    # A mean over the sets that happen to be there is not what was printed.
    ours = {row["set"]: row["ours"] for row in results["published"]}
    assert (ours["gone"], ours["far"], ours["all"]) == (None, None, None) and ours["away"] is not None
    write_run(tmp_path / "run", results, samples)
    write_report(tmp_path / "run", results, samples)


def test_without_id_images_there_is_no_run(model, root):
    with pytest.raises(RunError, match=r"'small' cannot run without its ID images: .*nowhere does not exist"):
        evaluate_benchmark(model, benchmark_of(SetSpec("own", "id", "nowhere"), FAR), settings_of(), root=root)


def test_damaged_images_are_skipped_and_listed(model, root, tmp_path, jpegs):
    write_images(tmp_path / "far", [*jpegs[:3], b"", jpegs[3][:200], jpegs[4]])
    (tmp_path / "id").symlink_to(root / "id")
    whole = replace(FAR, count=6)
    results, samples, read = evaluate_benchmark(model, benchmark_of(ID, whole), settings_of(), root=tmp_path)
    report = reports_of(results)["away"]
    assert report["status"] == "ok" and report["count"] == 4 and set(report["skipped"]) == {"3", "4"}
    assert report["reason"] == "4 images where the benchmark defines 6"
    away = samples_of(samples, "away")
    assert away["row"].tolist() == [0, 1, 2, 5]
    assert [Path(path).name for path in away["file"]] == ["00.jpg", "01.jpg", "02.jpg", "05.jpg"]
    expected = Image.open(io.BytesIO(jpegs[4])).convert("RGB")
    assert np.array_equal(read("away", 5), expected)
    assert away["score:mcm"][3] == pytest.approx(float(model.ood_scores([expected], ["mcm"])["mcm"]), abs=1e-6)


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


class Unfinished(Score):
    """NaN for some images."""

    name = "unfinished"

    def compute(self, inputs):
        return torch.where(inputs.similarity[:, 0] > inputs.similarity[:, 0].median(), torch.nan, 0.0)


def test_scores_that_cannot_be_had_are_reported(root, tiny_clip, tmp_path):
    bare = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES).eval()
    asked = ("mcm", "neglabel", "knn", "odin", "gl_mcm", "clipn", "ash", Unfinished())
    results, samples, read = evaluate_benchmark(bare, benchmark_of(ID, FAR), settings_of(*asked), root=root)
    reasons = results["skipped_scores"]
    assert set(reasons) == {"neglabel", "knn", "odin", "gl_mcm", "clipn", "unfinished"}
    for name, part in {
        "neglabel": "negatives=", "knn": "not fitted", "odin": "pixels", "gl_mcm": "pixels", "clipn": "no_similarity",
        "unfinished": "NaN",
    }.items():  # fmt: skip
        assert part in reasons[name], name
    # ASH looks at the labels' embeddings, which the model can give.
    assert [row["score"] for row in results["detection"]] == ["mcm", "ash"]
    assert [name for name in samples.column_names if name.startswith("score:")] == ["score:mcm", "score:ash"]
    assert results["num_negatives"] == 0 and set(samples["nearest_negative"].to_pylist()) == {None}
    results, samples, read = evaluate_benchmark(bare, benchmark_of(ID, FAR), settings_of("knn"), root=root)
    assert results["detection"] == [] and results["accuracy"][0]["count"] == 48
    write_run(tmp_path, results, samples)
    write_report(tmp_path, results, samples, read)


def test_the_scores_chosen_are_those_the_model_has(model, tiny_clip, real_images):
    every = {score.key for score in chosen_scores("all", model)}
    assert {"neglabel", "mcm", "energy", "eoe", "ash"} <= every
    assert not every & {"knn", "mahalanobis", "odin", "gl_mcm", "clipn", "zoc", "adaneg"}
    assert [score.key for score in chosen_scores(" mcm, adaneg,mcm ", model)] == ["mcm", "adaneg"]
    with pytest.raises(UnknownNameError, match="'mcm'"):
        chosen_scores("mcn", model)
    fitted = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES)
    fitted.fit_score(real_images["id"][:12], score=get_score("knn", k=3))
    for names in ("knn", "all"):
        chosen = {score.key: score for score in chosen_scores(names, fitted)}
        assert chosen["knn(k=3)"].state_dict() and "knn" not in chosen and "neglabel" not in chosen


def test_a_fitted_score_is_run(tiny_clip, root, real_images):
    fitted = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES).eval()
    fitted.fit_score(real_images["id"][:12], score=get_score("knn", k=3))
    settings = Settings(chosen_scores("knn", fitted), num_bootstrap=0)
    results, samples, read = evaluate_benchmark(fitted, benchmark_of(ID, FAR), settings, root=root)
    assert results["skipped_scores"] == {}
    expected = fitted.ood_scores([read("away", row) for row in range(5)])["knn(k=3)"]
    assert samples_of(samples, "away")["score:knn(k=3)"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_scoring_in_parts_changes_nothing(model, root, ran, monkeypatch):
    monkeypatch.setattr(runner, "CHUNK_ELEMENTS", 7 * (len(NAMES) + len(WORDS)))
    _, samples, _ = evaluate_benchmark(model, benchmark_of(*ALL), settings_of(), root=root)
    for column in samples.column_names:
        found, expected = samples[column].to_pylist(), ran[1][column].to_pylist()
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(found[0], float) else expected)


def test_only_shifted_sets_give_accuracy_alone(model, root):
    results, _, _ = evaluate_benchmark(model, benchmark_of(ID, SHIFTED), settings_of(), root=root)
    assert results["detection"] == [] and [row["set"] for row in results["accuracy"]] == ["own", "drawn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_filter": "corect"}, "'correct'"),
        ({"target_tpr": 95.0}, "between 0 and 1, got 95"),
        ({"num_bootstrap": -1}, "num_bootstrap must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"scores": ()}, "at least one score"),
        ({"scores": (get_score("mcm"), get_score("mcm"))}, "got mcm, mcm"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises((RunError, UnknownNameError), match=message):
        Settings(**{"scores": (get_score("mcm"),), **options})


def run_miniature(name, tiny_clip, root, jpegs):
    benchmark = load_benchmark(name, root)
    for spec in benchmark.sets:
        build(root, spec, jpegs[:7], 6 if name.startswith("setup1") else 1 if len(benchmark.labels) > 10 else 2)
    model = OODCLIPForImageClassification.from_pretrained(
        tiny_clip, labels=benchmark.labels, templates=benchmark.templates, negatives=WORDS
    ).eval()
    results, _, _ = evaluate_benchmark(model, benchmark, settings_of(), root=root, store=FeatureStore(root / "store"))
    assert {report["status"] for report in results["sets"]} == {"ok"} and results["skipped_scores"] == {}
    for report in results["sets"]:
        assert report["expected"] is None or report["reason"].startswith(f"{report['count']} images where the")
    scored = {row["set"] for row in results["detection"]}
    assert scored >= {spec.name for spec in benchmark.ood_sets}
    assert {row["set"] for row in results["accuracy"]} == {
        spec.name for spec in (benchmark.id_set, *benchmark.shifted_sets)
    }
    held = [report["count"] for report in results["sets"] if report["role"] == "calibration"]
    assert len(results["calibration"]) == (2 if held and held[0] >= 20 else 0)
    ours = [row["ours"] for row, each in zip(results["published"], benchmark.published, strict=True)
            if not each.adapter and (each.metric == "id_accuracy" or each.score in SCORES)]  # fmt: skip
    assert None not in ours


HEAVY = [name for name in list_benchmarks() if name.startswith(("hard-pairs", "setup1", "imagenet"))]


@pytest.mark.parametrize("name", sorted({*list_benchmarks()} - {*HEAVY, "pocket"}))
def test_miniature_runs(name, tiny_clip, tmp_path, jpegs):
    run_miniature(name, tiny_clip, tmp_path, jpegs)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_miniature_of_many_files_runs(name, tiny_clip, tmp_path, jpegs):
    run_miniature(name, tiny_clip, tmp_path, jpegs)
