"""Scaling and shifting (SSF) of image features, text features, or both."""

from .config import SSFConfig
from .layer import SSFLayer
from .model import SSFModel

__all__ = ["SSFConfig", "SSFLayer", "SSFModel"]
