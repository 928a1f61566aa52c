"""Context prompts (CoOp, CoCoOp, NegPT, ConNegPT): learnt vectors in place of the words around a class name."""

from .config import ContextPromptConfig
from .layer import ContextPromptLayer
from .model import ContextPromptModel

__all__ = ["ContextPromptConfig", "ContextPromptLayer", "ContextPromptModel"]
