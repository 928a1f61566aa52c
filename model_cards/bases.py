"""The CLIP a model was made of: its name without folders, its licence, and whether the weights are still its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers.utils import cached_file

from hf_oodclip import pocket_path
from hf_oodclip.errors import CardError
from hf_oodclip.hub import POCKET, is_pocket

from .escaping import last_name

__all__ = ["Base", "find_base", "has_weights_of", "hub_id", "public_name"]


@dataclass(frozen=True)
class Base:
    """What is known of the CLIP under a model.

    Args:
        name: Its name, without the folders of a machine.
        hub_id: Its id on the Hub, None for a local folder.
        revision: Its revision there, where one is recorded.
        licence: What its own card says under `license`, None where that is unknown.
        is_unchanged: Whether the model's weights were found equal to its own; None for adapters.
    """

    name: str
    hub_id: str | None
    revision: str | None = None
    licence: str | None = None
    is_unchanged: bool | None = None

    @property
    def is_pocket(self) -> bool:
        """Whether it is the CLIP that ships with this package."""
        return self.name == POCKET


def public_name(source: str) -> str:
    """Return the name of a base without a machine's folders; `pocket` for the one that ships here.

    Example:
        >>> public_name(pocket_path()), public_name("/data/my-clip"), public_name("openai/clip-vit-base-patch16")
        ('pocket', 'my-clip', 'openai/clip-vit-base-patch16')
    """
    return POCKET if is_pocket(source) else last_name(source)


def hub_id(name: str) -> str | None:
    """Return a name that can be an id on the Hub and is no folder here, else None."""
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists() else None


def find_base(source: str, revision: str | None = None, is_unchanged: bool | None = None) -> Base:
    """Return what is known of a base, from its own card where that is at hand."""
    name = public_name(source)
    where = pocket_path() if name == POCKET else source
    identity = hub_id(source)
    return Base(name, identity, revision, _licence(where, revision if identity else None), is_unchanged)


def _licence(source: str, revision: str | None) -> str | None:
    try:
        path = cached_file(source, "README.md", _raise_exceptions_for_missing_entries=False, revision=revision)
        found = None if path is None else ModelCard.load(path, ignore_metadata_errors=True).data.license
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


@torch.no_grad()
def has_weights_of(folder: Path, source: str) -> bool:
    """Return whether every weight of a CLIP is in a saved model, the same to the bit in the model's precision.

    Args:
        folder: Folder of a whole model.
        source: Folder or Hub id of the CLIP.

    Raises:
        CardError: The CLIP cannot be loaded.
    """
    from transformers import CLIPModel

    try:
        clip: Any = CLIPModel.from_pretrained(pocket_path() if is_pocket(source) else source)
    except (OSError, ValueError) as error:
        raise CardError(
            f"The base {source!r} cannot be loaded ({error}): give the folder or Hub id of the CLIP this model was "
            "made of, or leave the base out."
        ) from error
    wanted = dict(clip.named_parameters())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                expected = wanted.pop(name.removeprefix("clip."), None) if name.startswith("clip.") else None
                if expected is not None:
                    found = file.get_tensor(name)
                    if found.shape != expected.shape or not torch.equal(found, expected.to(found.dtype)):
                        return False
    return not wanted
