"""How long an ImageNet-sized KR-NFT training takes from stored features, and how much memory.

    python evaluation/bench_training.py --output bench-training.json

1,000 labels, 10,000 negatives, width 512, 4 shots a class, 32 positive and 32 negative crops an image, 3 epochs, by
the recipe `krnft`, or another of its kind. Features are random: only their shapes matter. `--steps` stops early and
says what the whole would take.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from accelerate import Accelerator
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.training.inputs import Inputs
from hf_oodclip.training.recipe import load_recipe
from hf_oodclip.training.trainer import Trainer, add_adapter
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig

from hf_oodclip import OODCLIPConfig, OODCLIPForImageClassification

LABELS, NEGATIVES, DIM, SHOTS, CROPS = 1_000, 10_000, 512, 4, 32
SEED = 0


def synthetic_model() -> Any:
    """Return a model with random text features of ImageNet's size on towers that are never used."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPConfig(text_config=dict(tower), vision_config=dict(tower), projection_dim=DIM)
    names = {index: f"class {index}" for index in range(LABELS)}
    model = OODCLIPForImageClassification(OODCLIPConfig(clip_config=clip, id2label=names, num_negatives=NEGATIVES))
    model.text_bank.update(_features(LABELS), _features(NEGATIVES))
    return model.eval()


def _features(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(*shape, DIM, generator=generator), dim=-1)


def synthetic_inputs(recipe: Any) -> Inputs:
    """Return random features of the crops of 4,000 images."""
    count = LABELS * SHOTS
    tensors = {"image_embeds": _features(count), "positives": _features(count, CROPS)}
    tensors["negatives"] = tensors["positives"].flip(0)
    labels = torch.arange(LABELS).repeat_interleave(SHOTS)
    return Inputs(recipe, labels, torch.arange(count), tensors, {})


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe whose inputs are crops.")] = "krnft",
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    change: Annotated[list[str] | None, typer.Option(help="field=value changed in the recipe.")] = None,
) -> None:
    """Train, and print seconds and peak memory."""
    changes = {name: yaml.safe_load(value) for name, value in (each.split("=", 1) for each in change or [])}
    chosen = load_recipe(recipe, {"seed": SEED, **changes})
    model = synthetic_model()
    add_adapter(model, chosen)
    trainer = Trainer(model, chosen, synthetic_inputs(chosen), Accelerator(cpu=not torch.cuda.is_available()))
    model.to(trainer.accelerator.device)
    wanted, start = trainer.plan.num_steps, time.perf_counter()
    if steps is not None:
        trainer.plan.num_steps = min(steps, wanted)
    trainer.train()
    seconds = time.perf_counter() - start
    results = {
        "recipe": chosen.to_dict(),
        "steps_of_the_recipe": wanted,
        "steps_taken": trainer.plan.num_steps,
        "seconds": seconds,
        "seconds_for_all_steps": seconds * wanted / trainer.plan.num_steps,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "environment": describe_environment(SEED),
    }
    typer.echo(
        f"{recipe}: {results['steps_taken']:,} of {wanted:,} steps of {chosen.batch_size} images in {seconds:.0f} s; "
        f"all of them: {results['seconds_for_all_steps'] / 60:.1f} min; peak memory "
        f"{results['peak_memory_gib']:.2f} GiB"
    )
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
