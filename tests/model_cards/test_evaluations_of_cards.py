"""Which evaluations a card takes, and what hostile names in them do to it."""

import html
import json
import shutil

import pyarrow as pa
import pytest
from fake_runs import HOSTILE, fake_run, write_run
from hf_oodclip.model_cards.card import write_card
from hf_oodclip.model_cards.evidence import read_model
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_oodclip.errors import CardError

WORDS = ("<u>fog</u>", "a | b")
NASTY = ["<script>1</script>", "a|b", "![p](x.png)", "---", "# head", "'\"", "[x]: y", "`code`", "<!-- c -->", "a: b"]
NASTY += ["{{ 7 * 7 }}", "$x_1^2$ & #{}", "~\\*_[a](b)*"]


def run_of(folder, model_folder, **options):
    """A made-up evaluation that says it measured this model."""
    model = read_model(model_folder)
    results, samples = fake_run(labels=model.labels, **options)
    results["fingerprint"] = model.fingerprint
    return write_run(folder, results, samples)


def cells_of(text):
    """The cells and list items of a card, as a browser shows them."""
    page = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in page and "<img" not in page.replace('<img src="card_pictures', "")
    return html.unescape(page)


def test_hostile_names_are_shown_letter_by_letter(save_model, tmp_path, tiny_clip):
    template = "a <b>{}"
    folder = save_model(folder=tiny_clip, labels=NASTY, templates=template, negatives=WORDS)
    sets = {"id": ("id", 240), HOSTILE: ("near", 90), "b|c": ("far", 60)}
    run = run_of(tmp_path / "run", folder, sets=sets, negatives=NASTY[:2])
    results = json.loads((run / "results.json").read_text())
    results["title"] = f"{HOSTILE}\n## Gone"
    results["environment"]["command"] = "evaluate.py --benchmark 'a```b\n## Gone' --model /home/someone/x"
    (run / "results.json").write_text(json.dumps(results))
    path = write_card(folder, evaluation=[run])
    text = path.read_text()
    shown = cells_of(text)
    for name in (*NASTY, *WORDS):
        assert name in shown
    assert "<td>" + HOSTILE + "</td>" in shown and "<td>b|c</td>" in shown
    assert "<h2>Gone" not in shown and "49" not in shown.partition("<h2>Labels</h2>")[2].partition("<h2>")[0]
    assert template in shown
    assert "/home" not in text
    card = ModelCard.load(path)
    assert {each.dataset_config for each in card.data.eval_results} == {"id", HOSTILE, "b|c"}
    assert len(card.data.eval_results) == 7


def test_files_lose_their_folders_and_failed_sets_their_paths(save_model, tmp_path, tiny_clip):
    folder = save_model(folder=tiny_clip)
    run = run_of(tmp_path / "run", folder, missing=["textures"])
    results, samples = json.loads((run / "results.json").read_text()), pa.parquet.read_table(run / "samples.parquet")
    files = pa.array([f"/home/someone/{name}" for name in samples["file"].to_pylist()])
    samples = samples.set_column(samples.column_names.index("file"), "file", files)
    broken = next(each for each in results["sets"] if each["status"] == "missing")
    broken |= {"status": "failed", "reason": "cannot read '/home/someone/data/1.png' there"}
    write_run(run, results, samples)
    text = write_card(folder, evaluation=[run]).read_text()
    assert "home" not in text and "someone" not in text
    assert "- set textures of A fake run: failed (cannot read '1.png' there)" in text


def test_a_score_that_was_not_measured_is_missing(save_model, tmp_path, tiny_clip):
    folder = save_model(folder=tiny_clip, score="gen")
    text = write_card(folder, evaluation=[run_of(tmp_path / "run", folder)]).read_text()
    assert "- OOD detection on A fake run: the score of this model was not measured there" in text
    assert "AUROC" not in text.partition("## Limits")[0]


def test_an_uncalibrated_model_says_what_mistakes_are_judged_by(save_model, tmp_path, tiny_clip):
    folder = save_model(folder=tiny_clip)
    text = write_card(folder, evaluation=[run_of(tmp_path / "run", folder)]).read_text()
    assert "not calibrated: judged at a threshold that accepts 95 % of these ID images" in text
    assert "accepted as ID" not in text


def test_two_evaluations_each_have_their_section_and_pictures(save_model, tmp_path, tiny_clip):
    folder = save_model(folder=tiny_clip)
    runs = [run_of(tmp_path / f"run{seed}", folder, seed=seed) for seed in (0, 1)]
    text = write_card(folder, evaluation=runs).read_text()
    assert text.count("## Evaluation: A fake run") == 2
    names = sorted(path.name for path in (folder / "card_pictures").iterdir())
    assert names == [f"0{n}_fake_{kind}.png" for n in (1, 2) for kind in ("histogram", "roc")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": None}, "does not say which weights"),
        ({"fingerprint": {"classes": "x"}}, "other labels, templates or negatives"),
        ({"labels": "emu", "fingerprint": {"classes": "x"}}, r"other labels \('European fire salamander', 'emu'\)"),
        ({"fingerprint": {"adapter": None}}, "measured no adapter"),
        ({"fingerprint": {"adapter": "unknown"}}, "measured another adapter"),
        ({"model": "/data/other-clip"}, r"the adapter on another base \(other-clip\)"),
    ],
)
def test_evaluations_of_another_adapter_are_refused(trained, evaluated, tmp_path, change_json, changes, message):
    run = shutil.copytree(evaluated, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    found = results["fingerprint"]
    if "labels" in changes:
        changes = {**changes, "labels": [changes["labels"], *results["labels"][1:]]}
    if changes.get("fingerprint"):
        changes = {**changes, "fingerprint": {**found, **changes["fingerprint"]}}
    change_json(run / "results.json", **changes)
    with pytest.raises(CardError, match=message):
        write_card(trained, evaluation=[run])
    assert not (trained / "README.md").exists()


def test_evaluations_of_another_model_are_refused(save_model, evaluated, tmp_path, tiny_clip):
    folder = save_model(folder=tiny_clip)
    other = save_model("other", folder=tiny_clip, score="mcm", calibrated=True)
    with pytest.raises(CardError, match="measured other weights"):
        write_card(folder, evaluation=[run_of(tmp_path / "run", other)])
    with pytest.raises(CardError, match="measured"):
        write_card(folder, evaluation=[evaluated])
