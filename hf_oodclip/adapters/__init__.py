"""The adapters: one folder each, one line each in the table below. They are real PEFT tuners.

To add an adapter, write `adapters/<name>/` (config, layer, model, as in peft), add a member to
`OODPeftType` and a line to `ADAPTERS`, and write `tests/adapters/test_<name>.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError, unknown_name
from .peft_types import OODPeftType

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

__all__ = ["ADAPTERS", "AdapterInfo", "OODPeftType", "get_adapter_classes", "list_adapters", "register_adapters"]


@dataclass(frozen=True)
class AdapterInfo:
    """Where an adapter is implemented and where it comes from, for documentation, cards and tables."""

    classes: str
    peft_type: OODPeftType
    title: str
    paper: str
    venue: str
    year: int
    url: str


ADAPTERS: dict[str, AdapterInfo] = {
    "clip_adapter": AdapterInfo(
        classes="clip_adapter:CLIPAdapterConfig:CLIPAdapterModel",
        peft_type=OODPeftType.OODCLIP_CLIP_ADAPTER,
        title="CLIP-Adapter",
        paper="CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
        venue="IJCV",
        year=2024,
        url="https://arxiv.org/abs/2110.04544",
    ),
    "context_prompt": AdapterInfo(
        classes="context_prompt:ContextPromptConfig:ContextPromptModel",
        peft_type=OODPeftType.OODCLIP_CONTEXT_PROMPT,
        title="Context prompts (CoOp, CoCoOp)",
        paper="Learning to Prompt for Vision-Language Models; Conditional Prompt Learning for Vision-Language Models",
        venue="IJCV and CVPR",
        year=2022,
        url="https://arxiv.org/abs/2109.01134",
    ),
    "nft": AdapterInfo(
        classes="nft:NFTConfig:NFTModel",
        peft_type=OODPeftType.OODCLIP_NFT,
        title="Negative Feature Tuning",
        paper="Knowledge Regularized Negative Feature Tuning of Vision-Language Models for "
        "Out-of-Distribution Detection",
        venue="ACM MM",
        year=2025,
        url="https://arxiv.org/abs/2507.19847",
    ),
    "ssf": AdapterInfo(
        classes="ssf:SSFConfig:SSFModel",
        peft_type=OODPeftType.OODCLIP_SSF,
        title="Scaling and shifting (SSF)",
        paper="Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
        venue="NeurIPS",
        year=2022,
        url="https://arxiv.org/abs/2210.08823",
    ),
    "task_residual": AdapterInfo(
        classes="task_residual:TaskResidualConfig:TaskResidualModel",
        peft_type=OODPeftType.OODCLIP_TASK_RESIDUAL,
        title="Task residuals (TaskRes)",
        paper="Task Residual for Tuning Vision-Language Models",
        venue="CVPR",
        year=2023,
        url="https://arxiv.org/abs/2211.10277",
    ),
}


def list_adapters() -> list[str]:
    """Return the names of the adapters of this package.

    Example:
        >>> "nft" in list_adapters()
        True
    """
    return sorted(ADAPTERS)


def get_adapter_classes(name: str) -> tuple[type[PeftConfig], type[BaseTuner]]:
    """Return the config class and the tuner class of an adapter.

    Raises:
        UnknownNameError: No adapter has that name; the message suggests the nearest.

    Example:
        >>> [found.__name__ for found in get_adapter_classes("nft")]
        ['NFTConfig', 'NFTModel']
    """
    if name not in ADAPTERS:
        raise unknown_name("adapter", name, ADAPTERS, "PEFT's own (LoRA, ...) are made with peft's configs.")
    module_name, config_name, model_name = ADAPTERS[name].classes.split(":")
    module = importlib.import_module(f"{__name__}.{module_name}")
    return getattr(module, config_name), getattr(module, model_name)


def register_adapters() -> None:
    """Make PEFT know the adapters of this package; calling it again changes nothing.

    Raises:
        AdapterError: This PEFT has no tables to register in, or another class sits in our place.
    """
    tables = _peft_tables()
    for name, info in ADAPTERS.items():
        config_class, model_class = get_adapter_classes(name)
        wanted: tuple[Any, ...] = (config_class, model_class, model_class.prefix)
        for table, value in zip(tables, wanted, strict=True):
            found = table.get(info.peft_type, value)
            if found is not value and not _is_reloaded(found, value):
                raise AdapterError(
                    f"PEFT's tables already hold {found!r} under {info.peft_type.value!r}, where hf_oodclip "
                    f"registers {value!r}. Two packages use one name: uninstall one, or import only one of them."
                )
        for table, value in zip(tables, wanted, strict=True):
            table[info.peft_type] = value


def _peft_tables() -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any]]:
    import peft

    try:
        from peft.mapping import (
            PEFT_TYPE_TO_CONFIG_MAPPING,
            PEFT_TYPE_TO_PREFIX_MAPPING,
            PEFT_TYPE_TO_TUNER_MAPPING,
        )
    except ImportError as error:
        raise AdapterError(
            f"peft {peft.__version__} has closed the door that hf_oodclip registers its adapters through "
            f"({error}); install a version this package supports: pip install 'peft>=0.21,<0.22'."
        ) from error
    return PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING  # type: ignore[return-value]


def _is_reloaded(found: Any, value: Any) -> bool:
    """Tell whether both are one class of ours, before and after a module was reloaded."""
    if isinstance(value, str):
        return found == value
    names = ("__module__", "__qualname__")
    return all(getattr(found, name, None) == getattr(value, name) for name in names)
