"""Model cards with evidence: every statement comes from what a run left behind, and what is missing is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_oodclip.training.run import CURVE_FILE
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_oodclip.errors import CardError

from . import runs, sections
from .citations import bibtex, papers_of
from .escaping import fence, one_line, text
from .evidence import ModelEvidence, read_model
from .figures import evaluation_section
from .header import make_header, read_header
from .measured import PICTURES, Measured, draw, read_evaluation, shrink

__all__ = ["CARD_FILE", "write_card"]

CARD_FILE = "README.md"


def write_card(
    folder: str | Path,
    *,
    run: str | Path | None = None,
    evaluation: Sequence[str | Path] = (),
    repo_id: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `README.md`, with pictures under `card_pictures/`, into the folder of a model or adapter.

    The same folders give the same card. What the header of an earlier card says besides (a `license`, PEFT's
    entries) is kept; its figures are not.

    Args:
        folder: A whole model saved by this package, or an adapter, such as a training run leaves.
        run: Folder of the training run, when the adapter lies elsewhere.
        evaluation: Folders that `evaluation/evaluate.py` wrote for this very model.
        repo_id: Where the model will be on the Hub, for the lines that use it.
        base: Folder or Hub id of the CLIP a whole model was made of; its weights are compared.
        overwrite: Replace a card that somebody wrote by hand.

    Returns:
        The card.

    Raises:
        CardError: No model there, evidence of another model, or a card written by hand.
        RunError: An evaluation folder holds no finished run.

    Example:
        >>> import tempfile
        >>> from hf_oodclip import OODCLIPForImageClassification, pocket_path
        >>> model = OODCLIPForImageClassification.from_pretrained(pocket_path(), labels=["cat", "dog"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     "## Not known" in write_card(folder).read_text(encoding="utf-8")
        True
    """
    folder = Path(folder)
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise CardError(f"{repo_id!r} is no id of a repo: {error} Give owner/name.") from error
    model = read_model(folder, None if run is None else Path(run), base)
    measured = [read_evaluation(Path(each), model) for each in evaluation]
    earlier = read_header(folder / CARD_FILE, overwrite)
    name = one_line((repo_id or folder.resolve().name).rpartition("/")[2])
    pictures = draw(folder, measured)
    curve = _learning_curve(folder if run is None else Path(run), folder) if model.metrics else ""
    card = ModelCard.from_template(
        make_header(model, measured, earlier, name),
        template_str=files(__package__).joinpath("template.md").read_text(encoding="utf-8"),
        **_content(model, measured, pictures, repo_id, name, "license" in earlier),
        learning_curve=curve,
    )
    path, partial = folder / CARD_FILE, folder / f".{CARD_FILE}.partial"
    # Sections that are left out leave their empty lines.
    partial.write_text(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _learning_curve(run: Path, folder: Path) -> str:
    """Copy the learning curve of a run beside the card, and return its path from there."""
    if not (run / CURVE_FILE).is_file():
        return ""
    (folder / PICTURES).mkdir(exist_ok=True)
    shrink(run / CURVE_FILE, folder / PICTURES / CURVE_FILE)
    return f"{PICTURES}/{CURVE_FILE}"


def _content(
    model: ModelEvidence,
    measured: Sequence[Measured],
    pictures: Sequence[Mapping[str, str]],
    repo_id: str | None,
    name: str,
    has_licence: bool,
) -> dict[str, Any]:
    what = (
        "A CLIP image classifier"
        if model.adapter is None
        else f"{text(sections.adapter_title(model))}: an adapter that makes a CLIP an image classifier"
    )
    count = f" of {len(model.labels):,} labels" if model.labels else ""
    method = None if model.negatives is None else model.negatives.provenance.get("method")
    kind = None if model.adapter is None else model.adapter.get("peft_type")
    papers = papers_of(model.score, kind, model.recipe.get("losses", {}), method)
    commands = runs.commands(model, measured)
    evaluations = [evaluation_section(model, each, drawn) for each, drawn in zip(measured, pictures, strict=True)]
    return {
        "title": text(name),
        "summary": f"{what}{count} that also says which images show none of them: out-of-distribution (OOD) "
        "detection, with `hf_oodclip`.",
        "facts": sections.facts(model),
        "usage": sections.usage(model, repo_id),
        "after_usage": "Each image gives `label` and `score` (softmax over the labels), `ood_score`, `p_value` and "
        "`is_ood` (None without calibration), and `nearest_negative` where there are negatives.",
        "labels": sections.labels_text(model) if model.labels else "",
        "negatives": sections.negatives_text(model),
        "training": sections.training_table(model),
        "before_after": sections.before_after_table(model),
        "calibration": sections.calibration_text(model),
        "evaluations": evaluations,
        "commands": fence("\n".join(commands), "bash") if commands else "",
        "versions": runs.versions(model, measured),
        "time": runs.time(model, measured),
        "limits": runs.limits(model, measured),
        "citation": fence(bibtex(papers), "bibtex"),
        "missing": "\n".join(f"- {each}" for each in runs.missing(model, measured, has_licence)),
    }
