"""The place where context prompts act: between the token embeddings and the text tower."""

from torch import nn

__all__ = ["OODPromptLearner"]


class OODPromptLearner(nn.Module):
    """Leaves the prompts as they are; a context prompt adapter around it puts learnt vectors into them.

    Args:
        text_width: Width of the text tower's token embeddings.
        dim: Width of the joint embedding space.
    """

    def __init__(self, text_width: int, dim: int) -> None:
        super().__init__()
        self.text_width = text_width
        self.dim = dim

    def check_classes(self, num_labels: int, num_negatives: int) -> None:
        """Accept any number of classes; an adapter around this may know its own, and raise `AdapterError`."""

    def acting_adapter(self) -> str | None:
        """Return the name of the adapter that acts here: none does."""
        return None
