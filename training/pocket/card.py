"""The model card of a pocket CLIP checkpoint: only what its training left behind."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from .lexicon import Classes

__all__ = ["checkpoint_card"]

LONGEST_LINE = 119
TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- clip
- zero-shot-image-classification
- out-of-distribution-detection
- demonstration
- test-model
---

# Pocket CLIP

A small real CLIP, so that `hf_oodclip` runs offline, on real images, within seconds: a plain transformers
`CLIPModel` with `CLIPProcessor`{size}, trained from scratch in {minutes:.0f} minutes ({threads} CPU threads).

**It is for demonstrations and tests.** It is not an open-vocabulary model: it knows {num_seen} of {num_classes}
Tiny-ImageNet classes and their WordNet parents, and on the text side the meaning of many nouns. Numbers made with it
say nothing about a method on a full-size CLIP.

```python
import hf_oodclip
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained(hf_oodclip.pocket_path())
processor = CLIPProcessor.from_pretrained(hf_oodclip.pocket_path())
```

## Architecture

| | |
| --- | --- |
| Vision tower | 64 px, patch {patch}, width {vision_width}, {vision_layers} layers |
| Text tower | width {text_width}, {text_layers} layers, byte-level BPE of {vocab:,} tokens, 32 positions |
| Shared space | {dim} dimensions |

## How it was made

```
{command}
```

1. **Text, {text_minutes} minutes, {text_steps:,} steps.** Distilled from a sentence encoder (all-MiniLM-L6-v2 by
   default) reduced to {dim} dimensions by PCA, on nouns, adjectives and short glosses of WordNet 3.0. Cosine to the
   encoder: names of classes and parents {fit_names:.2f}, less common nouns {fit_nouns:.2f}.
2. **Images, {image_minutes} minutes, {image_steps:,} steps.** {stages}. Text tower locked; cross-entropy
   against captions of the classes, of their WordNet parents and of {distractors} random nouns a step.{extras} No
   image, name or near synonym of the {num_held_out} held-out classes took part.

{more}No OOD test set, and nothing made to look like one, took part in this run, nor chose a checkpoint of it.
Seed {seed}; versions: {versions}. The whole log is `training.json`.

## Measured

{figures}

<!-- pocket comparison -->
<!-- end of pocket comparison -->

One run, one seed each. The nouns that NegLabel chooses from are of the pool that gave the random nouns of the
training: that flatters it. `trial` is an earlier pocket CLIP, which was also trained on synthetic textures.

## Licence

The weights are released under Apache-2.0. They were trained on Tiny-ImageNet images, which carry ImageNet's terms
(non-commercial research and educational use): whoever passes the weights on should say so, and should treat them as
a demonstration and test model. The text side was distilled from all-MiniLM-L6-v2 (Apache-2.0) on words and glosses
of WordNet 3.0 (WordNet licence).
"""


def checkpoint_card(record: Mapping[str, Any], classes: Classes) -> str:
    """Return the text of README.md from what `training.json` holds; figures are left out while there are none.

    Args:
        record: As `pretrain_pocket.py` writes it.
        classes: Those that were trained on and held out.
    """
    recipe, environment = record["recipe"], record["environment"]
    checkpoint, figures = record.get("checkpoint"), record.get("figures")
    stages = ", then ".join(
        f"{each['steps']:,} steps of {each['batch_size']} images at {each['pixels']} px"
        + (f" ({100 * each['kept_patches']:.0f} % of the patches)" if each["kept_patches"] < 1 else "")
        + (f", the learning rate anew from {100 * each['restart']:.0f} %" if each.get("restart") else "")
        for each in recipe["stages"]
    )
    fit = record["text"]["evaluations"][-1]
    text = TEMPLATE.format(
        size=_size(checkpoint),
        minutes=sum(record["minutes"].values()),
        threads=environment["machine"]["threads"],
        num_seen=len(classes.seen),
        num_held_out=len(classes.held_out),
        num_classes=len(classes.seen) + len(classes.held_out),
        patch=recipe["patch_size"],
        vision_width=recipe["vision"]["width"],
        vision_layers=recipe["vision"]["layers"],
        text_width=recipe["text"]["width"],
        text_layers=recipe["text"]["layers"],
        vocab=recipe["vocab_size"],
        dim=recipe["projection_dim"],
        command=environment["command"],
        text_minutes=record["minutes"]["text"],
        text_steps=recipe["text_steps"],
        fit_names=fit["names"],
        fit_nouns=fit["nouns"],
        image_minutes=record["minutes"]["image"],
        image_steps=sum(each["steps"] for each in recipe["stages"]),
        stages=stages,
        distractors=recipe["num_distractors"],
        extras=_extras(record),
        more=_more_text(record),
        seed=recipe["seed"],
        versions=", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        figures="Not measured yet." if figures is None else _figures(figures),
    )
    return _wrapped(text)


def _wrapped(text: str) -> str:
    """Return text without long lines; tables and code stay as they are."""
    lines: list[str] = []
    is_code = False
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        if is_code or line.startswith("|") or len(line) <= LONGEST_LINE:
            lines.append(line)
        else:
            indent = "   " if line.startswith(("   ", "1", "2", "3")) else ""
            lines += textwrap.wrap(line, LONGEST_LINE, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _extras(record: Mapping[str, Any]) -> str:
    recipe = record["recipe"]
    said = ""
    if recipe["shuffled"]:
        said += f"""
   {100 * recipe["shuffled"]:.0f} % of the training images were cut into tiles and shuffled, as examples of none of the
   classes: any noun may fit them (Sinha et al., ICLR 2021)."""
    if any(each.get("restart") for each in recipe["stages"]):
        said += " The tower is the mean of\n   those with which the rate had fallen to 0 (Izmailov et al., UAI 2018)."
    if recipe["mix"]:
        said += f"\n   {100 * recipe['mix']:.0f} % of the batches were mixed (mixup, CutMix)."
    if recipe["teacher"]:
        large = recipe["teacher"]["tower"]
        said += f"""
   The tower also follows a larger one (width {large["width"]}, {large["layers"]} layers), which was trained first, on
   the same images, for {record["minutes"]["teacher"]} minutes."""
    return said


def _more_text(record: Mapping[str, Any]) -> str:
    if "more_text" not in record:
        return ""
    fit = record["more_text"]["evaluations"][-1]
    minutes, steps = record["minutes"]["more_text"], record["recipe"]["more_text_steps"]
    return f"""3. **Text again, {minutes} minutes, {steps:,} steps.** The text tower read on, names of held-out classes
   (names, no images) among the rest, while the captions of step 2 were pinned (mean cosine to what they were
   {fit["captions"]:.3f}). Cosine to the encoder: names of classes and parents {fit["names"]:.2f}, less common nouns
   {fit["nouns"]:.2f}.

"""


def _size(checkpoint: Mapping[str, Any] | None) -> str:
    if checkpoint is None:
        return ""
    return (
        f", {checkpoint['parameters'] / 1e6:.2f} million parameters, {checkpoint['weight_bytes'] / 1e6:.1f} MB in fp16"
    )


def _figures(figures: Mapping[str, float]) -> str:
    names = {
        "seen": "the classes it was trained on",
        "held_out": "the held-out classes, among themselves",
        "all": "all classes jointly",
    }
    rows = [
        f"| {title} | {100 * figures[f'{name}_top1']:.1f} | {100 * figures[f'{name}_top5']:.1f} |"
        for name, title in names.items()
        if f"{name}_top1" in figures
    ]
    return "\n".join(
        [
            "Zero-shot accuracy in % on Tiny-ImageNet's validation images, one template; one run, one seed:",
            "",
            "| classes | top-1 | top-5 |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
