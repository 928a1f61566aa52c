"""Task residuals (TaskRes): a learnt vector for every label, added to its text feature."""

from .config import TaskResidualConfig
from .layer import TaskResidualLayer
from .model import TaskResidualModel

__all__ = ["TaskResidualConfig", "TaskResidualLayer", "TaskResidualModel"]
