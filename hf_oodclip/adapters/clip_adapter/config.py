"""What a CLIP-Adapter looks like: width of its network, and how much of its output is mixed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import AdapterError
from ..base import OODAdapterConfig
from ..peft_types import OODPeftType

__all__ = ["CLIPAdapterConfig"]


@dataclass
class CLIPAdapterConfig(OODAdapterConfig):
    """Settings of an adapter that mixes the output of a small network into the image feature.

    With `f` the image feature, `W1` of `[D / reduction, D]` and `W2` of `[D, D / reduction]`,

        f' = ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f

    and cosines are taken with `f'`. Without biases the length of `f` does not matter. Both matrices start
    at random, as in the paper: **a new adapter is not the identity**, it changes cosines before it has
    learnt anything. It works with any labels and negatives.

    Source: "CLIP-Adapter: Better Vision-Language Models with Feature Adapters" (Gao et al., IJCV 2024).

    Example:
        >>> import hf_oodclip
        >>> from peft import get_peft_model
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> get_peft_model(model, CLIPAdapterConfig()).get_nb_trainable_parameters()[0]
        32768
    """

    ratio: float = field(
        default=0.2, metadata={"help": "Share of the network's output in the feature, above 0 and at most 1."}
    )
    reduction: int = field(
        default=4, metadata={"help": "How many times narrower than the embeddings the hidden layer is."}
    )

    adapter_type: ClassVar[OODPeftType] = OODPeftType.OODCLIP_CLIP_ADAPTER
    title: ClassVar[str] = "CLIP-Adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count("reduction", 1)
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 < self.ratio <= 1:
            raise AdapterError(f"{self.title}: ratio must be a number above 0 and at most 1, got {self.ratio!r}.")

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name.

        Example:
            >>> CLIPAdapterConfig().parameter_shapes(512)
            {'clip_adapter_down': (128, 512), 'clip_adapter_up': (512, 128)}
        """
        hidden = max(1, dim // self.reduction)
        return {"clip_adapter_down": (hidden, dim), "clip_adapter_up": (dim, hidden)}
