"""The figures of an evaluation as a card shows them: tables, pictures, failures, mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .escaping import percent, table, text, without_paths
from .evidence import ModelEvidence
from .measured import Measured

__all__ = ["evaluation_section", "missing_sets"]

_CONVENTIONS = (
    "AUROC: chance that an OOD image scores above an ID image. FPR95, ID positive: OOD images accepted where 95 % of "
    "ID images are accepted. FPR95, OOD positive: ID images rejected where 95 % of OOD images are caught."
)


def evaluation_section(model: ModelEvidence, measured: Measured, pictures: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template needs for one evaluation."""
    results = measured.results
    remarks = "; in brackets 95 % intervals" if any("auroc_low" in row for row in measured.detection) else ""
    remarks += f". {_CONVENTIONS}"
    if measured.accepted:
        remarks += " Accepted as ID: share below the threshold of this model."
    if results.get("id_filter", "all") == "correct":
        remarks += " ID images with a wrong first label are left out."
    if results.get("full_spectrum"):
        remarks += " Covariate-shifted images count as ID (full spectrum)."
    rule = "At this model's threshold; images that look most like what they are not come first."
    if model.calibration is None:
        rule = "This model is not calibrated: judged at a threshold that accepts 95 % of these ID images."
    return {
        "title": text(results["title"]),
        "score": "" if model.score is None else text(model.score.key),
        "accuracy": accuracy_text(measured),
        "detection": detection_table(measured) if measured.detection else "",
        "remarks": remarks,
        "failures": failures(measured),
        "mistakes": mistakes_table(measured),
        "mistake_rule": rule,
        **pictures,
    }


def detection_table(measured: Measured) -> str:
    """Return one row an OOD set: detection figures, and what the threshold accepts."""
    headings = ["OOD set", "kind", "images", "AUROC", "FPR95, ID positive", "FPR95, OOD positive"]
    headings += ["accepted as ID"] if measured.accepted else []
    rows = []
    for row in measured.results["detection"]:
        figures = [
            percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
            for name in ("auroc", "fpr95_id_pos", "fpr95_ood_pos")
        ]
        last = [percent(measured.accepted.get(row["set"]))] if measured.accepted else []
        count = f"{row['num_ood']:,}" if "num_ood" in row else ""
        rows.append([text(row["set"]), text(row["role"]), count, *figures, *last])
    return table(headings, rows, 2)


def accuracy_text(measured: Measured) -> str:
    """Return accuracy and realised acceptance of the sets with labels, a line each."""
    lines = []
    for row in measured.results["accuracy"]:
        figure = percent(row["value"], row.get("low"), row.get("high"))
        taken = measured.accepted.get(row["set"])
        told = "" if taken is None else f"; the threshold accepts {percent(taken)} %"
        lines.append(f"- Set {text(row['set'])} ({row['role']}, {row['count']:,} images): accuracy {figure} %{told}.")
    return "\n".join(lines)


def failures(measured: Measured) -> str:
    """Return the OOD sets the model is worst at."""
    lines = []
    for row in measured.worst[:2]:
        figure = percent(row["auroc"], row.get("auroc_low"), row.get("auroc_high"))
        taken = measured.accepted.get(row["set"])
        told = "" if taken is None else f"; {percent(taken)} % of its images are accepted as ID"
        lines.append(f"- Set {text(row['set'])} ({text(row['role'])}): AUROC {figure} %{told}.")
    return "\n".join(lines)


def mistakes_table(measured: Measured, limit: int = 3) -> str:
    """Return the most confident mistakes of each kind."""
    if measured.samples is None:
        return ""
    # Needs matplotlib, which a card without evaluation does not.
    from hf_oodclip.evaluation.gallery import find_mistakes

    rows = []
    for kind in find_mistakes(measured.results, measured.samples, limit):
        for each in kind.mistakes:
            name = f"row {each.row}" if each.file is None else re.split(r"[/\\]", each.file)[-1]
            seen = f"{text(each.prediction)} ({each.confidence:.0%})"
            negative = "" if each.nearest_negative is None else text(each.nearest_negative)
            where = f"{text(each.set)}: {text(name, 60)}"
            truth = "" if each.truth is None else text(each.truth)
            rows.append([f"{kind.title} ({kind.total:,})", where, truth, seen, f"{each.ood_score:.6g}", negative])
    headings = ["mistake (how many in all)", "image", "its label", "taken for", "ood_score", "nearest negative"]
    return table(headings, rows, 4) if rows else ""


def missing_sets(measured: Measured) -> list[str]:
    """Return the sets of a benchmark that could not be measured."""
    found = []
    for each in measured.results["sets"]:
        if each["status"] != "ok":
            reason = f" ({text(without_paths(each['reason']), 160)})" if each["status"] == "failed" else ""
            found.append(f"set {text(each['name'])} of {text(measured.results['title'])}: {each['status']}{reason}")
    return found
