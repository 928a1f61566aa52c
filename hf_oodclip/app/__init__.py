"""The demo people can open in a browser: `oodclip app`, and the same as a Space (extra `demo`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine as Engine
    from .inputs import Limits as Limits
    from .serve import launch as launch
    from .space import push_space as push_space
    from .space import write_space as write_space

_EXPORTS = {
    "Engine": "engine",
    "Limits": "inputs",
    "launch": "serve",
    "push_space": "space",
    "write_space": "space",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
