"""hf_oodclip: CLIP classifiers that know what they do not know.

Importing this package makes `pipeline("ood-image-classification")`, the Auto classes of transformers and
the adapters of this package in PEFT work; everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_with_libraries

if TYPE_CHECKING:
    from .adapters import list_adapters as list_adapters
    from .adapters.clip_adapter import CLIPAdapterConfig as CLIPAdapterConfig
    from .adapters.context_prompt import ContextPromptConfig as ContextPromptConfig
    from .adapters.nft import NFTConfig as NFTConfig
    from .adapters.ssf import SSFConfig as SSFConfig
    from .adapters.task_residual import TaskResidualConfig as TaskResidualConfig
    from .assets import pocket_path as pocket_path
    from .calibration import Calibration as Calibration
    from .configuration_oodclip import OODCLIPConfig as OODCLIPConfig
    from .errors import OODCLIPError as OODCLIPError
    from .export import export_onnx as export_onnx
    from .mining import mine_negatives as mine_negatives
    from .modeling_oodclip import OODCLIPForImageClassification as OODCLIPForImageClassification
    from .negatives import Negatives as Negatives
    from .pipeline_oodclip import OODImageClassificationPipeline as OODImageClassificationPipeline
    from .scores import Score as Score
    from .scores import ScoreInputs as ScoreInputs
    from .scores import get_score as get_score
    from .scores import list_scores as list_scores
    from .scores import register_score as register_score
    from .similarity import OODImageClassifierOutput as OODImageClassifierOutput
    from .templates import list_templates as list_templates
    from .text_bank import TextEncoder as TextEncoder

__version__ = "0.1.0"

_EXPORTS = {
    "CLIPAdapterConfig": "adapters.clip_adapter",
    "Calibration": "calibration",
    "ContextPromptConfig": "adapters.context_prompt",
    "NFTConfig": "adapters.nft",
    "Negatives": "negatives",
    "OODCLIPConfig": "configuration_oodclip",
    "OODCLIPError": "errors",
    "OODCLIPForImageClassification": "modeling_oodclip",
    "OODImageClassificationPipeline": "pipeline_oodclip",
    "OODImageClassifierOutput": "similarity",
    "SSFConfig": "adapters.ssf",
    "Score": "scores",
    "ScoreInputs": "scores",
    "TaskResidualConfig": "adapters.task_residual",
    "TextEncoder": "text_bank",
    "export_onnx": "export",
    "get_score": "scores",
    "list_adapters": "adapters",
    "list_scores": "scores",
    "list_templates": "templates",
    "mine_negatives": "mining",
    "pocket_path": "assets",
    "register_score": "scores",
}
__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


register_with_libraries()
