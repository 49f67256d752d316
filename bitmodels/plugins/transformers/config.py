"""BitLabQuantConfig: quantization_config="bitlab" of transformers, as a request and as config.json holds it."""

import re
from types import NoneType
from typing import Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError, ConfigError
from bitmodels.formats import BitNetQuantization
from bitmodels.layer_groups import METHOD, read_groups


@register_quantization_config(METHOD)
class BitLabQuantConfig(QuantizationConfigMixin):
    """What `from_pretrained(..., quantization_config=...)` makes of the nn.Linear layers of a model.

    Args:
        quant_config: of the new layers; a dict of its fields will do. None: BitNet b1.58, and floating-point
            activations for ternary values that a checkpoint without a quantization_config holds in floating point
            (TriLM).
        modules_to_not_convert: beginnings or ends of qualified names. None: the output head and what is tied to it; a
            list is taken as it is.
        trainable: keep the checkpoint's float weights as masters, for quantization-aware training. False packs them.
        layers: written by `save_pretrained`: what each layer is. It takes the place of everything above.

    Raises:
        ArgumentError, ConfigError: an argument is wrong.
        CheckpointError: `layers` is not what `save_pretrained` writes.
    """

    def __init__(
        self,
        quant_config: BitQuantConfig | dict[str, Any] | None = None,
        modules_to_not_convert: list[str] | None = None,
        trainable: bool = False,
        layers: object = None,
        quant_method: str = METHOD,
        **unknown: object,
    ) -> None:
        if unknown:
            known = "quant_config, modules_to_not_convert, trainable"
            raise ArgumentError("BitLabQuantConfig", f"given {', '.join(sorted(unknown))}", f"only {known}")
        if quant_method != METHOD:
            raise ArgumentError("quant_method", repr(quant_method), repr(METHOD))
        if not isinstance(modules_to_not_convert, (list, tuple, NoneType)):
            raise ArgumentError("modules_to_not_convert", repr(modules_to_not_convert), "a list of names, or None")
        for entry in modules_to_not_convert or ():
            if not isinstance(entry, str) or re.fullmatch(r"[\w.-]+", entry) is None:
                raise ArgumentError("modules_to_not_convert", f"with {entry!r}", "plain names of modules")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.quant_config = None if quant_config is None else BitQuantConfig.model_validate(quant_config)
        self.modules_to_not_convert = modules_to_not_convert
        self.trainable = trainable
        self.layers = None if layers is None else read_groups(layers)
        self.bitnet: BitNetQuantization | None = None  # of the checkpoint that is read; never written

    def for_bitnet(self, found: dict[str, Any]) -> Self:
        """The same request for a checkpoint whose own quantization_config `found` is of quant_method "bitnet".

        Raises:
            CheckpointError: `found` is none that transformers writes.
            ArgumentError: the request is for other weights than ternary ones, or chooses modules, which the checkpoint
                has chosen.
        """
        if self.quant_config is not None and self.quant_config.weight_dtype != "ternary":
            raise ArgumentError(
                "quant_config.weight_dtype", self.quant_config.weight_dtype, "ternary, as the checkpoint's weights"
            )
        if self.modules_to_not_convert is not None:
            raise ArgumentError(
                "modules_to_not_convert", self.modules_to_not_convert, "None: the checkpoint has its own"
            )
        request = type(self)(self.quant_config, trainable=self.trainable)
        try:
            request.bitnet = BitNetQuantization.model_validate(found)
        except ConfigError as error:
            raise CheckpointError(f"quantization_config: {error}") from error
        return request

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "quant_method": METHOD,
            "quant_config": None if self.quant_config is None else self.quant_config.model_dump(mode="json"),
            "modules_to_not_convert": self.modules_to_not_convert,
            "trainable": self.trainable,
            "layers": None if self.layers is None else [group.model_dump(mode="json") for group in self.layers],
        }
