"""Checkpoints of BitLab's own format, which transformers cannot read: a sentence says what can."""

from typing import Any, NoReturn

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bitcore.exceptions import ArgumentError
from bitmodels.registry import MODEL_REGISTRY


class OwnConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """What transformers finds by the model_type of such a checkpoint. It cannot be made."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> NoReturn:
        """Raises ArgumentError, a ValueError: AutoTokenizer goes on without a config then."""
        expected = (
            "one of transformers': bitmodels.AutoBitModel.from_pretrained reads it, and export_hf of the model, or "
            "`bitlab export MODEL DST --format hf`, writes a language model for transformers"
        )
        raise ArgumentError("the checkpoint", f"a {cls.model_type} of BitLab's own format", expected)


def refuse_own_checkpoints() -> None:
    """From now on transformers refuses them so. A model_type that it has itself, vit, stays its own."""
    for model_type in MODEL_REGISTRY:
        if model_type not in CONFIG_MAPPING:
            AutoConfig.register(model_type, type("OwnConfig", (OwnConfig,), {"model_type": model_type}))
