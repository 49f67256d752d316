"""TernaryLinear: weight-only ternary by the threshold rule, as in the older ternary networks."""

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers.linear import BitLinear
from bitlayers.registry import register_layer


@register_layer("TernaryLinear")
class TernaryLinear(BitLinear):
    """y = x @ ternarize(weight).T + bias with floating-point activations.

    Args:
        in_features, out_features, bias, device, dtype: as nn.Linear.
        threshold_factor: t = sign(w) where abs(w) > threshold_factor * max(abs(w)), else 0.
        per_channel: one scale an output feature, else one for all.
        quantize: False is nn.Linear.
        backend: "auto" (the best kernel), "python" (the reference), or any kernel's name.

    Raises:
        KernelNotFoundError: `backend` is no kernel's name; with its reasons at first use, if it cannot serve.
    """

    dense_type = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold_factor: float = 0.05,
        per_channel: bool = True,
        quantize: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = BitQuantConfig(
            weight_granularity="per_channel" if per_channel else "per_tensor",
            weight_quantizer="threshold",
            threshold_factor=threshold_factor,
            activation_dtype="float32",
        )
        super().__init__(in_features, out_features, bias, config, device=device, dtype=dtype)
        self.quantize = quantize
        self.backend = backend
        if backend != "auto":
            self._kernel_name = "reference" if backend == "python" else backend
            with KernelRegistry.use(self._kernel_name):  # refuses a name that no kernel has
                pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantize:
            return nn.functional.linear(x, self.weight, self.bias)
        return super().forward(x)
