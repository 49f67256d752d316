"""attach_quantizer: for models that `convert` has changed, and that transformers is to save."""

from typing import Any, TypeVar

from transformers import PreTrainedModel

from bitcore.exceptions import ArgumentError
from bitmodels.layer_groups import METHOD, groups_of
from bitmodels.plugins.transformers.config import BitLabQuantConfig
from bitmodels.plugins.transformers.quantizer import BitLabHfQuantizer

ModelType = TypeVar("ModelType", bound=PreTrainedModel)


def attach_quantizer(model: ModelType) -> ModelType:
    """Lets `save_pretrained` of a transformers model with Bit layers write a checkpoint that `from_pretrained` reads.

    What is saved, in training or deployed, is what the layers are then. Returns the model.

    Raises:
        ArgumentError: the model is none of transformers, is quantized by another method, or has no Bit layers.
    """
    if not isinstance(model, PreTrainedModel):
        raise ArgumentError("model", f"a {type(model).__name__}", "a PreTrainedModel of transformers")
    other = getattr(model, "hf_quantizer", None)
    if other is not None and not isinstance(other, BitLabHfQuantizer):
        raise ArgumentError("model", f"quantized by {type(other).__name__}", "one without a quantizer")
    config = BitLabQuantConfig(layers=groups_of(model))
    untyped: Any = model  # transformers sets these on models that it loads
    untyped.hf_quantizer = BitLabHfQuantizer(config)
    model.config.quantization_config = config
    untyped.is_quantized = True
    untyped.quantization_method = METHOD
    return model
