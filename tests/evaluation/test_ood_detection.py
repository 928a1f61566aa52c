"""The folder that `evaluate.load` takes gives the figures of the package, offline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import hf_oodclip
from hf_oodclip.metrics import detection_metrics

FOLDER = Path(hf_oodclip.__file__).parents[1] / "evaluation" / "metrics" / "ood_detection"
SETUP = f"import json, evaluate; metric = evaluate.load({str(FOLDER)!r});"


@pytest.fixture
def run(run_python, monkeypatch, tmp_path):
    """Runs code in which `metric` is loaded; caches go to a temporary folder, which evaluate reads at import."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return lambda code: run_python(f"{SETUP} {code}")


def test_figures_are_those_of_the_package(run, tmp_path):
    generator = np.random.default_rng(0)
    # Quarters: the same in single precision, through which the second half of the scores goes.
    known, unknown = (np.round(4 * generator.normal(mean, 1, count)) / 4 for mean, count in ((0, 60), (1, 40)))
    order = generator.permutation(100)
    scores = np.concatenate([known, unknown])[order].tolist()
    is_ood = (np.arange(100) >= 60).astype(int)[order].tolist()
    (tmp_path / "data.json").write_text(json.dumps([scores, is_ood]))
    printed = run(
        f"import numpy, torch; scores, is_ood = json.load(open({str(tmp_path / 'data.json')!r}));"
        "print(json.dumps(metric.compute(predictions=scores, references=is_ood)));"
        "metric.add_batch(predictions=numpy.array(scores[:50]), references=numpy.array(is_ood[:50]));"
        "metric.add_batch(predictions=torch.tensor(scores[50:]), references=torch.tensor(is_ood[50:]));"
        "print(json.dumps(metric.compute(convention='openood', num_bootstrap=30, seed=2)))"
    )
    plain, full = map(json.loads, printed.splitlines()[-2:])
    assert plain == detection_metrics(known, unknown)
    # Resamples depend on the order in which the images come.
    ordered = [np.array([s for s, o in zip(scores, is_ood, strict=True) if o == side]) for side in (0, 1)]
    expected = detection_metrics(*ordered, convention="openood", num_bootstrap=30, seed=2)
    for name, value in expected.items():
        if name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            assert (full[f"{stem}_low"], full[f"{stem}_high"]) == value
    assert {key: full[key] for key in plain} == plain
    assert full["fpr95_openood"] == expected["fpr95_openood"]
    assert all(isinstance(value, (int, float)) for value in full.values())


def test_bad_input_is_a_clear_error(run):
    code = (
        "\nfor predictions, references in (([1, 2], [0, 2]), ([1, 2], [0, 0]), ([float('nan'), 1], [0, 1])):\n"
        "    try:\n        metric.compute(predictions=predictions, references=references)\n"
        "    except ValueError as error:\n        print(error)"
    )
    first, second, third = run(code).splitlines()[-3:]
    assert first == "references has 2; allowed are 1 for OOD and 0 for ID inputs."
    assert "ood_scores is" in second and "at least one" in second
    assert "id_scores[0] is NaN" in third


def test_readme_is_true(run):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(text.split("---")[1])
    assert card["sdk"] == "gradio" and (FOLDER / card["app_file"]).is_file()
    call = re.search(r"^metric\.compute\(.*\)$", text, re.MULTILINE).group()
    promised = re.search(r"^# (\{.*?\})\n```", text, re.MULTILINE | re.DOTALL).group(1).replace("\n# ", " ")
    assert run(f"print({call})").splitlines()[-1] == " ".join(promised.split())
    compile((FOLDER / "app.py").read_text(encoding="utf-8"), "app.py", "exec")
