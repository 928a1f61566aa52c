"""`oodclip info`: what is in a checkpoint, in words."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from . import options


def info(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint, or 'pocket'.")] = "pocket",
    as_json: options.Json = False,
) -> None:
    """Say what a checkpoint holds: CLIP, labels, negatives, score, calibration."""
    source = options.resolve_model(model)
    facts = describe(source)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for line in in_words(facts):
        typer.echo(line)


def describe(source: str) -> dict[str, Any]:
    """Return the facts about a checkpoint, as plain values."""
    from ..loading import load_negatives_file, wrapped_config
    from ..ood_head import OODHead

    config, is_plain = wrapped_config(source, None, {})
    clip: Any = config.clip_config
    negatives = load_negatives_file(source, config, {})
    return {
        "source": source,
        "kind": "plain CLIP" if is_plain else "full OODCLIP",
        "vision": {
            "image_size": clip.vision_config.image_size,
            "patch_size": clip.vision_config.patch_size,
            "layers": clip.vision_config.num_hidden_layers,
            "width": clip.vision_config.hidden_size,
        },
        "text": {
            "context": clip.text_config.max_position_embeddings,
            "layers": clip.text_config.num_hidden_layers,
            "width": clip.text_config.hidden_size,
        },
        "embedding_width": clip.projection_dim,
        "labels": config.label_names,
        "templates": None if is_plain else config.label_templates,
        "negatives": None if negatives is None else _negative_facts(negatives),
        "score": None if is_plain else OODHead(config).score.key,
        "calibrations": config.calibrations,
    }


def _negative_facts(negatives: Any) -> dict[str, Any]:
    origin = {name: negatives.provenance.get(name) for name in ("method", "words", "quantile") if negatives.provenance}
    return {
        "counts": {kind: len(words) for kind, words in negatives.words.items()},
        "first": negatives.texts[:8],
        **origin,
    }


def in_words(facts: dict[str, Any]) -> list[str]:
    """Return the facts as lines a person reads."""
    vision, text = facts["vision"], facts["text"]
    lines = [
        f"{facts['source']}: a {facts['kind']} checkpoint.",
        f"  Images of {vision['image_size']} px in patches of {vision['patch_size']} "
        f"({vision['layers']} layers of width {vision['width']}); texts of up to {text['context']} tokens "
        f"({text['layers']} layers of width {text['width']}); embeddings of width {facts['embedding_width']}.",
    ]
    labels = facts["labels"]
    if not labels:
        return [*lines, "  It has no labels: give it some with --labels, and save it with `oodclip calibrate`."]
    more = f", ... ({len(labels)} in all)" if len(labels) > 10 else ""
    lines.append(f"  Labels: {', '.join(labels[:10])}{more}; prompted by {', '.join(map(repr, facts['templates']))}.")
    negatives = facts["negatives"]
    if negatives is None:
        lines.append("  It has no negatives.")
    else:
        counts = ", ".join(f"{count:,} {kind}s" for kind, count in negatives["counts"].items())
        origin = f" ({negatives['method']})" if negatives.get("method") else ""
        lines.append(f"  Negatives: {counts}{origin}, such as {', '.join(negatives['first'])}.")
    lines.append(f"  Score: {facts['score']}.")
    for record in facts["calibrations"]:
        low, high = record["tpr_interval"]
        lines.append(
            f"  Calibrated for {record['score']} on {record['num_images']} ID images: OOD above "
            f"{record['threshold']:.6g}; accepts {low:.1%} to {high:.1%} of ID images "
            f"(target {record['target_tpr']:.0%}, {record['confidence']:.0%} confidence)."
        )
    if not facts["calibrations"]:
        lines.append("  Not calibrated: it scores images but decides nothing. Run `oodclip calibrate`.")
    return lines
