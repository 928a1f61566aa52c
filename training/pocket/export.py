"""Writes the pretrained towers as a plain CLIP checkpoint, and measures it as a stranger would load it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from .image_stage import VisionTower
from .images import MEAN, SIDE, STD, Images
from .lexicon import Classes
from .recipe import PocketRecipe

__all__ = ["export_checkpoint", "measure_checkpoint"]

# The names of the tokens and configurations that a tower's own checkpoint has.
OWN_FIELDS = ("_name_or_path", "architectures", "dtype", "transformers_version")


def export_checkpoint(
    folder: Path, recipe: PocketRecipe, vision: VisionTower, text: Any, tokenizer: Any, card: str
) -> dict[str, Any]:
    """Write `CLIPModel`, tokenizer and image processor in fp16; return sizes and the checksum.

    Args:
        folder: Replaced if it is there.
        recipe: The recipe.
        vision, text: The trained towers.
        tokenizer: The text tower's.
        card: Text of README.md.
    """
    configs = []
    for tower in (text, vision.clip):
        fields = tower.config.to_dict()
        configs.append({name: value for name, value in fields.items() if name not in OWN_FIELDS})
    config = CLIPConfig(text_config=configs[0], vision_config=configs[1], projection_dim=recipe.projection_dim)
    model = CLIPModel(config)
    state = {**text.state_dict(), **vision.clip.state_dict(), "logit_scale": vision.log_scale.detach()}
    missing, unexpected = model.load_state_dict({name: each.cpu() for name, each in state.items()}, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.half().save_pretrained(partial)
    # Half the bytes on disk, but a CPU computes in fp32: that is what `from_pretrained` shall give.
    written = json.loads((partial / "config.json").read_text(encoding="utf-8"))
    (partial / "config.json").write_text(
        json.dumps({**written, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
    )
    (partial / "model.safetensors").chmod(0o644)
    # Padding and truncation are left behind by its last use.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(partial)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    weights = folder / "model.safetensors"
    return {
        "parameters": sum(values.numel() for values in model.parameters()),
        "weight_bytes": weights.stat().st_size,
        "tokenizer_bytes": sum(path.stat().st_size for path in folder.glob("tokenizer*")),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


@torch.inference_mode()
def measure_checkpoint(folder: Path, classes: Classes, images: Images, batch_size: int = 250) -> dict[str, float]:
    """Return top-1 and top-5 of a plain checkpoint on validation images, in one template, with transformers alone.

    Args:
        folder: A CLIP checkpoint.
        classes: Seen and held-out classes.
        images: Validation images of all, labelled in the order seen, then held out.
    """
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    names = [*classes.seen.values(), *classes.held_out.values()]
    texts = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    embeds = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = list(images.pixels[start : start + batch_size])
        inputs = processor(images=batch, return_tensors="pt", input_data_format="channels_first")
        parts.append(normalize(model.get_image_features(**inputs).pooler_output, dim=-1))
    cosines, labels, seen = torch.cat(parts) @ embeds.T, images.labels, len(classes.seen)
    found = {}
    for name, rows, columns in (
        ("seen", labels < seen, slice(0, seen)),
        ("held_out", labels >= seen, slice(seen, None)),
        ("all", labels >= 0, slice(None)),
    ):
        if rows.any():
            right = cosines[rows][:, columns].topk(5).indices + (columns.start or 0) == labels[rows, None]
            found[f"{name}_top1"] = float(right[:, 0].float().mean())
            found[f"{name}_top5"] = float(right.any(1).float().mean())
    return found
