"""CLIP-Adapter: a small network whose output is mixed into the image feature."""

from .config import CLIPAdapterConfig
from .layer import CLIPAdapterLayer
from .model import CLIPAdapterModel

__all__ = ["CLIPAdapterConfig", "CLIPAdapterLayer", "CLIPAdapterModel"]
