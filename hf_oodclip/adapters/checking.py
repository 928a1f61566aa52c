"""What an adapter folder holds, checked before anything is changed by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from ..errors import AdapterError
from ..hub_files import find_file
from . import ADAPTERS, get_adapter_classes, register_adapters

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "WEIGHTS_FILE",
    "adapter_weights_file",
    "check_adapter",
    "check_parameters",
    "check_same_labels",
    "find_options",
    "read_adapter_config",
    "refuse_pickle",
]

WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_PICKLED_FILE = "adapter_model.bin"
_FIND_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class HasParameterShapes(Protocol):
    """The config of an adapter of this package."""

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]: ...


def read_adapter_config(source: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of `adapter_config.json` of a folder or Hub repo, or None where there is none.

    Raises:
        AdapterError: The file is not JSON.
    """
    path = find_file(source, ADAPTER_CONFIG_FILE, options)
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is not JSON ({error}): fetch or save the adapter again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise AdapterError(f"{path} does not say which kind of adapter it is (peft_type): save the adapter again.")
    return content


def find_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a `from_pretrained` that say where on the Hub a file is."""
    return {name: options[name] for name in _FIND_OPTIONS if options.get(name) is not None}


def refuse_pickle(source: str, options: Mapping[str, Any]) -> None:
    """Raise `AdapterError` when the only weights of an adapter are pickled ones."""
    if find_file(source, WEIGHTS_FILE, options) is None and find_file(source, _PICKLED_FILE, options) is not None:
        raise AdapterError(
            f"{source} has {_PICKLED_FILE}, a pickle, which can run code when it is opened; this package reads "
            f"{WEIGHTS_FILE} only. Ask for the adapter in safetensors (the default of save_pretrained)."
        )


def adapter_weights_file(source: str, options: Mapping[str, Any]) -> str:
    """Return the path of the safetensors weights of an adapter.

    Raises:
        AdapterError: There are none, or only pickled ones, which this package never opens.
    """
    refuse_pickle(source, options)
    path = find_file(source, WEIGHTS_FILE, options)
    if path is None:
        raise AdapterError(f"{source} has an adapter_config.json but no {WEIGHTS_FILE}: the folder is incomplete.")
    return path


def check_adapter(
    source: str, options: Mapping[str, Any], widths: tuple[int, int], num_labels: int, num_negatives: int
) -> Any:
    """Return the config of an adapter of this package if it fits a model, None for other kinds: PEFT's business.

    Args:
        source: Folder or Hub id.
        options: Where on the Hub, see `find_options`.
        widths: Widths of the embeddings and of the text tower's token embeddings.
        num_labels: Its labels; 0 when they come later.
        num_negatives: Its negatives.

    Raises:
        AdapterError: The folder is incomplete, holds a pickle, or does not fit.
        UnknownNameError: The config names a variant that does not exist.
    """
    content = read_adapter_config(source, options)
    own = {info.peft_type.value: name for name, info in ADAPTERS.items()}
    if content is None or content["peft_type"] not in own:
        return None
    register_adapters()
    config_class, model_class = get_adapter_classes(own[content["peft_type"]])
    config: Any = config_class.from_peft_type(**content)
    path = adapter_weights_file(source, options)
    try:
        with safe_open(path, "pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({error}): fetch or save the adapter again.") from error
    check_shapes(source, config, *widths, shapes, model_class.prefix)
    config.settle_classes(num_labels, num_negatives)
    return config


def check_same_labels(trained: list[str], given: list[str]) -> None:
    """Raise `AdapterError` where a class-specific adapter would be used with other labels than it was trained with."""
    if trained != given:
        raise AdapterError(
            f"This adapter is class-specific: it belongs to the labels it was trained with ({', '.join(trained[:5])}"
            f"{', ...' if len(trained) > 5 else ''}) and cannot take others. Unload it, or train an adapter without "
            "class-specific parts."
        )


def check_shapes(
    what: str, config: Any, dim: int, text_width: int, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> None:
    """Raise unless the tensors of a file are those of the config, see `check_parameters`.

    Args:
        what: How to call the adapter in a message.
        config: The adapter's config.
        dim: Embedding width of the model.
        text_width: Width of its text tower's token embeddings.
        shapes: Shapes in the file, by full name.
        prefix: Prefix of the adapter's parameters.
    """
    marker = f".{prefix}"
    found = {
        name.rpartition(marker)[2]: shape
        for name, shape in shapes.items()
        if marker in name or not config.modules_to_save
    }
    check_parameters(what, config, dim, text_width, found, prefix)


def check_parameters(
    what: str,
    config: HasParameterShapes,
    dim: int,
    text_width: int,
    found: Mapping[str, tuple[int, ...]],
    prefix: str,
) -> None:
    """Raise unless the weights are exactly those of the config at this embedding width.

    Args:
        what: How to call the adapter in a message.
        config: The adapter's config.
        dim: Embedding width of the model.
        text_width: Width of its text tower's token embeddings.
        found: Shapes in the file, by name of the parameter without prefix.
        prefix: Prefix of the parameters.

    Raises:
        AdapterError: Parameters are missing, unknown, or of another shape.
    """
    wanted = {name.removeprefix(prefix): shape for name, shape in config.parameter_shapes(dim, text_width).items()}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        raise AdapterError(
            f"The weights of {what} do not fit its adapter_config.json: missing {missing or 'none'}, unexpected "
            f"{unknown or 'none'}. The file is incomplete, or its config was edited: fetch or save the adapter again."
        )
    wrong = {name: (found[name], shape) for name, shape in wanted.items() if found[name] != shape}
    if wrong:
        name, (is_shape, must) = next(iter(wrong.items()))
        raise AdapterError(
            f"The weights of {what} do not fit this model: {prefix}{name} has shape {is_shape}, where embeddings of "
            f"width {dim} and its config need {must}. Was the adapter trained on another base, or its config "
            "edited? Load the base that its adapter_config.json names."
        )
