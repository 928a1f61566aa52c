"""The demo leaves a whole run and a calibrated model, and what it prints is so and can be run."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hf_oodclip.evaluation.benchmark import load_benchmark, open_set
from hf_oodclip.evaluation.demo import _feature_store, overview, run_demo
from hf_oodclip.evaluation.sample_table import SampleTable, read_run
from PIL import Image
from sklearn.metrics import roc_auc_score

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.dataset_images import image_reader
from hf_oodclip.errors import RunError
from hf_oodclip.scores import SCORES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SETS = ("near: held-out classes", "far: textures", "far: clothing", "far: digits")


def figures_of(markdown):
    """The three figures and their intervals, in %, by OOD set and score."""
    found, name = {}, ""
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heading := re.fullmatch(r"\*\*(.+)\*\*", cells[0]):
            name = heading[1]
        elif name and len(cells) == 4:
            found[name, cells[0]] = [[float(each) for each in re.findall(r"[0-9.]+", cell)] for cell in cells[1:]]
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder, the results, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = run_demo(folder, num_bootstrap=50)
    return folder, results, printed.getvalue()


def test_the_folder_holds_a_run_with_its_report(demo):
    folder, results, _ = demo
    stored, samples = read_run(folder)
    assert stored == results
    assert [each["status"] for each in results["sets"]] == ["ok"] * 6
    assert samples.num_rows == sum(each["expected"] for each in results["sets"])
    written = {entry.name for entry in folder.iterdir()}
    assert {"report.html", "tables.md", "tables.tex", "detection.csv", "accuracy.csv", "model"} <= written
    assert {"verdicts.png", "roc.png", "heat_map.png"} <= {entry.name for entry in (folder / "pictures").iterdir()}


def test_the_table_says_what_the_samples_do(demo):
    folder, results, _ = demo
    found = figures_of((folder / "table.md").read_text(encoding="utf-8"))
    assert list(found) == [(name, score) for name in SETS for score in (*SCORES, "delta_energy(temperature=1.0)")]
    samples = SampleTable(read_run(folder)[1])
    for (name, score), metrics in found.items():
        known, other = (samples.of(each, f"score:{score}") for each in ("Tiny-ImageNet 20", name.split(": ")[1]))
        area = roc_auc_score([0] * len(known) + [1] * len(other), [*known, *other])
        assert metrics[0][0] == pytest.approx(100 * area, abs=0.051)
        assert all(0 <= low <= high <= 100 for _, low, high in metrics)
    accuracy = f"ID accuracy {100 * results['accuracy'][0]['value']:.1f} ["
    assert accuracy in (folder / "table.md").read_text(encoding="utf-8")


def test_a_table_without_intervals(demo):
    def bare(records):
        return [{key: each[key] for key in each if not key.endswith(("low", "high"))} for each in records]

    _, results, _ = demo
    table = overview({**results, "detection": bare(results["detection"]), "accuracy": bare(results["accuracy"])})
    assert not any(cell.detail for row in table.rows for cell in row)
    assert table.note == f"ID accuracy {100 * results['accuracy'][0]['value']:.1f} on 480 images. All in %."


def test_what_is_printed_is_the_table_and_the_decisions(demo):
    folder, results, printed = demo
    for (name, score), metrics in figures_of((folder / "table.md").read_text(encoding="utf-8")).items():
        cells = [f"{value:.1f} [{low:.0f}, {high:.0f}]" for value, low, high in metrics]
        shown = printed[printed.index(f" {name}") :]
        assert re.search(rf"^ {re.escape(score)} +{' +'.join(map(re.escape, cells))} *$", shown, re.MULTILINE), name
    accepted = next(each for each in results["calibration"] if each["score"] == "neglabel")["accepted"]
    assert f"Of the test ID images {accepted['Tiny-ImageNet 20']:.1%} are accepted" in printed
    assert f"caught of digits: {1 - accepted['digits']:.1%}" in printed
    assert str(folder / "report.html") in printed


def test_the_pocket_clip_detects_far_images(demo):
    _, results, _ = demo
    # Measured 86.0 %, NegLabel against clothing.
    assert max(each["auroc"] for each in results["detection"] if each["role"] == "far") >= 0.83
    # Bands around the measured 71.5 % and 94.6 %, wide enough for another build of the same arithmetic.
    assert 0.67 <= results["accuracy"][0]["value"] <= 0.76
    calibration = next(each for each in results["calibration"] if each["score"] == "neglabel")
    assert 0.92 <= calibration["accepted"]["Tiny-ImageNet 20"] <= 0.98


def test_the_readme_shows_what_the_demo_finds(demo):
    folder, _, _ = demo
    found = figures_of((folder / "table.md").read_text(encoding="utf-8"))
    shown = figures_of(README.split("<!-- demo table -->")[1].split("<!-- end of demo table -->")[0])
    assert list(shown) == list(found)
    for place, metrics in shown.items():
        for (value, low, high), (own, *_) in zip(metrics, found[place], strict=True):
            assert low - 1 <= value <= high + 1
            assert value == pytest.approx(own, abs=2)


def test_the_saved_model_decides_as_the_run_did(demo):
    folder, results, _ = demo
    model = OODCLIPForImageClassification.from_pretrained(folder / "model").eval()
    calibration = next(each for each in results["calibration"] if each["score"] == "neglabel")
    assert model.calibration.threshold == calibration["threshold"]
    assert (len(model.negatives), model.calibration.num_images) == (results["num_negatives"], 320)
    samples = SampleTable(read_run(folder)[1])
    benchmark = load_benchmark("pocket")
    for spec in (benchmark.id_set, benchmark.ood_sets[1]):
        read = image_reader(open_set(spec, model.labels).images)
        scores = model.ood_scores([read(row) for row in range(0, 160, 10)])["neglabel"]
        expected = samples.of(spec.name, "p_value:neglabel")[:160:10]
        # One calibration image more or less, where scores are as near as rounding.
        assert model.calibration.p_values(scores).numpy() == pytest.approx(expected, abs=1.5 / 321)
        is_ood = samples.of(spec.name, "score:neglabel")[:160:10] > calibration["threshold"]
        assert model.calibration.is_ood(scores).tolist() == is_ood.tolist()


def test_the_printed_lines_run(demo, capsys, tmp_path, monkeypatch):
    printed = demo[2]
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "your-photo.jpg")
    monkeypatch.chdir(tmp_path)
    lines = printed[printed.index("import hf_oodclip, transformers") :].strip().splitlines()
    assert len(lines) == 3
    exec("\n".join(lines), {})
    assert "'is_ood': " in capsys.readouterr().out


def test_caches_that_cannot_be_written_are_done_without(shared_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HF_OODCLIP_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    said = []
    with _feature_store(said.append) as store:
        assert len(open_set(load_benchmark("pocket").ood_sets[3], None).images) == 160
        images = [Image.new("RGB", (40, 40), colour) for colour in ("teal", "navy")]
        assert len(store.image_features(shared_model, images)) == 2
        used = store.folder
    assert len(said) == 1 and str(tmp_path / "file") in said[0] and "cannot be written" in said[0]
    assert tmp_path / "file" / "datasets" == datasets.config.HF_DATASETS_CACHE
    assert not used.exists()


def test_an_output_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"cannot write to .*file.*Give another folder: --output"):
        run_demo(tmp_path / "file")


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.axes'] = None; "
        f"sys.argv = ['oodclip', 'demo', '--output', {str(tmp_path / 'out')!r}]; "
        "from hf_oodclip.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('pip install "hf_oodclip[eval]".')
    assert done.stderr.startswith("Error: Pictures need matplotlib") and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
