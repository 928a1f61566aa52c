import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hf_oodclip import Negatives
from hf_oodclip.cli import app, main
from hf_oodclip.cli.records import Journal, OutputFormat, RecordsError
from hf_oodclip.errors import ImageReadError, LabelError, NegativesError, UnknownNameError

LABELS = "acorn,tabby cat,lawn mower"
WORDS = "gravel\nfog\ntax law\nviolin\n"


def run(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, **kwargs)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, id_rows):
    folder = tmp_path_factory.mktemp("photos")
    for index, row in enumerate(id_rows[:30]):
        row["image"].save(folder / f"{index:02d}.jpg")
    return folder


@pytest.fixture(scope="module")
def id_rows():
    from datasets import load_dataset

    from hf_oodclip.assets import images_path

    data = load_dataset("parquet", data_files=images_path("id"), split="train")
    return [data[index] for index in range(0, 800, 20)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text(WORDS)
    return path


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_help_of_every_command_names_its_options():
    for command in ("predict", "calibrate", "mine", "info", "demo"):
        result = run(command, "--help", env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert "--help" in result.output
    assert "--on-error" in run("predict", "--help", env={"COLUMNS": "200"}).output


def test_help_needs_no_torch():
    code = "import sys; from hf_oodclip.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_predict_prints_json_lines(photos, words):
    result = run("predict", photos, "--labels", LABELS, "--negatives", words, "--top-k", 2)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(r["image"]).name for r in records] == [f"{i:02d}.jpg" for i in range(30)]
    assert all(r["nearest_negative"] in WORDS.split("\n") for r in records)
    assert all(len(r["labels"]) == 2 and r["is_ood"] is None for r in records)


def test_every_output_format_holds_the_same(photos, words, tmp_path):
    arguments = ("predict", photos, "--labels", LABELS, "--negatives", words, "--threshold", "-0.5", "--top-k", 2)
    for suffix in ("jsonl", "csv", "parquet"):
        assert run(*arguments, "--to", tmp_path / f"out.{suffix}").exit_code == 0
    expected = read_jsonl(tmp_path / "out.jsonl")
    assert len(expected) == 30
    assert {record["is_ood"] for record in expected} <= {True, False}
    parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for record, row, line in zip(expected, parquet, rows, strict=True):
        assert row == {**record, "p_value": None}
        assert (line["image"], line["label"], line["is_ood"]) == (
            record["image"], record["label"], str(record["is_ood"])
        )  # fmt: skip
        assert float(line["ood_score"]) == record["ood_score"]
        assert json.loads(line["labels"]) == record["labels"]


def test_output_to_a_terminal_is_a_table(photos, words, monkeypatch):
    result = run("predict", photos / "00.jpg", "--labels", LABELS, "-n", words, "-o", "table", env={"COLUMNS": "160"})
    assert "verdict" in result.output
    assert "not calibrated" in result.output


def test_parquet_without_a_file_is_refused(photos):
    with pytest.raises(RecordsError, match="--to"):
        run("predict", photos, "--labels", LABELS, "-o", "parquet")


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(photos, words, tmp_path):
    arguments = ["predict", str(photos), "--labels", LABELS, "--negatives", str(words), "--batch-size", "4"]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(*arguments, "--to", whole)
    journal = Journal(cut, OutputFormat.jsonl, json.loads(_settings(words)), resume=False)
    records = read_jsonl(whole)
    journal.append(records[:8])
    journal._file.write('{"image": "torn')
    journal._file.close()

    with pytest.raises(RecordsError, match="--resume"):
        run(*arguments, "--to", cut)
    result = run(*arguments, "--to", cut, "--resume")
    assert "8 of 30 images are done" in result.output
    resumed = read_jsonl(cut)
    assert [r["image"] for r in resumed] == [r["image"] for r in records]
    for one, other in zip(resumed, records, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert not cut.with_name("cut.jsonl.partial.jsonl").exists()


def _settings(words):
    return json.dumps(
        {
            "model": "pocket", "labels": LABELS.split(","), "templates": None, "negatives": str(words),
            "score": None, "threshold": None, "top_k": 1,
        }
    )  # fmt: skip


def test_resuming_with_other_settings_is_refused(photos, words, tmp_path):
    path = tmp_path / "out.jsonl"
    Journal(path, OutputFormat.jsonl, json.loads(_settings(words)), resume=False)
    with pytest.raises(RecordsError, match="score"):
        run("predict", photos, "-l", LABELS, "-n", words, "--score", "mcm", "--to", path, "--resume")


def test_resuming_from_a_damaged_journal_says_so(photos, words, tmp_path):
    path = tmp_path / "out.jsonl"
    path.with_name("out.jsonl.partial.jsonl").write_text("no json\n")
    with pytest.raises(RecordsError, match="damaged"):
        run("predict", photos, "-l", LABELS, "-n", words, "--to", path, "--resume")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_resuming_a_finished_run_adds_only_new_images(photos, words, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    arguments = ("predict", "-l", LABELS, "-n", words, "-t", "-0.5", "--to", path)
    run(*arguments, photos / "00.jpg", photos / "01.jpg")
    before = path.read_bytes()
    assert "2 of 2 images are done" in run(*arguments, photos / "00.jpg", photos / "01.jpg", "--resume").output
    if suffix != "parquet":
        assert path.read_bytes() == before
    run(*arguments, photos / "0*.jpg", "--resume")
    count = pq.read_table(path).num_rows if suffix == "parquet" else len(path.read_text().splitlines())
    assert count == 10 + (suffix == "csv")


def test_unreadable_images_stop_the_run_or_are_skipped_and_listed(photos, words, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.jpg").write_bytes((photos / "00.jpg").read_bytes())
    (folder / "torn.jpg").write_bytes((photos / "01.jpg").read_bytes()[:500])
    (folder / "empty.png").touch()
    arguments = ("predict", folder, "-l", LABELS, "-n", words)
    with pytest.raises(ImageReadError, match=r"empty\.png.*--on-error skip"):
        run(*arguments)
    out = tmp_path / "out.jsonl"
    result = run(*arguments, "--on-error", "skip", "--to", out)
    assert result.exit_code == 0
    assert "Skipped 2 images" in result.output
    assert [Path(r["image"]).name for r in read_jsonl(out)] == ["good.jpg"]
    skipped = read_jsonl(tmp_path / "out.jsonl.skipped.jsonl")
    assert {Path(entry["image"]).name for entry in skipped} == {"torn.jpg", "empty.png"}
    (folder / "good.jpg").unlink()
    with pytest.raises(ImageReadError, match="None of the 2"):
        run(*arguments, "--on-error", "skip")


def test_calibrate_then_info_then_predict(photos, words, tmp_path):
    save = tmp_path / "model"
    result = run("calibrate", photos, "-l", LABELS, "-n", words, "--save", save, "--target-tpr", 0.8, "--json")
    report = json.loads(result.stdout)
    assert (report["num_images"], report["target_tpr"], report["score"]) == (30, 0.8, "neglabel")

    facts = json.loads(run("info", save, "--json").stdout)
    assert facts["kind"] == "full OODCLIP"
    assert facts["labels"] == LABELS.split(",")
    assert facts["negatives"]["counts"] == {"word": 4}
    assert facts["calibrations"][0]["threshold"] == report["threshold"]
    words_of_info = run("info", save).stdout
    assert "Calibrated for neglabel on 30 ID images" in words_of_info
    assert "acorn, tabby cat, lawn mower" in words_of_info

    records = [json.loads(line) for line in run("predict", photos, "-m", save).stdout.splitlines()]
    accepted = sum(not record["is_ood"] for record in records)
    assert accepted == 25  # the 25th smallest of 30 scores is the threshold: ceil(31 * 0.8) = 25
    assert all((record["p_value"] <= 0.2) == record["is_ood"] for record in records)


def test_calibrate_in_words_says_what_next(photos, words, tmp_path):
    output = run("calibrate", photos, "-l", LABELS, "-n", words, "--save", tmp_path / "m").stdout
    assert "OOD above" in output
    assert f"--model {tmp_path / 'm'}" in output


def test_mine_writes_a_file_that_predict_takes(photos, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("\n".join(["kitten", "oak nut", "grass cutter", "tax law", "violin", "fog", "acorn"]))
    mined = tmp_path / "negatives.json"
    result = run("mine", "-l", LABELS, "--words", own, "--num-negatives", 3, "--to", mined, "--json")
    assert json.loads(result.stdout)["counts"] == {"word": 3}
    negatives = Negatives.load(mined)
    assert len(negatives) == 3
    assert negatives.provenance["labels"] == LABELS.split(",")
    assert "acorn" not in negatives.texts
    record = json.loads(run("predict", photos / "00.jpg", "-l", LABELS, "-n", mined).stdout)
    assert record["nearest_negative"] in negatives.texts


def test_labels_come_from_a_file(photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("acorn\n\n tabby cat \n")
    record = json.loads(run("predict", photos / "00.jpg", "--labels-file", names, "-k", 5).stdout)
    assert {entry["label"] for entry in record["labels"]} == {"acorn", "tabby cat"}


def test_bad_labels_negatives_and_names_are_explained(photos, tmp_path):
    image = photos / "00.jpg"
    with pytest.raises(LabelError, match="--labels"):
        run("predict", image)
    with pytest.raises(LabelError, match="not both"):
        run("predict", image, "-l", "a,b", "--labels-file", tmp_path / "x")
    with pytest.raises(LabelError, match="cannot be read"):
        run("predict", image, "--labels-file", tmp_path / "missing.txt")
    with pytest.raises(LabelError, match="Label 1"):
        run("predict", image, "-l", "a,,b")
    with pytest.raises(NegativesError, match="oodclip mine"):
        run("predict", image, "-l", "a,b", "-n", "neglable")
    with pytest.raises(UnknownNameError, match="'mcm'"):
        run("predict", image, "-l", "a,b", "-s", "mmc")
    with pytest.raises(LabelError, match="--labels"):
        run("mine", "--to", tmp_path / "n.json")


def test_an_error_is_one_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["oodclip", "predict", "no-such-folder"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("Error: No image found for 'no-such-folder'")
    assert "Traceback" not in captured.err


def test_wrong_usage_is_exit_code_2():
    assert run("predict").exit_code == 2
    assert run("predict", "x", "--on-error", "explode").exit_code == 2


def test_info_on_the_pocket_clip():
    assert "has no labels" in run("info", "pocket").stdout
    assert json.loads(run("info", "--json").stdout)["embedding_width"] == 256


def test_python_dash_m_is_the_same_program():
    command = [sys.executable, "-m", "hf_oodclip", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0
    assert done.stdout.startswith("hf_oodclip 0.")
