"""The `adapter` of a recipe, a type with options, as a config of PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_oodclip.adapters import ADAPTERS, get_adapter_classes
from hf_oodclip.errors import OODCLIPError, RecipeError, unknown_name

__all__ = ["adapter_config"]


def adapter_config(adapter: Mapping[str, Any]) -> Any:
    """Return the config of an adapter of this package, or of PEFT's LoRA.

    Args:
        adapter: Its `type`, a name from `list_adapters()` or `lora`, and its options.

    Raises:
        UnknownNameError: There is no such adapter, or it has no such option.
        AdapterError, RecipeError: An option has a value it cannot have.

    Example:
        >>> adapter_config({"type": "nft", "hidden_size": 4}).hidden_size
        4
    """
    kind, options = adapter.get("type"), {name: value for name, value in adapter.items() if name != "type"}
    if kind not in (*ADAPTERS, "lora"):
        raise unknown_name("adapter type", kind, (*ADAPTERS, "lora"))
    config_class: Any
    if kind == "lora":
        import peft

        config_class = peft.LoraConfig
    else:
        config_class, _ = get_adapter_classes(str(kind))
    allowed = [each.name for each in dataclasses.fields(config_class) if each.init]
    for option in options:
        if option not in allowed:
            raise unknown_name(f"option of adapter {kind!r}", option, allowed)
    try:
        return config_class(**options)
    except OODCLIPError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"adapter {kind!r} cannot be made of {options}: {error}.") from error
