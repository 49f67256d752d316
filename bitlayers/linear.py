"""BitLinear: nn.Linear with quantized weights and activations."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitcore.kernels.base import MAX_IN_FEATURES, check_input
from bitcore.ops import bitlinear
from bitlayers.base import BitLayer
from bitlayers.registry import register_layer
from bitlayers.rms_norm import plain_norm

INIT_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
}
RMS_NORM_EPS = 1e-5  # BitNet's


@register_layer("BitLinear")
class BitLinear(BitLayer, nn.Linear):
    """y = quantize(norm(x)) @ quantize(weight).T + bias. An nn.Linear to everything that asks.

    Args:
        in_features: K, 1 to 2**23.
        out_features: N.
        bias: whether to add a bias [N].
        quant_config: what is computed; BitNet b1.58 if None.
        init_method: of `weight`: "xavier_uniform", "xavier_normal", "kaiming_uniform" or "kaiming_normal". The bias
            starts at 0.
        norm: put an RMSNorm on the input, inside the layer (BitNet b1.58's recipe).
        device, dtype: of the parameters.

    x is [..., K], y [..., N] in x's dtype. In eval and after deploy a token with NaN or Inf gives NaN in all its
    outputs (with per_tensor activations: every token does).

    Raises:
        ShapeError, DtypeError, DeviceError: x does not fit.
        ArgumentError: a size or `init_method` is wrong.
    """

    dense_type: ClassVar[type[nn.Module] | None] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        quant_config: BitQuantConfig | None = None,
        init_method: str = "xavier_uniform",
        norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 1 <= in_features <= MAX_IN_FEATURES:
            raise ArgumentError("in_features", in_features, f"1 to {MAX_IN_FEATURES}")
        if out_features < 0:
            raise ArgumentError("out_features", out_features, "0 or more")
        if init_method not in INIT_METHODS:
            raise ArgumentError("init_method", repr(init_method), f"one of {', '.join(INIT_METHODS)}")
        self.init_method = init_method
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self.norm = nn.RMSNorm(in_features, eps=RMS_NORM_EPS, device=device, dtype=dtype) if norm else None
        self._init_quantization(quant_config)

    def reset_parameters(self) -> None:
        """Initializes `weight` by `init_method` and `bias` to 0."""
        if self.weight.numel() > 0:
            INIT_METHODS[self.init_method](self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, quant_config: BitQuantConfig | None = None, *, copy: bool = True) -> Self:
        """A BitLinear with the weights of `linear`: copied, or with copy=False the same Parameters.

        Raises:
            ArgumentError: `linear` is no nn.Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise ArgumentError("linear", f"a {type(linear).__name__}", "an nn.Linear")
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        if quant_config is not None:
            layer.quant_config = quant_config
        layer.weight = (
            nn.Parameter(linear.weight.detach().clone(), linear.weight.requires_grad) if copy else linear.weight
        )
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad) if copy else linear.bias
        return layer.train(linear.training)

    @classmethod
    def from_dense(cls, dense: nn.Linear, quant_config: BitQuantConfig | None = None, *, copy: bool = True) -> Self:
        return cls.from_linear(dense, quant_config, copy=copy)

    @property
    def _columns(self) -> int:
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            check_input(x, self.in_features, self._weight_device())
            plain = self._norm_for_kernel(x)
            if plain is not None:
                normed_linear = self._kernel_for(x.dtype).normed_linear
                return normed_linear(x, *plain, self._packed_weight(), self._parameters["bias"])
            x = self.norm(x)
        # Straight from the dictionary: nn.Module's attribute lookup takes 0.5 us, a tenth of the call of a small layer.
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if self.training:
            assert weight is not None
            kernel = self._training_kernel(x)
            return bitlinear.forward_training(x, weight, bias, self.quant_config, self.quantization_lambda, kernel)
        if not torch.is_grad_enabled():
            return self._kernel_for(x.dtype).linear(x, self._packed_weight(), bias)
        return bitlinear.forward_packed(self._kernel_for(x.dtype), x, self._packed_weight(), bias, weight)

    def _norm_for_kernel(self, x: Tensor) -> tuple[Tensor, float] | None:
        """Weight and eps, where the kernel may normalize: on a GPU; elsewhere PyTorch's order of the sum is kept."""
        if self.training or torch.is_grad_enabled() or not x.is_cuda:
            return None
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return None
        assert self.norm is not None
        return plain_norm(self.norm, x)

    def extra_repr(self) -> str:
        state = f", deployed, kernel={self.kernel.name}" if self.is_deployed else ""
        return f"{nn.Linear.extra_repr(self)}, {self.quant_config}{state}"
