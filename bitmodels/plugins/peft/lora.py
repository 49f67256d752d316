"""LoRA adapters on Bit layers: y = layer(x) + scaling * B(A(x)), the adapter in floating point (arXiv 2106.09685).

Merging adds scaling * B A to the master weight, which is then quantized as any master is. What the layer gives
afterwards is not what layer and adapter gave together: an update much smaller than a ternary step is lost. A deployed
layer has no master to merge into.
"""

from typing import Any, TypeVar

from peft import LoraConfig
from peft.tuners.lora import layer as lora
from torch import nn

from bitcore.exceptions import ArgumentError, LayerStateError
from bitlayers import BitConv2d, BitEmbedding, BitLayer, BitLinear

ModelType = TypeVar("ModelType", bound=nn.Module)

STARTS_FROM_NOTHING = (True, False, "gaussian", "orthogonal", "eva")  # init_lora_weights that read no base weight


class _OnBitLayer(nn.Module):
    """What an adapter on a Bit layer does otherwise than on a dense one. First of its bases."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's, into the master weight. Raises LayerStateError where the layer is deployed."""
        if self._bit_layer.is_deployed:
            raise LayerStateError(
                f"{type(self._bit_layer).__name__} is deployed: it has no master weight to merge an adapter into. "
                "Merge before deploy(), or leave the adapter beside the layer"
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
        self._forget_packed()

    def unmerge(self) -> None:
        """As PEFT's."""
        super().unmerge()  # type: ignore[misc]
        self._forget_packed()

    @property
    def _bit_layer(self) -> BitLayer:
        layer: BitLayer = self.get_base_layer()  # type: ignore[operator]
        return layer

    def _forget_packed(self) -> None:
        """PEFT writes through `weight.data`, which leaves no trace that the layer could see."""
        self._bit_layer.train(self._bit_layer.training)


class LoraBitLinear(_OnBitLayer, lora.Linear):
    """LoRA on a BitLinear."""


class LoraBitEmbedding(_OnBitLayer, lora.Embedding):
    """LoRA on a BitEmbedding."""


class LoraBitConv2d(_OnBitLayer, lora.Conv2d):
    """LoRA on a BitConv2d. Raises LayerStateError where it is deployed: PEFT takes sizes from the float weight."""

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(base_layer, BitConv2d) and base_layer.is_deployed:
            raise LayerStateError("BitConv2d is deployed: PEFT needs its float weight. Add the adapter before deploy()")
        super().__init__(base_layer, *args, **kwargs)  # type: ignore[no-untyped-call]


def prepare_model_for_lora(model: ModelType, config: LoraConfig) -> ModelType:
    """Gets `model` and `config` ready for `peft.get_peft_model` and `PeftModel.from_pretrained(..., config=config)`.

    Adapters on Bit layers will be those above, and deployed layers stay as they are when the model around them is put
    into training mode. Returns `model`.

    Raises:
        ArgumentError: `config` is none of LoRA; `model` has no Bit layers; or the adapter would begin from, or train
            with, float weights that deployed layers have not.
    """
    if not isinstance(config, LoraConfig):
        raise ArgumentError("config", f"a {type(config).__name__}", "a LoraConfig")
    layers = [module for module in model.modules() if isinstance(module, BitLayer)]
    if not layers:
        raise ArgumentError("model", f"a {type(model).__name__} without Bit layers", "one that convert() has changed")
    deployed = [layer for layer in layers if layer.is_deployed]
    if deployed:
        _check_needs_no_base_weight(config)
    classes: dict[type[nn.Module], type[nn.Module]] = {
        BitLinear: LoraBitLinear,
        BitEmbedding: LoraBitEmbedding,
        BitConv2d: LoraBitConv2d,
    }
    config._register_custom_module(classes)
    for layer in deployed:
        layer.frozen = True
    return model


def _check_needs_no_base_weight(config: LoraConfig) -> None:
    why = "deployed layers have no float weights"
    if config.use_dora:
        raise ArgumentError("config.use_dora", True, f"False: {why}")
    if config.init_lora_weights not in STARTS_FROM_NOTHING:
        known = ", ".join(map(str, STARTS_FROM_NOTHING))
        raise ArgumentError("config.init_lora_weights", config.init_lora_weights, f"one of {known}: {why}")
