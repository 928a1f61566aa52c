"""What the proof of the adapters writes down: means over seeds, its table, and the one that README shows."""

import json
from pathlib import Path

import pytest
from hf_oodclip.evaluation.prove_adapters import METHODS, OWN_SCORES, _without_records, markdown, summarise

ROOT = Path(__file__).parents[2]


def records():
    figures = {("near", 0): 0.5, ("far", 0): 0.3, ("near", 1): 0.7, ("far", 1): 0.1}
    return [
        {
            "method": "zero-shot", "score": "neglabel", "group": group, "seed": seed,
            "ood": "held-out classes" if which == "near" else "digits",
            "id_accuracy": 0.6 if group == "base" else 0.4, "auroc": 1 - fpr95 / 2, "fpr95": fpr95,
        }
        for group in ("base", "new")
        for (which, seed), fpr95 in figures.items()
    ]  # fmt: skip


def test_means_by_hand():
    summary = summarise(records())
    found = {(row["group"], row["ood"]): row for row in summary}
    assert found["base", "all"]["fpr95"] == pytest.approx(40.0)
    assert found["base", "all"]["fpr95_std"] == pytest.approx(0.0)
    assert found["base", "near"]["fpr95"] == pytest.approx(60.0)
    assert found["base", "far"]["fpr95_std"] == pytest.approx(14.1421356)
    assert json.loads(_without_records(summary, {"seed": 2}))["environment"] == {"seed": 2}
    kept = json.loads(_without_records(summary, {}))["summary"]
    assert [list(row) for row in kept] == [list(row) for row in summary]
    assert kept[2]["fpr95_std"] == 14.1421
    cells = markdown(summary).splitlines()[2].split(" | ")
    assert cells[1:6] == ["60.0 ± 0.0", "80.0 ± 0.0", "40.0 ± 0.0", "60.0 ± 14.1", "20.0 ± 14.1"]
    assert cells[9] == "48.0"


def test_the_table_of_readme_is_the_recorded_one():
    record = json.loads((ROOT / "evaluation/results/adapter_proof.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in record["summary"]} == set(METHODS)
    own = [row for row in record["summary"] if row["score"] in OWN_SCORES.get(row["method"], ("neglabel",))]
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    part = shown.partition("<!-- adapter proof -->")[2].partition("<!-- end of adapter proof -->")[0]
    assert [line for line in part.splitlines() if line.startswith("|")] == markdown(own).splitlines()
