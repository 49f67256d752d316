"""Training on quantized values as they are: int8 products forward, floating point backward, small saved tensors.

forward    w -> packed, scale      x -> q, its scale      y = the kernel's product of packed weights, as in inference
saved      packed (2 bits a weight), q (8 bits an activation), scales
backward   dx = dy @ dequantize(packed)     dw = dy.T @ dequantize(q)     quantization is the identity (STE)

Several weights that read the same x quantize and save it once. Floating-point activations are saved as they are and
multiplied with the dequantized weight, which is made anew in the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from typing_extensions import Self

from bitcore.kernels import BitKernelBase
from bitcore.kernels.training import TrainingOperators
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import quantizer_for


def fused_operators(kernel: BitKernelBase | None, x: Tensor, weights: Sequence[Tensor]) -> TrainingOperators | None:
    """The operators with which `kernel` trains weights on `x`, or None where the PyTorch definitions have to serve.

    Distributed tensors and other subclasses stay with PyTorch, which knows what a mean over their shards is; so do
    torch.func's transforms.
    """
    operators = kernel.training_operators() if kernel is not None else None
    if operators is None or torch._C._are_functorch_transforms_active():
        return None
    if any(tensor.numel() == 0 or is_traceable_wrapper_subclass(tensor) for tensor in (x, *weights)):
        return None
    return operators


def fused_linears(
    kernel: BitKernelBase,
    operators: TrainingOperators,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """[..., N] for each weight [N, K], of x [..., K], in x's dtype or that of autocast; gradients by the STE."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return list(_FusedLinears.apply(kernel, operators, dtype, x, *weights, *biases))  # type: ignore[no-untyped-call]


class _FusedLinears(torch.autograd.Function):
    """apply(kernel, operators, dtype, x, *weights, *biases) -> ys."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: BitKernelBase,
        operators: TrainingOperators,
        dtype: torch.dtype,
        x: Tensor,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        packed = [operators.quantize_weight(weight) for weight in weights if weight is not None]
        kept: tuple[Tensor, ...] = (x,)
        if operators.config.activation_dtype == "int8":
            kept = operators.quantize_activations(x.reshape(-1, x.shape[-1]))
            # Not always `.to`: torch.compile loses the gradient of a result that `.to` returns as it is (torch 2.11).
            ys = [y if y.dtype == dtype else y.to(dtype) for y in _multiply(kernel, x, packed, biases)]
        else:
            ys = [
                F.linear(
                    x.to(dtype), operators.dequantize_weight(weight, dtype), None if bias is None else bias.to(dtype)
                )
                for weight, bias in zip(packed, biases, strict=True)
            ]
        masters = weights if operators.config.ste == "clipped" else ()
        ctx.save_for_backward(*[w.packed for w in packed], *[w.scale for w in packed], *kept, *masters)
        ctx.operators, ctx.count = operators, count
        ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
        ctx.dtypes = [None if parameter is None else parameter.dtype for parameter in parameters]
        ctx.set_materialize_grads(False)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        count: int = ctx.count
        saved = _Saved.of(ctx)
        x_gradient: Tensor | None = None
        parameter_gradients: list[Tensor | None] = [None] * (2 * count)
        for i in reversed(range(count)):  # autograd's order, so that gradients of x add up as one by one
            dy = gradients[i]
            if dy is None:
                continue
            dy = dy.reshape(-1, dy.shape[-1])
            if ctx.needs_input_grad[3]:
                its_gradient = (dy @ saved.weight(i, dy.dtype)).to(ctx.x_dtype)
                x_gradient = its_gradient if x_gradient is None else x_gradient + its_gradient
            if ctx.needs_input_grad[4 + i]:
                parameter_gradients[i] = saved.through(i, _product(dy.T, saved.x(dy.dtype), ctx.dtypes[i]))
            if ctx.needs_input_grad[4 + count + i]:
                parameter_gradients[count + i] = dy.sum(0, dtype=torch.float32).to(ctx.dtypes[count + i])
        if x_gradient is not None:
            x_gradient = x_gradient.reshape(ctx.x_shape)
        return None, None, None, x_gradient, *parameter_gradients


class _Saved:
    """What the forward pass has left, in floating point on demand."""

    def __init__(self, operators: TrainingOperators, in_features: int, count: int, tensors: tuple[Tensor, ...]) -> None:
        self.operators = operators
        self.weights = [
            PackedWeight(packed, scale, None, in_features)
            for packed, scale in zip(tensors[:count], tensors[count : 2 * count], strict=True)
        ]
        kept = 2 if operators.config.activation_dtype == "int8" else 1
        self.activations, self.masters = tensors[2 * count :][:kept], tensors[2 * count + kept :]
        self.made: Tensor | None = None

    @classmethod
    def of(cls, ctx: Any) -> Self:
        return cls(ctx.operators, ctx.x_shape[-1], ctx.count, ctx.saved_tensors)

    def weight(self, i: int, dtype: torch.dtype) -> Tensor:
        """The i-th dequantized weight [N, K]."""
        return self.operators.dequantize_weight(self.weights[i], dtype)

    def x(self, dtype: torch.dtype) -> Tensor:
        """The dequantized activations [tokens, K], made once."""
        if self.made is None:
            x, *scale = self.activations
            if scale:
                self.made = self.operators.dequantize_activations(x, scale[0], dtype)
            else:
                self.made = x.reshape(-1, x.shape[-1]).to(dtype)
        return self.made

    def through(self, i: int, gradient: Tensor) -> Tensor:
        """The part of the i-th weight's `gradient` that the STE lets through."""
        if not self.masters:
            return gradient
        return gradient * quantizer_for(self.operators.config).within_range(self.masters[i], self.weights[i].scale)


def _multiply(
    kernel: BitKernelBase, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    return kernel.linear_group(x, weights, biases) if len(weights) > 1 else [kernel.linear(x, weights[0], biases[0])]


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`: with float32 sums written as they are where the GPU's products can."""
    if a.is_cuda and dtype == torch.float32 and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)
