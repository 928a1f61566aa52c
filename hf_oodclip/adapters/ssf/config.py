"""What an SSF adapter looks like: which features it scales and shifts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import AdapterError, unknown_name
from ..base import OODAdapterConfig
from ..peft_types import OODPeftType

__all__ = ["FEATURES", "SSFConfig"]

FEATURES = {
    "image": "image features",
    "text": "text features, labels and negatives by one map",
    "both": "both, each with a map of its own",
}


@dataclass
class SSFConfig(OODAdapterConfig):
    """Settings of an adapter that scales and shifts features, one number of each a dimension.

    With `f` a feature of unit length and `g`, `d` learnt vectors, both `[D]`,

        f' = g * f + d

    and cosines are taken with `f'`. `g` starts at one and `d` at zero: a new adapter changes nothing.
    It works with any labels and negatives.

    Source: "Scaling & Shifting Your Features" (Lian et al., NeurIPS 2022), which does this after every
    operation of the vision tower; doing it once, on the features that are compared, is our form of it.

    Example:
        >>> import hf_oodclip
        >>> from peft import get_peft_model
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> get_peft_model(model, SSFConfig(on="image")).get_nb_trainable_parameters()[0]
        512
    """

    on: str = field(
        default="both",
        metadata={"help": "Features it maps: " + "; ".join(f"`{name}`: {what}" for name, what in FEATURES.items())},
    )
    init_std: float = field(
        default=0.0,
        metadata={
            "help": "Standard deviation of a random start around the identity. The paper's 0.02 is for hidden "
            "states: the numbers in a unit-length feature are about 1 / sqrt(D) themselves, 0.04 at D = 512, and "
            "such a shift would drown them."
        },
    )

    adapter_type: ClassVar[OODPeftType] = OODPeftType.OODCLIP_SSF
    title: ClassVar[str] = "SSF"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on not in FEATURES:
            raise unknown_name("SSF features (on)", self.on, FEATURES)
        std = self.init_std
        if isinstance(std, bool) or not isinstance(std, int | float) or not math.isfinite(std) or std < 0:
            raise AdapterError(f"{self.title}: init_std must be a finite number, at least 0, got {std!r}.")

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name.

        Example:
            >>> SSFConfig(on="text").parameter_shapes(512)
            {'ssf_text_scale': (512,), 'ssf_text_shift': (512,)}
        """
        features = ("image", "text") if self.on == "both" else (self.on,)
        return {f"ssf_{feature}_{part}": (dim,) for feature in features for part in ("scale", "shift")}
