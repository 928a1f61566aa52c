"""The NFT tuner: puts `NFTLayer` around a model's `similarity`, and checks what is loaded into it."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ...errors import AdapterError
from ...similarity import OODSimilarity
from ..checking import check_shapes
from .config import NFTConfig
from .layer import NFTLayer

__all__ = ["NFTModel"]


class NFTModel(BaseTuner):
    """A model whose text features every image moves a little: what `get_peft_model(model, NFTConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "tuned_"
    tuner_layer_cls = NFTLayer
    target_module_mapping = {"oodclip": ["similarity"]}

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        model_type = model_config.get("model_type")
        if peft_config.target_modules is None and model_type not in self.target_module_mapping:
            raise AdapterError(
                f"NFT acts on an OODCLIPForImageClassification, got a {type(self.model).__name__} (model type "
                f"{model_type!r}). Load the checkpoint with hf_oodclip.OODCLIPForImageClassification.from_pretrained."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: NFTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if not isinstance(target, NFTLayer | OODSimilarity):
            raise AdapterError(
                f"NFT acts on the `similarity` of a model; {current_key!r} is a {type(target).__name__}. "
                "Leave target_modules out, and load no other adapter onto `similarity` with it."
            )
        device = next(self.model.parameters()).device
        bank = getattr(parent, "text_bank", None)
        if bank is not None:
            peft_config.settle_classes(len(bank.label_embeds), len(bank.negative_embeds))
        if isinstance(target, NFTLayer):
            target.update_layer(adapter_name, peft_config, device)
        else:
            # Not _replace_module: it looks for a parameter on the module replaced, and this one has none.
            setattr(parent, target_name, NFTLayer(target, adapter_name, peft_config, device))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layer = next(module for module in model.modules() if isinstance(module, NFTLayer))
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        check_shapes(f"adapter {adapter_name!r}", config, layer.dim, shapes, cls.prefix)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
