"""A decoder's step on compiled CPU kernels: one position through all layers, in one operator."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcore import extensions
from bitcore.kernels import BitKernelBase
from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.ops.attention import DTYPES, MAX_HEAD_DIM
from bitcore.packed_weight import PackedWeight

ACTIVATIONS = ("relu2", "silu", "gelu")  # as the operator numbers them
MOST_UNSPLIT = 2**15  # values: from here on PyTorch divides an operator among threads, and may add in another order


@dataclass(frozen=True)
class Projection:
    """A weight with its bias."""

    weight: PackedWeight
    bias: Tensor | None


@dataclass(frozen=True)
class Norm:
    """An RMSNorm."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Layer:
    """A layer: q, k, v, o, gate, up and down, and the norms in front of q, k, v; of o; of gate, up; of down."""

    projections: Sequence[Projection]
    norms: Sequence[Norm | None]
    keys: Tensor  # [batch, kv_heads, room, head_dim]
    values: Tensor


def why_not_served(kernel: BitKernelBase, layer: Layer) -> str | None:
    """Why the operator cannot compute layers like this one on `kernel`, or None."""
    if extensions.why_missing() is not None or not isinstance(kernel, CompiledCpuKernel):
        return f"the kernel is {kernel.name}, expected a compiled CPU kernel"
    batch, _, _, head_dim = layer.keys.shape
    if layer.keys.dtype not in DTYPES:
        return f"the dtype is {layer.keys.dtype}, expected {', '.join(map(str, DTYPES))}"
    if head_dim > MAX_HEAD_DIM or head_dim % 2 != 0:
        return f"head_dim is {head_dim}, expected an even number up to {MAX_HEAD_DIM}"
    widest = max(projection.weight.in_features for projection in layer.projections)
    if batch * widest >= MOST_UNSPLIT:
        return f"{batch} rows of {widest} features, expected less than {MOST_UNSPLIT} values"
    if not serves_rows(kernel, batch):
        return "activations are quantized per tensor in a batch of several rows"
    return None


def serves_rows(kernel: BitKernelBase, rows: int) -> bool:
    """Whether each row can be quantized by itself, as the operator does."""
    config = kernel.config
    return rows == 1 or (config.activation_dtype, config.activation_granularity) != ("int8", "per_tensor")


class OpenDecoder:
    """Layers, and what is before and behind them, laid out for steps; holds its tensors as long as it lives.

    Args:
        kernel: of all layers.
        layers: one or more, of the same sizes.
        last_norm: behind them.
        embedding: int8 rows of tokens; None: steps begin with hidden states.
        head: None: steps end with hidden states.
        head_kernel: of the head: the same kernel, for its config.
        activation: one of ACTIVATIONS.
        frequencies: of the rotary embedding, float32 [head_dim / 2], radians a position.
        attention_scale: of its cosines and sines.

    Raises:
        RuntimeError: the tensors do not fit each other.
    """

    def __init__(
        self,
        kernel: CompiledCpuKernel,
        layers: Sequence[Layer],
        last_norm: Norm,
        embedding: PackedWeight | None,
        head: PackedWeight | None,
        head_kernel: CompiledCpuKernel,
        activation: str,
        frequencies: Tensor,
        attention_scale: float,
    ) -> None:
        none = torch.empty(0)
        projections = [projection for layer in layers for projection in layer.projections]
        norms = [norm for layer in layers for norm in layer.norms] + [last_norm]
        self.takes_tokens, self.gives_logits = embedding is not None, head is not None
        number: int = torch.ops.bitlab.decoder_open.default(
            [projection.weight.packed for projection in projections],
            [projection.weight.scale for projection in projections],
            [
                none if projection.weight.zero_point is None else projection.weight.zero_point
                for projection in projections
            ],
            [none if projection.bias is None else projection.bias for projection in projections],
            [none if norm is None else norm.weight for norm in norms],
            torch.tensor([0.0 if norm is None else norm.eps for norm in norms], dtype=torch.float64),
            [layer.keys for layer in layers],
            [layer.values for layer in layers],
            [] if embedding is None else [embedding.packed, embedding.scale],
            [] if head is None else [tensor for tensor in head[:3] if tensor is not None],
            frequencies,
            attention_scale,
            kernel.mode,
            head_kernel.mode,
            ACTIVATIONS.index(activation),
        )
        self._number = number
        weakref.finalize(self, torch.ops.bitlab.decoder_close.default, number)
        outputs = last_norm.weight.shape[0] if head is None else head.packed.shape[0]
        keys = layers[0].keys
        self._outputs = torch.empty(keys.shape[0], outputs, dtype=keys.dtype)

    def step(self, inputs: Tensor, past: int) -> Tensor:
        """One position of each row, behind `past` positions in the caches.

        Args:
            inputs: int64 [batch] tokens where there is an embedding, else [batch, hidden_size].
            past: positions before.

        Returns:
            [batch, vocab_size], or without a head the hidden states [batch, hidden_size]; overwritten by the next step.

        Raises:
            RuntimeError: an argument does not fit, or a tensor is not any more what it was.
        """
        torch.ops.bitlab.decoder_step.default(inputs, self._outputs, self._number, past)
        return self._outputs
