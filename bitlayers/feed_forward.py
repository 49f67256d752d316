"""BitFeedForward: the MLP block of a transformer with quantized projections."""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, PrecisionWarning
from bitcore.ops import cuda_decoding
from bitlayers.changes import CountsChanges
from bitlayers.linear import RMS_NORM_EPS, BitLinear
from bitlayers.linear_group import linear_group
from bitlayers.rms_norm import plain_norm, rms_norm

Activation = Literal["silu", "relu2", "gelu"]


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2 (arXiv 2109.08668), the activation of BitNet b1.58 2B4T.

    In float16 a PrecisionWarning says that bfloat16 is to be used: squares overflow from 256 on.
    """
    if warns("relu2", x.dtype) and not torch.compiler.is_compiling():
        warnings.warn("relu(x)^2 overflows in float16 where x is 256 or more: use bfloat16", PrecisionWarning, 2)
    return F.relu(x).square()


def warns(activation: Activation, dtype: torch.dtype) -> bool:
    """Whether an activation warns of inputs of `dtype`; then no operator over more than it may take its place."""
    return activation == "relu2" and dtype == torch.float16


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu2": relu_squared, "gelu": F.gelu}


class BitFeedForward(CountsChanges, nn.Module):
    """down_proj(sub_norm(activation(gate_proj(x)) * up_proj(x))), or without a gate down_proj(activation(up_proj(x))).

    Outside training gate and up are one operator call (`linear_group`). Parameters are named as in Hugging Face's Llama
    and BitNet. gated "silu" is SwiGLU (arXiv 2002.05202), gated "relu2" with sub_norm is BitNet b1.58 2B4T's.

    Args:
        hidden_size: width of x and y.
        intermediate_size: width in between.
        activation: "silu", "relu2" or "gelu".
        gated: whether there is a gate_proj.
        bias: whether the projections have one.
        sub_norm: an RMSNorm in front of down_proj, `ffn_sub_norm` (BitNet b1.58).
        norm_eps: of it.
        quant_config: of the projections; BitNet b1.58 if None.
        device, dtype: of the parameters.

    x is [..., hidden_size], as y.

    Raises:
        ArgumentError: `activation` is unknown.
        ShapeError, DtypeError, DeviceError: x does not fit.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation = "silu",
        *,
        gated: bool = True,
        bias: bool = False,
        sub_norm: bool = False,
        norm_eps: float = RMS_NORM_EPS,
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ArgumentError("activation", repr(activation), f"one of {', '.join(ACTIVATIONS)}")
        self.activation = activation

        def projection(in_features: int, out_features: int) -> BitLinear:
            return BitLinear(in_features, out_features, bias, quant_config, device=device, dtype=dtype)

        self.gate_proj = projection(hidden_size, intermediate_size) if gated else None
        self.up_proj = projection(hidden_size, intermediate_size)
        self.down_proj = projection(intermediate_size, hidden_size)
        self.ffn_sub_norm = nn.RMSNorm(intermediate_size, norm_eps, device=device, dtype=dtype) if sub_norm else None

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self._activated(x))
        return output

    def _activated(self, x: Tensor) -> Tensor:
        activation, norm = ACTIVATIONS[self.activation], self.ffn_sub_norm
        if self.gate_proj is None:
            y = activation(self.up_proj(x))
        else:
            gate, up = linear_group((self.gate_proj, self.up_proj), x)
            plain = (None, 0.0) if norm is None else plain_norm(norm, gate)
            if plain is not None and cuda_decoding.serves(gate) and not warns(self.activation, gate.dtype):
                return cuda_decoding.gated_activation(gate, up, self.activation, *plain)
            y = activation(gate) * up
        return y if norm is None else rms_norm(norm, y)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
