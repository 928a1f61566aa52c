"""`oodclip mine`: words far from every label, as a file you can read, edit and use again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import LabelError
from . import options


def mine(
    to: Annotated[Path, typer.Option("--to", help="File to write (JSON).")],
    model: options.Model = "pocket",
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    method: Annotated[str, typer.Option("--method", help="neglabel, krnft or csp.")] = "neglabel",
    words: Annotated[
        Path | None, typer.Option("--words", help="Your own words, one a line, instead of WordNet.")
    ] = None,
    num_negatives: Annotated[int | None, typer.Option("--num-negatives", help="How many to keep.")] = None,
    fraction: Annotated[float | None, typer.Option("--fraction", help="Share of the words to keep.")] = None,
    templates: options.TemplatesOption = None,
    as_json: options.Json = False,
) -> None:
    """Mine negative words for a list of labels.

    Example: `oodclip mine --labels "goldfish,school bus" --to negatives.json`
    """
    from .. import Negatives, OODCLIPForImageClassification, mine_negatives

    loaded = OODCLIPForImageClassification.from_pretrained(options.resolve_model(model))
    names = options.read_labels(labels, labels_file) or loaded.labels
    if not names:
        raise LabelError(f"{model} has no labels of its own: give --labels cat,dog or --labels-file names.txt.")
    negatives = mine_negatives(
        names,
        loaded.text_encoder(),
        method,
        words=None if words is None else Negatives.load(words).texts,
        num_negatives=num_negatives,
        fraction=fraction,
        templates=templates,
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    negatives.save(to)
    counts = {kind: len(kept) for kind, kept in negatives.words.items()}
    if as_json:
        typer.echo(json.dumps({"file": str(to), "method": method, "counts": counts}))
        return
    listed = ", ".join(f"{count:,} {kind}s" for kind, count in counts.items())
    typer.echo(f"Kept {listed} of {sum(negatives.provenance['pool'].values()):,} words for {len(names)} labels.")
    for kind, kept in negatives.words.items():
        typer.echo(f"  farthest {kind}s: {', '.join(kept[:8])}")
    typer.echo(f"Wrote {to}; use it with: --negatives {to}")
