"""The specification in plain PyTorch: every config, every device, any shape and strides. The oracle of every test.

int8 activations, one scale a tensor or channel:

    sum = sum over k of (value - zero_point) * q          exact, int32
    y   = float32(sum) * (activation_scale * weight_scale) + bias

int8 activations, one scale a group of input features:

    y   = (((0 + float32(sum_0) * weight_scale_0) + float32(sum_1) * weight_scale_1) + ...) * activation_scale + bias

All in float32, in this order, no fused multiply-add, rounded to x's dtype at the end. With floating-point activations
y = (x @ values.T) * scale + bias in float32, where the order of the sum is PyTorch's.
"""

import torch
from torch import Tensor

from bitcore.kernels.base import BitKernelBase, check_linear_arguments
from bitcore.kernels.registry import KernelRegistry
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize, per_weight, quantize_activations

LARGEST_WEIGHT = {"ternary": 1, "int4": 15, "int8": 128}  # minus the zero point
EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here, so a sum that stays below is exact in any order


@KernelRegistry.register("reference", priority=0)
class ReferenceKernel(BitKernelBase):
    """Unpacks the weights and multiplies with PyTorch. It defines the numbers for all other kernels."""

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        check_linear_arguments(x, weight, bias, self.config)
        device_type = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"
        with torch.autocast(device_type, enabled=False):  # exact sums need float32
            y = self._linear(x.reshape(-1, weight.in_features), weight)
            if bias is not None:
                y = y + bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def _linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        values = weight.values(self.config)
        grouped = weight.scale.dim() == 2
        if self.config.activation_dtype == "float32":
            if grouped:
                return x.float() @ dequantize(values, weight.scale, weight.zero_point, self.config).T
            return (x.float() @ self._centered(values, weight).T) * weight.scale
        q, x_scale = quantize_activations(x, self.config.activation_granularity)
        centered = self._centered(values, weight)
        if not grouped:
            return self._exact_product(q.float(), centered) * (x_scale * weight.scale)
        y = torch.zeros(x.shape[0], values.shape[0], device=x.device)
        for group in range(weight.scale.shape[1]):
            columns = slice(group * self.config.group_size, (group + 1) * self.config.group_size)
            y = y + self._exact_product(q[:, columns].float(), centered[:, columns]) * weight.scale[:, group]
        return y * x_scale

    def _centered(self, values: Tensor, weight: PackedWeight) -> Tensor:
        """Values - zero_point as float32 [N, K]."""
        if weight.zero_point is None:
            return values.float()
        return (values - per_weight(weight.zero_point, values, self.config)).float()

    def _exact_product(self, q: Tensor, values: Tensor) -> Tensor:
        """float32(q @ values.T) with an exact integer sum, by float32 products that cannot round."""
        largest = LARGEST_WEIGHT[self.config.weight_dtype]
        step = EXACT_FLOAT32 // (128 * largest) - 1
        if q.shape[1] <= step:
            return q @ values.T
        parts = [
            (a @ b.T).to(torch.int32)
            for a, b in zip(torch.split(q, step, 1), torch.split(values, step, 1), strict=True)
        ]
        return torch.stack(parts).sum(0).float()
