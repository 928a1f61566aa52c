"""Makes transformers know this package without importing torch until somebody needs it.

Registering needs the modules it registers with, and those take seconds to import. So each
registration waits: it runs at once when its module is already there, else right after somebody
imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["register_with_transformers", "when_imported"]

TASK = "ood-image-classification"

_AUTO_CONFIGS = "transformers.models.auto.configuration_auto"
_AUTO_MODELS = "transformers.models.auto.modeling_auto"
_BASE_MODEL = "transformers.modeling_utils"
_PIPELINES = "transformers.pipelines"
_OWN_MODEL = "hf_oodclip.modeling_oodclip"
_NEEDED_BY_MODEL = (_AUTO_MODELS, _BASE_MODEL, _OWN_MODEL)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: has the real finder's loader call back once a module has run."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[], None]]] = {}
        self.finished: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        callbacks = self.waiting.pop(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        run_module = loader.exec_module

        def run_then_call_back(module: ModuleType) -> None:
            run_module(module)
            self.finished.add(fullname)
            for callback in callbacks:
                callback()

        loader.exec_module = run_then_call_back  # type: ignore[method-assign]
        return spec


_finder = _AfterImport()


def _is_imported(module_name: str) -> bool:
    if module_name in _finder.finished:
        return True
    module = sys.modules.get(module_name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def when_imported(module_name: str, callback: Callable[[], None]) -> None:
    """Call back once a module is fully imported: at once when it is, else right after its import."""
    if _is_imported(module_name):
        callback()
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.waiting.setdefault(module_name, []).append(callback)


def _running(module_names: Sequence[str]) -> bool:
    return any(name in sys.modules and not _is_imported(name) for name in module_names)


def _register_config() -> None:
    if not _is_imported(_AUTO_CONFIGS) or _running((_AUTO_MODELS,)):
        # The models import the configs, and CLIP's config reads the list of models: wait for both.
        return
    from transformers import AutoConfig

    from .configuration_oodclip import OODCLIPConfig

    AutoConfig.register("oodclip", OODCLIPConfig, exist_ok=True)


def _register_model() -> None:
    if not _is_imported(_AUTO_MODELS) or _running(_NEEDED_BY_MODEL):
        # These modules import each other; whichever finishes last calls again.
        return
    from transformers import AutoModelForImageClassification

    from .configuration_oodclip import OODCLIPConfig
    from .modeling_oodclip import OODCLIPForImageClassification

    AutoModelForImageClassification.register(OODCLIPConfig, OODCLIPForImageClassification, exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModelForImageClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .modeling_oodclip import OODCLIPForImageClassification
    from .pipeline_oodclip import OODImageClassificationPipeline

    # Our own class loads plain CLIP checkpoints, which the Auto class would take for another model...
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=OODImageClassificationPipeline,
        pt_model=(OODCLIPForImageClassification,),
        type="image",
    )
    # ...but a saved pipeline names its model class to people without this package: only Auto is found there.
    OODImageClassificationPipeline._registered_impl = {
        TASK: {
            "impl": OODImageClassificationPipeline,
            "pt": (AutoModelForImageClassification,),
            "type": "image",
        }
    }


def register_with_transformers() -> None:
    """Register config, model and pipeline, each as soon as transformers has what it needs."""
    for name in (_AUTO_CONFIGS, _AUTO_MODELS):
        when_imported(name, _register_config)
    for name in _NEEDED_BY_MODEL:
        when_imported(name, _register_model)
    when_imported(_PIPELINES, _register_pipeline)
