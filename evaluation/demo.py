"""The whole story on the embedded images: classify, detect, calibrate, decide, draw.

Run by `make demo` or `oodclip demo`. Needs the extra `eval` (matplotlib) and no network.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hf_oodclip import Calibration, OODCLIPForImageClassification, Score, get_score, pocket_path
from hf_oodclip.assets import images_path
from hf_oodclip.image_features import iterate_image_embeds
from hf_oodclip.metrics import accuracy, detection_metrics
from hf_oodclip.scores import SCORES

from .environment import describe_environment
from .plots import contact_sheet, roc_curves, score_histograms

__all__ = ["run_demo"]

OOD_SETS = {
    "near: held-out classes": "near_heldout",
    "far: textures": "far_textures",
    "far: clothing": "far_clothing",
    "far: digits": "far_digits",
}
METRICS = {"auroc": "AUROC", "fpr95_id_pos": "FPR95, ID positive", "fpr95_ood_pos": "FPR95, OOD positive"}
SEED = 0


@dataclass
class _Scored:
    """One image set after its single image pass."""

    images: Dataset
    predictions: torch.Tensor
    scores: dict[str, torch.Tensor]

    def select(self, keep: np.ndarray) -> _Scored:
        rows = torch.from_numpy(np.flatnonzero(keep))
        scores = {key: values[rows] for key, values in self.scores.items()}
        return _Scored(self.images.select(rows.tolist()), self.predictions[rows], scores)


def run_demo(output: str | Path, num_bootstrap: int = 1000) -> dict[str, Any]:
    """Write table, pictures, results and a calibrated model into a folder, and print what they say.

    Args:
        output: Folder to write to.
        num_bootstrap: Resamples for the 95 % intervals; 0 leaves them out.

    Returns:
        What `results.json` holds.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    console, start = Console(), time.monotonic()
    if console.width < 96:
        console = Console(width=96)

    id_images = _load("id")
    labels = id_images.features["label"].names
    console.print(f"Pocket CLIP, {len(labels)} labels: {', '.join(labels)}.")
    console.print("Mining negatives from WordNet (some 30 s the first time, then cached) ...")
    model = OODCLIPForImageClassification.from_pretrained(pocket_path(), labels=labels, negatives="neglabel")
    assert model.negatives is not None
    console.print(f"{len(model.negatives):,} negatives, such as {', '.join(model.negatives.texts[:6])}.")

    scores = [*(get_score(name) for name in SCORES), get_score("delta_energy", temperature=1.0)]
    scored = {name: _score(model, _load(file), scores) for name, file in OOD_SETS.items()}
    all_id = _score(model, id_images, scores)
    held_out = np.asarray(id_images["split"]) == "test"
    calibration_set, test_set = all_id.select(~held_out), all_id.select(held_out)
    id_accuracy = accuracy(test_set.predictions, np.asarray(test_set.images["label"]))

    rows = _measure(scores, test_set, scored, num_bootstrap)
    _print_table(console, rows, id_accuracy, len(test_set.images))
    calibration = Calibration.fit(calibration_set.scores[model.score.key], model.score.key)
    model.set_calibration(calibration)
    decisions = _decide(calibration, test_set, scored)
    _print_decisions(console, calibration, decisions)

    _draw(folder, model, calibration, scores, test_set, scored)
    model.save_pretrained(folder / "model")
    results = {
        "id_accuracy": id_accuracy,
        "num_id": len(test_set.images),
        "num_negatives": len(model.negatives),
        "detection": rows,
        "calibration": {**calibration.to_dict(), **decisions},
        "num_bootstrap": num_bootstrap,
        "seconds": round(time.monotonic() - start, 1),
        "environment": describe_environment(SEED, model.image_processor),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(_markdown(rows), encoding="utf-8")
    console.print(
        f"\nWrote results.json, table.md, histograms.png, roc.png, contact_sheet.png and model/ to {folder} "
        f"in {results['seconds']} s.\nThe same on your own images:\n"
    )
    lines = (
        "import hf_oodclip, transformers",
        f'classifier = transformers.pipeline("ood-image-classification", model="{folder / "model"}")',
        'print(classifier(["your-photo.jpg"]))  # other labels: pipeline(..., labels=["cat", "dog"])',
    )
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return results


def _load(name: str) -> Dataset:
    # In memory: the demo must not need a cache folder it can write.
    return Dataset(pq.read_table(images_path(name)))


def _score(model: Any, images: Dataset, scores: list[Score]) -> _Scored:
    embeds = torch.cat(list(iterate_image_embeds(model, images["image"], batch_size=64)))
    inputs = model.score_inputs(image_embeds=embeds)
    return _Scored(images, inputs.similarity.argmax(1), {score.key: score(inputs) for score in scores})


def _measure(
    scores: list[Score], id_set: _Scored, ood_sets: dict[str, _Scored], num_bootstrap: int
) -> list[dict[str, Any]]:
    return [
        {
            "ood_set": name,
            "score": score.key,
            **detection_metrics(
                id_set.scores[score.key], ood_set.scores[score.key], num_bootstrap=num_bootstrap, seed=SEED
            ),
        }
        for name, ood_set in ood_sets.items()
        for score in scores
    ]


def _decide(calibration: Calibration, id_set: _Scored, ood_sets: dict[str, _Scored]) -> dict[str, Any]:
    def flagged(scored: _Scored) -> float:
        return float(calibration.is_ood(scored.scores[calibration.score]).double().mean())

    return {
        "realised_tpr": 1 - flagged(id_set),
        "ood_caught": {name: flagged(ood_set) for name, ood_set in ood_sets.items()},
    }


def _cell(row: dict[str, Any], metric: str) -> str:
    interval = row.get(f"{metric}_interval")
    span = "" if interval is None else f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"
    return f"{100 * row[metric]:.1f}{span}"


def _print_table(console: Console, rows: list[dict[str, Any]], id_accuracy: float, num_id: int) -> None:
    title = f"ID accuracy {100 * id_accuracy:.1f} % on {num_id} images; all figures in %, with 95 % intervals"
    table = Table(title=title, box=SIMPLE, padding=(0, 1))
    table.add_column("score", no_wrap=True)
    for heading in METRICS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name in OOD_SETS:
        table.add_row(f"[bold]{name}[/bold]")
        for row in rows:
            if row["ood_set"] == name:
                table.add_row(f"  {row['score']}", *(_cell(row, metric) for metric in METRICS))
        table.add_section()
    console.print(table)


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [f"| OOD set | score | {' | '.join(METRICS.values())} |", f"|---|---|{'---:|' * len(METRICS)}"]
    lines += [
        f"| {row['ood_set']} | `{row['score']}` | {' | '.join(_cell(row, metric) for metric in METRICS)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _print_decisions(console: Console, calibration: Calibration, decisions: dict[str, Any]) -> None:
    low, high = calibration.tpr_interval
    console.print(
        f"\nCalibrated {calibration.score} on {calibration.num_images} other ID images: OOD above "
        f"{calibration.threshold:.4f}.\nOf the test ID images {decisions['realised_tpr']:.1%} are accepted "
        f"(target {calibration.target_tpr:.0%}, interval {low:.1%} to {high:.1%})."
    )
    for name, share in decisions["ood_caught"].items():
        console.print(f"  caught of {name}: {share:.1%}")


def _draw(
    folder: Path,
    model: Any,
    calibration: Calibration,
    scores: list[Score],
    id_set: _Scored,
    ood_sets: dict[str, _Scored],
) -> None:
    key = calibration.score
    score_histograms(
        folder / "histograms.png",
        id_set.scores[key].numpy(),
        {name: ood_set.scores[key].numpy() for name, ood_set in ood_sets.items()},
        calibration.threshold,
        f"{key}: calibrated on {calibration.num_images} ID images to accept {calibration.target_tpr:.0%}",
    )
    roc_curves(
        folder / "roc.png",
        {score.key: id_set.scores[score.key].numpy() for score in scores},
        {
            name: {score.key: ood_set.scores[score.key].numpy() for score in scores}
            for name, ood_set in ood_sets.items()
        },
    )
    generator = np.random.default_rng(SEED)
    photos = _pick(model, calibration, id_set, True, 12, generator)
    for ood_set in ood_sets.values():
        photos += _pick(model, calibration, ood_set, False, 3, generator)
    contact_sheet(
        folder / "contact_sheet.png",
        photos,
        "Above each photo: what it is. Below: the verdict. Blue frame: accepted as ID; red frame: called OOD.\n"
        "Drawn at random, not chosen.",
    )


def _pick(
    model: Any, calibration: Calibration, scored: _Scored, is_id: bool, count: int, generator: np.random.Generator
) -> list[dict[str, Any]]:
    values = scored.scores[calibration.score]
    p_values, is_ood = calibration.p_values(values), calibration.is_ood(values)
    names = scored.images.features["label"].names
    return [
        {
            "image": scored.images[row]["image"],
            "truth": names[scored.images[row]["label"]],
            "is_id": is_id,
            "label": model.labels[int(scored.predictions[row])],
            "p_value": float(p_values[row]),
            "is_ood": bool(is_ood[row]),
        }
        for row in generator.choice(len(values), count, replace=False).tolist()
    ]
