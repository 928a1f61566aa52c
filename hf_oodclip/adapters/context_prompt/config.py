"""What a context prompt adapter looks like: how many learnt words, where they stand, what moves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import AdapterError, unknown_name
from ..base import OODAdapterConfig, class_numbers_error
from ..peft_types import OODPeftType

__all__ = ["NEGATIVE_CONTEXTS", "POSITIONS", "ContextPromptConfig"]

POSITIONS = ("end", "middle", "front")
# How the negatives are prompted.
NEGATIVE_CONTEXTS = {
    "none": "by their own templates, as without the adapter",
    "shared": "by the learnt words of the labels",
    "separate": "by learnt words of their own",
}


@dataclass
class ContextPromptConfig(OODAdapterConfig):
    """Settings of an adapter that learns the words around a class name in the space of token embeddings.

    With `t_1 ... t_n` learnt vectors the prompt of a class is

        [start] t_1 ... t_n <class name> . [end]        (position "end")

    and its text feature what the frozen text tower makes of it. A conditional adapter (CoCoOp) adds
    `W2 relu(W1 v + b1) + b2` to every `t_i`, with `v` the unit-length image feature: then the text tower
    runs for every image. Without it, the text features are made once and inference costs nothing extra.

    CoOp: the defaults. CoCoOp: `conditional=True, context_words="a photo of a"`. NegPT and ConNegPT:
    `negative_context="separate", num_context=2`, with `conditional=True` for the latter.

    Source: CoOp (Zhou et al., IJCV 2022), CoCoOp (Zhou et al., CVPR 2022); NegPT and ConNegPT are
    baselines of KR-NFT (ACM MM 2025).

    Example:
        >>> import hf_oodclip
        >>> from peft import get_peft_model
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> get_peft_model(model, ContextPromptConfig(num_context=4)).get_nb_trainable_parameters()[0]
        640
    """

    num_context: int = field(default=16, metadata={"help": "Learnt words; taken from `context_words` if given."})
    position: str = field(
        default="end", metadata={"help": "Where the class name stands: at the `end`, `middle` or `front`."}
    )
    context_words: str | None = field(
        default=None, metadata={"help": "Words to start from, such as `a photo of a`; None starts at random."}
    )
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of a random start."})
    class_specific: bool = field(default=False, metadata={"help": "Learn words of its own for every label."})
    conditional: bool = field(default=False, metadata={"help": "Let the image move the words (CoCoOp)."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "Hidden width of the image network; None is a 16th of the embedding width."}
    )
    negative_context: str = field(
        default="none",
        metadata={
            "help": "How negatives are prompted: "
            + "; ".join(f"`{name}`: {what}" for name, what in NEGATIVE_CONTEXTS.items())
        },
    )
    suffix: str = field(default=".", metadata={"help": "What ends the prompt."})
    num_labels: int | None = field(
        default=None, metadata={"help": "Labels of a class-specific adapter; None takes those of the model."}
    )

    adapter_type: ClassVar[OODPeftType] = OODPeftType.OODCLIP_CONTEXT_PROMPT
    title: ClassVar[str] = "Context prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position not in POSITIONS:
            raise unknown_name("position of the class name", self.position, POSITIONS)
        if self.negative_context not in NEGATIVE_CONTEXTS:
            raise unknown_name("negative_context", self.negative_context, NEGATIVE_CONTEXTS)
        self.check_count("num_context", 1)
        if self.hidden_size is not None:
            self.check_count("hidden_size", 1)
        for name in ("class_specific", "conditional"):
            if not isinstance(getattr(self, name), bool):
                raise AdapterError(f"{self.title}: {name} must be True or False, got {getattr(self, name)!r}.")
        if self.context_words is not None and not (isinstance(self.context_words, str) and self.context_words.strip()):
            raise AdapterError(
                f"{self.title}: context_words must be words in one string, or None for a random start, got "
                f"{self.context_words!r}."
            )
        if not isinstance(self.suffix, str):
            raise AdapterError(f"{self.title}: suffix must be a string such as '.' or '', got {self.suffix!r}.")
        if not isinstance(self.init_std, int | float) or not 0 <= self.init_std < float("inf"):
            raise AdapterError(f"{self.title}: init_std must be at least 0, got {self.init_std!r}.")
        if self.class_specific and self.negative_context == "shared":
            raise AdapterError(
                f"{self.title}: words of every label's own cannot be shared with negatives; use "
                "negative_context='separate' or 'none'."
            )
        if self.num_labels is not None:
            self.check_count("num_labels", 1)
            if not self.class_specific:
                raise AdapterError(f"{self.title}: num_labels belongs to class_specific=True; leave it out.")

    @property
    def is_class_specific(self) -> bool:
        """Whether the adapter belongs to the very classes it was trained with."""
        return self.class_specific

    def settle_classes(self, num_labels: int, num_negatives: int) -> None:
        """Take the number of labels of a model, where this adapter depends on it, or check it.

        Args:
            num_labels: Labels of the model; 0 when they come after the adapter.
            num_negatives: Its negatives, of any number.

        Raises:
            AdapterError: The adapter is for another number.
        """
        if not self.class_specific or num_labels == 0:
            return
        if self.num_labels is None:
            self.num_labels = num_labels
        if self.num_labels != num_labels:
            raise class_numbers_error(self.title, (self.num_labels, None), (num_labels, num_negatives))

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name.

        Args:
            dim: Width of the image embeddings.
            text_width: Width of the text tower's token embeddings.

        Raises:
            AdapterError: A class-specific adapter does not know its number of labels.

        Example:
            >>> ContextPromptConfig(num_context=4, negative_context="separate").parameter_shapes(512, 512)
            {'context_labels': (4, 512), 'context_negatives': (4, 512)}
        """
        vectors: tuple[int, ...] = (self.num_context, text_width)
        shapes: dict[str, tuple[int, ...]] = {"context_labels": vectors}
        if self.class_specific:
            if self.num_labels is None:
                raise AdapterError(
                    f"{self.title}: class_specific needs num_labels; set labels on the model first, or give it."
                )
            shapes["context_labels"] = (self.num_labels, *vectors)
        if self.negative_context == "separate":
            shapes["context_negatives"] = vectors
        if self.conditional:
            hidden = self.hidden_size or max(1, dim // 16)
            shapes |= {
                "context_down_weight": (hidden, dim),
                "context_down_bias": (hidden,),
                "context_up_weight": (text_width, hidden),
                "context_up_bias": (text_width,),
            }
        return shapes
