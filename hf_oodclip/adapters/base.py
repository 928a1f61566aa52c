"""What the adapters of this package share: config, layer and tuner that PEFT can work with."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from ..adapter_record import AdapterRecord
from ..errors import AdapterError
from . import register_adapters
from .checking import check_same_labels, check_shapes, find_options, refuse_pickle
from .peft_types import OODPeftType

if TYPE_CHECKING:
    from ..modeling_oodclip import OODCLIPForImageClassification

__all__ = ["OODAdapterConfig", "OODAdapterLayer", "OODTuner", "class_numbers_error"]


@dataclass
class OODAdapterConfig(PeftConfig):
    """Settings that every adapter of this package has; each adds its own.

    Beside its own file, a config that PEFT saves writes the labels, templates, negatives, score and
    calibrations of the model it sits on, so that the folder restores all of them.
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module it acts on; None is the one made for it."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of modules to leave alone, as in every PEFT config."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save whole, as in every PEFT config."}
    )

    adapter_type: ClassVar[OODPeftType]
    title: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        # Says at once what is wrong where importing PEFT could only warn.
        register_adapters()
        self.peft_type = self.adapter_type  # type: ignore[assignment]
        self._record: AdapterRecord | None = None
        self._model: Any = None

    @property
    def is_class_specific(self) -> bool:
        """Whether the adapter belongs to the very classes it was trained with."""
        return False

    def settle_classes(self, num_labels: int, num_negatives: int) -> None:
        """Take the numbers of classes of a model, where this adapter depends on them, or check them.

        Args:
            num_labels: Labels of the model; 0 when they come after the adapter.
            num_negatives: Its negatives.

        Raises:
            AdapterError: The adapter is for other numbers.
        """

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name.

        Args:
            dim: Width of the embeddings.
            text_width: Width of the text tower's token embeddings.
        """
        raise NotImplementedError

    def check_count(self, name: str, least: int) -> None:
        """Raise `AdapterError` unless a field is a whole number of at least `least`."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AdapterError(f"{self.title}: {name} must be a whole number, at least {least}, got {value!r}.")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Read the config of an adapter folder or Hub repo, as every PEFT config does.

        Raises:
            AdapterError: The adapter's weights are a pickle, which PEFT would go on to open.
        """
        options = find_options({**kwargs, "subfolder": subfolder})
        refuse_pickle(str(pretrained_model_name_or_path), options)
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if isinstance(config, OODAdapterConfig):
            config._record = AdapterRecord.load(str(pretrained_model_name_or_path), options)
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, and beside it what the model needs besides weights."""
        model = None if self._model is None else self._model()
        if model is not None and self.revision is None:
            self.revision = model._base_revision
        super().save_pretrained(save_directory, **kwargs)
        if model is not None and model.labels:
            AdapterRecord.of(model).save(save_directory)

    def belong_to(self, model: OODCLIPForImageClassification) -> None:
        """Remember the model whose labels, negatives, score and calibrations are saved with this config."""
        self._model = weakref.ref(model)


class OODAdapterLayer(nn.Module, BaseTunerLayer):
    """Holds the adapters of one kind by name, around the module they act on.

    A kind of adapter lists its parameters in `adapter_layer_names`, all starting with the tuner's prefix,
    and may override `initialise`; zero otherwise.

    Args:
        base_layer: The module it acts on.
        adapter_name: Name of the first adapter.
        config: Its settings.
        device: Where its parameters go.
        model: The model it is put into.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names = ("configs",)
    title: ClassVar[str] = "Adapter"

    def __init__(
        self, base_layer: Any, adapter_name: str, config: Any, device: torch.device | None = None, model: Any = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, Any] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.update_layer(adapter_name, config, device, model)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.base_layer.dim

    @property
    def text_width(self) -> int:
        """Width of the text tower's token embeddings; 0 where it does not matter."""
        return getattr(self.base_layer, "text_width", 0)

    def update_layer(
        self, adapter_name: str, config: Any, device: torch.device | None = None, model: Any = None
    ) -> None:
        """Add an adapter."""
        for name, shape in config.parameter_shapes(self.dim, self.text_width).items():
            values = torch.zeros(shape, device=device)
            self.initialise(name, values, config, model)
            getattr(self, name)[adapter_name] = nn.Parameter(values)
        self.configs[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def initialise(self, name: str, values: Tensor, config: Any, model: Any) -> None:
        """Fill a new parameter in place.

        Args:
            name: Its name.
            values: Zeros of its shape.
            config: Settings of the adapter.
            model: The model the layer is put into, or None.
        """

    def check_classes(self, num_labels: int, num_negatives: int, adapter_name: str | None = None) -> None:
        """Raise `AdapterError` when an adapter that knows its classes is given another number of them.

        Args:
            num_labels: How many labels there are, or would be.
            num_negatives: How many negatives.
            adapter_name: Ask this adapter; all of them when None.
        """
        for name, config in self.configs.items():
            if adapter_name in (None, name):
                config.settle_classes(num_labels, num_negatives)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise AdapterError(
            f"{self.title} cannot be merged into the model's weights; keep the adapter active, or call unload() for "
            "the model without it."
        )

    def unmerge(self) -> None:
        """Do nothing: it is never merged."""

    def acting_adapter(self) -> str | None:
        """Return the name of the adapter that acts, or None when the base does.

        Raises:
            AdapterError: Two adapters of this kind are active at once.
        """
        acting = [name for name in self.active_adapters if name in self.configs]
        if self.disable_adapters or not acting:
            return None
        if len(acting) > 1:
            raise AdapterError(
                f"The {self.title} adapters {acting} are active together, but they do not add up: activate one, "
                f"such as set_adapter({acting[0]!r})."
            )
        return acting[0]


class OODTuner(BaseTuner):
    """Puts a layer around the module an adapter acts on, and checks what is loaded into it."""

    acts_on: ClassVar[str] = "similarity"
    title: ClassVar[str] = "Adapter"
    tuner_layer_cls: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.target_module_mapping = {"oodclip": [cls.acts_on]}
        cls.title = cls.tuner_layer_cls.title

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        model_type = model_config.get("model_type")
        if peft_config.target_modules is None and model_type not in self.target_module_mapping:
            raise AdapterError(
                f"{self.title} acts on an OODCLIPForImageClassification, got a {type(self.model).__name__} (model "
                f"type {model_type!r}). Load the checkpoint with "
                "hf_oodclip.OODCLIPForImageClassification.from_pretrained."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: Any,
        current_key: str,
        **_: Any,
    ) -> None:
        layer_class = self.tuner_layer_cls
        is_base = hasattr(target, "check_classes") and not isinstance(target, BaseTunerLayer)
        if target_name != self.acts_on or not (is_base or isinstance(target, layer_class)):
            raise AdapterError(
                f"{self.title} acts on the `{self.acts_on}` of a model; {current_key!r} is a "
                f"{type(target).__name__}. Leave target_modules out, and load no adapter of another kind onto "
                f"`{self.acts_on}` with it."
            )
        device = next(self.model.parameters()).device
        bank = getattr(parent, "text_bank", None)
        if bank is not None:
            record = peft_config._record
            if record is not None and not parent.labels:
                record.apply(parent)
                bank = parent.text_bank
            elif record is not None and peft_config.is_class_specific:
                check_same_labels(record.labels, parent.labels)
            peft_config.settle_classes(len(bank.label_embeds), len(bank.negative_embeds))
            peft_config.belong_to(parent)
        if isinstance(target, layer_class):
            target.update_layer(adapter_name, peft_config, device, parent)
        else:
            # Not _replace_module: it looks for a parameter on the module replaced, and this one has none.
            setattr(parent, target_name, layer_class(target, adapter_name, peft_config, device, parent))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layer: Any = next(module for module in model.modules() if isinstance(module, cls.tuner_layer_cls))
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        check_shapes(f"adapter {adapter_name!r}", config, layer.dim, layer.text_width, shapes, cls.prefix)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def class_numbers_error(title: str, mine: Sequence[int | None], given: Sequence[int]) -> AdapterError:
    """Return the error for a class-specific adapter on a model with other numbers of classes.

    Args:
        title: What kind of adapter it is.
        mine: Numbers of labels and negatives it is for; None where any number will do.
        given: Those of the model.
    """
    counts = [each for each in zip(("labels", "negatives"), mine, given, strict=True) if each[1] is not None]
    own = " and ".join(f"{number} {kind}" for kind, number, _ in counts)
    other = " and ".join(str(number) for _, _, number in counts)
    return AdapterError(
        f"This class-specific {title} adapter is for {own}, not for {other}. Use exactly the classes it was trained "
        "with, or an adapter that works with any classes."
    )
