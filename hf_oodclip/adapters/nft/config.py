"""What an NFT adapter looks like: its variant and sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import AdapterError, unknown_name
from ..base import OODAdapterConfig, class_numbers_error
from ..peft_types import OODPeftType

__all__ = ["VARIANTS", "NFTConfig"]

# What each variant learns besides the part that looks at the image.
VARIANTS = {
    "binary": "a scale and a shift vector for labels, and one for negatives",
    "uni": "one scale and one shift vector for both",
    "class_specific": "a scale and a shift vector for every label and every negative",
    "constant": "one number of scale and one of shift",
    "mlp": "a small network on the text feature, one for labels and one for negatives",
}
_DELTAS_DTYPES = ("bfloat16", "float16")


@dataclass
class NFTConfig(OODAdapterConfig):
    """Settings of an adapter that moves the text features of labels and negatives, an image at a time.

    With `v` the image feature and `c` a text feature (both unit length), `s` the group it belongs to
    (label or negative), the adapter replaces `v . c` by `v . c'` with

        c' = L2(a_s(v) * c + b_s(v)),   a_s(v) = w_s + h_s(v),   b_s(v) = u_s + g_s(v)

    where `w` and `u` are learnt vectors and `h` and `g` two-layer networks `D -> hidden_size -> D`.
    Their second layers start at zero, and so do `w - 1` and `u`: a new adapter changes nothing.

    Source: "Knowledge Regularized Negative Feature Tuning", ACM MM 2025.

    Example:
        >>> import hf_oodclip
        >>> from peft import get_peft_model
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"], negatives=["gravel", "fog"]
        ... )
        >>> get_peft_model(model, NFTConfig(hidden_size=8)).get_nb_trainable_parameters()[0]
        18464
    """

    variant: str = field(
        default="binary",
        metadata={"help": "What is learnt: " + "; ".join(f"`{name}`: {what}" for name, what in VARIANTS.items())},
    )
    conditional: bool = field(
        default=True, metadata={"help": "Let the image move the text features (False: the paper's FT ablation)."}
    )
    hidden_size: int = field(default=8, metadata={"help": "Width of the hidden layer of every small network."})
    residual_scale: float = field(
        default=1.0, metadata={"help": "Factor on what the networks put out, `h` and `g` (and `mlp`'s)."}
    )
    deltas_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the products that describe the change (`bfloat16`, `float16`); the base cosines "
            "stay in float32. None computes all in float32 (float64 stays float64)."
        },
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Labels of a `class_specific` adapter; None takes those of the model."}
    )
    num_negatives: int | None = field(
        default=None, metadata={"help": "Negatives of a `class_specific` adapter; None takes those of the model."}
    )
    adapter_type: ClassVar[OODPeftType] = OODPeftType.OODCLIP_NFT
    title: ClassVar[str] = "NFT"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise unknown_name("NFT variant", self.variant, VARIANTS)
        if self.deltas_dtype is not None and self.deltas_dtype not in _DELTAS_DTYPES:
            raise unknown_name("deltas_dtype", self.deltas_dtype, _DELTAS_DTYPES, "None computes all in float32.")
        if not isinstance(self.conditional, bool):
            raise AdapterError(f"NFT: conditional must be True or False, got {self.conditional!r}.")
        self.check_count("hidden_size", 1)
        if isinstance(self.residual_scale, bool) or not isinstance(self.residual_scale, int | float):
            raise AdapterError(f"NFT: residual_scale must be a number, got {self.residual_scale!r}.")
        if not math.isfinite(self.residual_scale) or self.residual_scale == 0:
            raise AdapterError(f"NFT: residual_scale must be finite and not 0, got {self.residual_scale!r}.")
        for name, least in (("num_labels", 1), ("num_negatives", 0)):
            if getattr(self, name) is not None:
                self.check_count(name, least)
                if self.variant != "class_specific":
                    raise AdapterError(
                        f"NFT: {name} belongs to variant 'class_specific'; {self.variant!r} works with any number "
                        "of classes. Leave it out."
                    )

    @property
    def is_class_specific(self) -> bool:
        """Whether the adapter belongs to the very classes it was trained with."""
        return self.variant == "class_specific"

    def settle_classes(self, num_labels: int, num_negatives: int) -> None:
        """Take the numbers of classes of a model, where this adapter depends on them, or check them.

        Args:
            num_labels: Labels of the model; 0 when they come after the adapter.
            num_negatives: Its negatives.

        Raises:
            AdapterError: The adapter is for other numbers.
        """
        if self.variant != "class_specific" or num_labels == 0:
            return
        if self.num_labels is None:
            self.num_labels = num_labels
        if self.num_negatives is None:
            self.num_negatives = num_negatives
        if (self.num_labels, self.num_negatives) != (num_labels, num_negatives):
            raise class_numbers_error(self.title, (self.num_labels, self.num_negatives), (num_labels, num_negatives))

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter of an adapter for embeddings of width `dim`, by name.

        Two rows are for labels and negatives, in this order; one is for both.

        Raises:
            AdapterError: A `class_specific` adapter does not know its numbers of classes.

        Example:
            >>> NFTConfig(variant="uni", conditional=False).parameter_shapes(512)
            {'tuned_scale': (1, 512), 'tuned_shift': (1, 512)}
        """
        groups = 1 if self.variant in ("uni", "constant") else 2
        shapes: dict[str, tuple[int, ...]] = {}
        if self.variant == "class_specific":
            if self.num_labels is None or self.num_negatives is None:
                raise AdapterError(
                    "NFT: a class_specific adapter needs num_labels and num_negatives; set labels and negatives "
                    "on the model first, or give both in NFTConfig."
                )
            vectors: tuple[int, ...] = (self.num_labels + self.num_negatives, dim)
        else:
            vectors = (1, 1) if self.variant == "constant" else (groups, dim)
        networks = ["shift"] if self.conditional else []
        if self.variant == "mlp":
            networks.append("text")
        else:
            shapes |= {"tuned_scale": vectors, "tuned_shift": vectors}
            networks[:0] = ["scale"] if self.conditional else []
        for network in networks:
            shapes[f"tuned_{network}_down_weight"] = (groups, self.hidden_size, dim)
            shapes[f"tuned_{network}_down_bias"] = (groups, self.hidden_size)
            shapes[f"tuned_{network}_up_weight"] = (groups, dim, self.hidden_size)
            shapes[f"tuned_{network}_up_bias"] = (groups, dim)
        return shapes
