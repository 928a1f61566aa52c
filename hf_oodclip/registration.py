"""Makes transformers and PEFT know this package without importing torch until somebody needs it.

Registering needs the modules it registers with, and those take seconds to import. So each
registration waits until somebody has imported its module, and until that whole import has ended:
transformers' modules import each other, and half a module cannot be registered with.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["TASK", "register_with_libraries"]

TASK = "ood-image-classification"

_AUTO_CONFIGS = "transformers.models.auto.configuration_auto"
_AUTO_MODELS = "transformers.models.auto.modeling_auto"
_PIPELINES = "transformers.pipelines"
_PEFT = "peft"
# Modules whose imports are watched: those of transformers import each other, and ours import them.
_WATCHED = ("transformers.", f"{_PEFT}.", f"{__name__.partition('.')[0]}.")


class _ImportWatch(importlib.abc.MetaPathFinder):
    """Finds nothing itself: has the real finder's loader report when the outermost watched import ends."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], bool]] = []
        self._looking: set[str] = set()
        self._depth = 0
        self._trying = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        watched = fullname == _PEFT or fullname.startswith(_WATCHED)
        if not self.pending or not watched or fullname in self._looking:
            return None
        self._looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.discard(fullname)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_then_try(module: ModuleType) -> None:
            self._depth += 1
            try:
                run_module(module)
            finally:
                self._depth -= 1
            if self._depth == 0:
                self.try_pending()

        spec.loader.exec_module = run_then_try  # type: ignore[method-assign]
        return spec

    def try_pending(self) -> None:
        """Run the registrations whose module is there; the others stay."""
        if self._trying:
            # A registration imports modules of its own, which report here too.
            return
        self._trying = True
        try:
            before = len(self.pending) + 1
            while len(self.pending) < before:
                before = len(self.pending)
                self.pending = [register for register in self.pending if not register()]
        finally:
            self._trying = False


_watch = _ImportWatch()


def _register_config() -> bool:
    if _AUTO_CONFIGS not in sys.modules:
        return False
    from transformers import AutoConfig

    from .configuration_oodclip import OODCLIPConfig

    AutoConfig.register("oodclip", OODCLIPConfig, exist_ok=True)
    return True


def _register_model() -> bool:
    if _AUTO_MODELS not in sys.modules:
        return False
    from transformers import AutoModelForImageClassification

    from .configuration_oodclip import OODCLIPConfig
    from .modeling_oodclip import OODCLIPForImageClassification

    AutoModelForImageClassification.register(OODCLIPConfig, OODCLIPForImageClassification, exist_ok=True)
    return True


def _register_pipeline() -> bool:
    if _PIPELINES not in sys.modules:
        return False
    from transformers import AutoModelForImageClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .modeling_oodclip import OODCLIPForImageClassification
    from .pipeline_oodclip import OODImageClassificationPipeline

    if TASK in PIPELINE_REGISTRY.supported_tasks:
        return True
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
    return True


def _register_adapters() -> bool:
    if _PEFT not in sys.modules:
        return False
    from .adapters import register_adapters
    from .errors import AdapterError

    try:
        register_adapters()
    except AdapterError as error:
        # Somebody is importing PEFT, perhaps for something else: using one of our adapters raises this again.
        from transformers.utils import logging

        logging.get_logger("hf_oodclip.registration").warning(str(error))
    return True


def register_with_libraries() -> None:
    """Register config, model, pipeline and adapters, each as soon as its library has what it needs."""
    _watch.pending = [_register_config, _register_model, _register_pipeline, _register_adapters]
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _watch.try_pending()
