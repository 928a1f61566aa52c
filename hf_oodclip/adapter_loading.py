"""Loading adapters onto a model: the base they name, and checks before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import CONFIG_NAME

from .adapter_record import AdapterRecord
from .adapters.checking import (
    ADAPTER_CONFIG_FILE,
    check_adapter,
    check_same_labels,
    find_options,
    read_adapter_config,
    refuse_pickle,
)
from .assets import pocket_path
from .errors import CheckpointError
from .hub import is_pocket
from .hub_files import commit_of, find_file

__all__ = ["AdapterLoadingMixin", "ModelSource", "find_base"]


@dataclass(frozen=True)
class ModelSource:
    """What a `from_pretrained` was given: base weights, and perhaps an adapter for them.

    Args:
        base: Folder or Hub id of the base.
        options: The options to load it with.
        adapter: Folder or Hub id of the adapter, None without one.
        adapter_name: What to call it.
        adapter_options: The options to load the adapter with.
        adapter_is_beside: Whether it lies beside the base: then transformers loads it with the base.
    """

    base: str
    options: dict[str, Any]
    adapter: str | None = None
    adapter_name: str | None = None
    adapter_options: dict[str, Any] = field(default_factory=dict)
    adapter_is_beside: bool = False

    def load_adapter_onto(self, model: Any) -> None:
        """Load the adapter, if there is one, with the labels, negatives, score and calibrations it was saved with."""
        if self.adapter is not None:
            record = AdapterRecord.load(self.adapter, self.adapter_options)
            if record is not None:
                model._check_adapter(self.adapter, self.adapter_options, record.labels, record.negatives or ())
                record.apply(model)
        if self.adapter is not None and not self.adapter_is_beside:
            model.load_adapter(self.adapter, self.adapter_name, adapter_kwargs=self.adapter_options)


def find_base(source: str, kwargs: Mapping[str, Any], base: str | Path | None = None) -> ModelSource:
    """Return where the base weights of a folder or Hub repo are, every repo pinned to one commit.

    That is the base an adapter names, or the source itself when it is no adapter, or an adapter that
    lies beside a whole model.

    Args:
        source: Folder or Hub id.
        kwargs: The options `from_pretrained` got.
        base: Base to use instead of the one the adapter names.

    Raises:
        CheckpointError: The adapter names no base, or one that is not there; `base` without an adapter.
        AdapterError: Its `adapter_config.json` cannot be read.
    """
    options = dict(kwargs)
    adapter_options = {**find_options(options), **(options.get("adapter_kwargs") or {})}
    # The Auto classes have looked up the base already, and say here where they came from.
    adapter = adapter_options.pop("_adapter_model_path", None) or source
    adapter_options = find_options(adapter_options)
    adapter_options.update(_pin(find_file(adapter, ADAPTER_CONFIG_FILE, adapter_options)))
    content = read_adapter_config(adapter, adapter_options)
    if content is None:
        if base is not None:
            raise CheckpointError(f"base={str(base)!r} is for adapters, and {source} is none: leave base out.")
        options.update(_pin(find_file(source, CONFIG_NAME, find_options(options))))
        return ModelSource(source, options)
    if base is None and (Path(adapter) / CONFIG_NAME).is_file():
        return ModelSource(source, options, adapter, None, adapter_options, adapter_is_beside=True)
    named = _base_of(adapter, {"base_model_name_or_path": base} if base is not None else content)
    adapter_name = options.pop("adapter_name", None)
    # These say where the adapter is; its config says which revision of the base it was trained on.
    for name in ("adapter_kwargs", "revision", "subfolder"):
        options.pop(name, None)
    if content.get("revision") and named == content["base_model_name_or_path"]:
        options["revision"] = content["revision"]
    options.update(_pin(find_file(named, CONFIG_NAME, find_options(options))))
    return ModelSource(named, options, adapter, adapter_name, adapter_options)


def _pin(path: str | None) -> dict[str, str]:
    """Return the option that makes later files of a repo come from the commit that this one is of."""
    commit = commit_of(path)
    return {} if commit is None else {"revision": commit}


def _base_of(adapter: str, content: Mapping[str, Any]) -> str:
    base = content.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(
            f"{adapter} is an adapter whose adapter_config.json names no base (base_model_name_or_path): pass "
            "base=... or load the base yourself, then model.load_adapter(...)."
        )
    if is_pocket(base):
        return pocket_path()
    if Path(base).is_absolute() and not Path(base).exists():
        raise CheckpointError(
            f"{adapter} is an adapter for {base}, which does not exist here: pass base=..., where you have it (folder "
            "or Hub id), or load the base yourself, then model.load_adapter(...)."
        )
    return str(base)


class AdapterLoadingMixin:
    """Checks an adapter of this package before transformers puts it on the model."""

    if TYPE_CHECKING:
        prompt_learner: Any
        similarity: Any
        text_bank: Any

        @property
        def labels(self) -> list[str]: ...

    def load_adapter(
        self, peft_model_id: str | Path | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load an adapter from a folder or the Hub and make it active, as `PreTrainedModel.load_adapter`.

        A model without labels takes those the adapter was saved with, and its negatives, score and
        calibrations; a model that has labels keeps its own.

        Args:
            peft_model_id: Folder or Hub id of the adapter.
            adapter_name: Name to give it; "default" when None.
            args: As in `PreTrainedModel.load_adapter`.
            kwargs: As in `PreTrainedModel.load_adapter` (`is_trainable`, `revision`, ...).

        Raises:
            AdapterError: The folder is incomplete, holds a pickle, or does not fit this model.
        """
        if peft_model_id is not None:
            peft_model_id = str(peft_model_id)
            load_config = kwargs.get("load_config")
            downloads = {} if load_config is None else load_config.download_kwargs
            options = find_options({**downloads, **kwargs, **(kwargs.get("adapter_kwargs") or {})})
            options.update(_pin(find_file(peft_model_id, ADAPTER_CONFIG_FILE, options)))
            if load_config is None:
                # The files that transformers goes on to read are of the commit that is checked here.
                kwargs = {name: value for name, value in kwargs.items() if name not in options}
                kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), **options}
            # With load_config it is from_pretrained that calls: it sees to the record when the model is whole.
            record = AdapterRecord.load(peft_model_id, options) if load_config is None else None
            classes: tuple[Any, Any] = (self.text_bank.label_embeds, self.text_bank.negative_embeds)
            if record is not None and not self.labels:
                classes = (record.labels, record.negatives or ())
            config = self._check_adapter(peft_model_id, options, *classes)
            if record is not None and self.labels:
                if config is not None and config.is_class_specific:
                    check_same_labels(record.labels, self.labels)
                record.check_base(self)
            elif record is not None:
                record.apply(self)
        return super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)  # type: ignore[misc]

    def _check_adapter(self, source: str, options: Mapping[str, Any], labels: Any, negatives: Any) -> Any:
        refuse_pickle(source, options)
        widths = (self.similarity.dim, self.prompt_learner.text_width)
        with warnings.catch_warnings():
            # What PEFT has to say about the config is said when it loads it, not twice.
            warnings.simplefilter("ignore")
            return check_adapter(source, options, widths, len(labels), len(negatives))

    def _check_classes(self, labels: list[str], num_negatives: int) -> None:
        """Raise `AdapterError` where a loaded adapter belongs to other classes than these."""
        for layer in (self.similarity, self.prompt_learner):
            layer.check_classes(len(labels), num_negatives)
            for config in getattr(layer, "configs", {}).values():
                if config.is_class_specific and self.labels:
                    check_same_labels(self.labels, labels)
