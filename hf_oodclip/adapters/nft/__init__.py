"""Negative feature tuning (NFT, KR-NFT): text features of labels and negatives that every image moves a little."""

from .config import NFTConfig
from .gemm import TextMap, TunedCosines, tuned_cosines
from .layer import NFTLayer
from .model import NFTModel

__all__ = ["NFTConfig", "NFTLayer", "NFTModel", "TextMap", "TunedCosines", "tuned_cosines"]
