"""A benchmark of a few images a set, and what its results and samples hold."""

import numpy as np
from hf_oodclip.evaluation.benchmark import Benchmark, SetSpec
from hf_oodclip.evaluation.runner import Settings
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hf_oodclip import get_score

NAMES = ("acorn", "desk", "police van", "tabby cat")
WORDS = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")
SCORES = ("neglabel", "mcm")


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
