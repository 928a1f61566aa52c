"""How many parameters each adapter has, and how large its file is.

python evaluation/adapter_sizes.py            # for a ViT-B/16 (width 512) with 1,000 labels
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save

from hf_oodclip import CLIPAdapterConfig, ContextPromptConfig, NFTConfig, SSFConfig, TaskResidualConfig

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "NFT binary": (NFTConfig, {}),
    "NFT binary, hidden_size=64": (NFTConfig, {"hidden_size": 64}),
    "NFT binary, conditional=False": (NFTConfig, {"conditional": False}),
    "NFT uni": (NFTConfig, {"variant": "uni"}),
    "NFT class_specific": (NFTConfig, {"variant": "class_specific"}),
    "NFT constant": (NFTConfig, {"variant": "constant"}),
    "NFT mlp": (NFTConfig, {"variant": "mlp"}),
    "CoOp, EBM": (ContextPromptConfig, {}),
    "CoOp, class_specific": (ContextPromptConfig, {"class_specific": True}),
    "CoCoOp": (ContextPromptConfig, {"num_context": 4, "conditional": True}),
    "NegPT": (ContextPromptConfig, {"num_context": 2, "negative_context": "separate"}),
    "ConNegPT": (ContextPromptConfig, {"num_context": 2, "negative_context": "separate", "conditional": True}),
    "TaskRes": (TaskResidualConfig, {}),
    "SSF": (SSFConfig, {}),
    "CLIP-Adapter": (CLIPAdapterConfig, {}),
}


def main(
    dim: Annotated[int, typer.Option(help="Width of the embeddings.")] = 512,
    text_width: Annotated[int, typer.Option(help="Width of the token embeddings.")] = 512,
    labels: Annotated[int, typer.Option(help="Labels, for class-specific adapters.")] = 1000,
    negatives: Annotated[int, typer.Option(help="Negatives, for class-specific adapters.")] = 10_000,
) -> None:
    """Print a table."""
    typer.echo("| adapter | parameters | file |\n|---|---:|---:|")
    for name, (config_class, options) in CONFIGS.items():
        config = config_class(**options)
        config.settle_classes(labels, negatives)
        shapes = config.parameter_shapes(dim, text_width)
        tensors = {f"base_model.model.{key}": torch.zeros(shape) for key, shape in shapes.items()}
        count, size = sum(tensor.numel() for tensor in tensors.values()), len(save(tensors))
        typer.echo(f"| {name} | {count:,} | {size / 1000:,.1f} kB |")


if __name__ == "__main__":
    typer.run(main)
