"""Configuration of an OODCLIP model: the CLIP it wraps, its labels, score and calibrations."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

__all__ = ["OODCLIPConfig"]


@strict
class OODCLIPConfig(PreTrainedConfig):
    """Everything but tensors that a full OODCLIP checkpoint needs to be restored.

    Labels are kept in `id2label`, as in every image classifier of transformers.

    Args:
        clip_config: Configuration of the wrapped `CLIPModel`.
        templates: Prompt templates of the labels.
        template_average: How a prompt ensemble is averaged (`normalized`, `raw`, `unnormalized`).
        num_negatives: How many negatives the text bank holds; their words are in `negatives.json`.
        score: Name, options and state shapes of the score in use; None chooses one from the labels.
        calibrations: One record a calibrated score.

    Example:
        >>> OODCLIPConfig(id2label={0: "cat", 1: "dog"}).num_labels
        2
    """

    model_type = "oodclip"
    sub_configs_defaults = {"clip_config": SubConfigSpec(config_class=CLIPConfig)}

    clip_config: dict | PreTrainedConfig | None = None
    label_templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    template_average: str = "normalized"
    num_negatives: int = 0
    score_record: dict[str, Any] | None = None
    calibrations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and kwargs.get("num_labels") is None:
            # Without this, transformers would invent LABEL_0 and LABEL_1.
            self.id2label, self.label2id = {}, {}
        for name in ("auto_map", "custom_pipelines"):
            # A repo names its code here, for those who lack this package.
            kwargs.pop(name, None)
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: the stub of a repo leads here, and saving again is to copy no code of this package."""

    @property
    def label_names(self) -> list[str]:
        """Class names, in the order of the logits."""
        names: dict[Any, str] = dict(self.id2label or {})
        return [names[index] for index in range(len(names))]
