"""The fused operators of training on GPUs: launches of training.py and arrange.py behind traceable operators."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from bitcore.kernels.training import TrainingOperators
from bitcore.kernels.triton.launch import OPTIONS, arrange
from bitcore.kernels.triton.training import (
    pack_kernel,
    row_statistics_kernel,
    scale_tokens_kernel,
    scales_kernel,
    unpack_kernel,
)
from bitcore.packed_weight import PackedWeight
from bitcore.packing import WEIGHTS_PER_BYTE

TILE = 1024  # weights of a step
BYTES_TILE = 256
TOKEN_TILE = 2048


class TritonTrainingOperators(TrainingOperators):
    """For every GPU that Triton compiles for, also beside the CUDA kernels' products."""

    def _quantize_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        per_channel = config.weight_granularity == "per_channel"
        absmean = config.weight_quantizer == "absmean"
        per_byte = WEIGHTS_PER_BYTE[config.packed_format]
        packed, scale = triton_quantize_ternary(weight, per_channel, absmean, config.threshold_factor, per_byte)
        return packed, scale

    def dequantize_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        per_byte = WEIGHTS_PER_BYTE[self.config.packed_format]
        values: Tensor = triton_dequantize_ternary(weight.packed, weight.scale, weight.in_features, per_byte, dtype)
        return values

    def quantize_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = triton_quantize_tokens(x, self.config.activation_granularity == "per_tensor")
        return q, scale

    def dequantize_activations(self, q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        x: Tensor = triton_dequantize_tokens(q, scale, dtype)
        return x


@torch.library.custom_op("bitlab::triton_quantize_ternary", mutates_args=())
def triton_quantize_ternary(
    weight: Tensor, per_channel: bool, absmean: bool, threshold_factor: float, per_byte: int
) -> tuple[Tensor, Tensor]:
    """weight [N, K], not empty -> uint8 [N, bytes], float32 [N] or [1]."""
    weight = weight.contiguous()
    rows, columns = weight.shape
    row_bytes = triton.cdiv(columns, per_byte)
    packed = weight.new_empty(rows, row_bytes, dtype=torch.uint8)
    scale = weight.new_empty(rows if per_channel else 1, dtype=torch.float32)
    statistics = weight.new_empty(rows, dtype=torch.float64)
    with _device_of(weight):
        row_statistics_kernel[(rows,)](weight, statistics, columns, ABSMEAN=absmean, TILE=TILE, **OPTIONS)
        scales_kernel[(triton.cdiv(rows, TILE) if per_channel else 1,)](
            statistics, scale, rows, columns, ABSMEAN=absmean, PER_CHANNEL=per_channel, TILE=TILE, **OPTIONS
        )
        pack_kernel[(rows, triton.cdiv(row_bytes, BYTES_TILE))](
            weight,
            scale,
            packed,
            columns,
            row_bytes,
            threshold_factor,
            ABSMEAN=absmean,
            PER_CHANNEL=per_channel,
            PER_BYTE=per_byte,
            SLOTS=triton.next_power_of_2(per_byte),
            TILE=BYTES_TILE,
            **OPTIONS,
        )
    return packed, scale


@triton_quantize_ternary.register_fake
def _(
    weight: Tensor, per_channel: bool, absmean: bool, threshold_factor: float, per_byte: int
) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    packed = weight.new_empty(rows, -(-columns // per_byte), dtype=torch.uint8)
    return packed, weight.new_empty(rows if per_channel else 1, dtype=torch.float32)


@torch.library.custom_op("bitlab::triton_dequantize_ternary", mutates_args=())
def triton_dequantize_ternary(
    weight_packed: Tensor, weight_scale: Tensor, in_features: int, per_byte: int, dtype: torch.dtype
) -> Tensor:
    """weight_packed [N, bytes] -> [N, in_features]."""
    weight_packed = weight_packed.contiguous()
    rows, row_bytes = weight_packed.shape
    weight = weight_packed.new_empty(rows, in_features, dtype=dtype)
    with _device_of(weight):
        unpack_kernel[(rows, triton.cdiv(row_bytes, BYTES_TILE))](
            weight_packed,
            weight_scale,
            weight,
            in_features,
            row_bytes,
            PER_CHANNEL=weight_scale.numel() > 1,
            PER_BYTE=per_byte,
            SLOTS=triton.next_power_of_2(per_byte),
            TILE=BYTES_TILE,
            **OPTIONS,
        )
    return weight


@triton_dequantize_ternary.register_fake
def _(weight_packed: Tensor, weight_scale: Tensor, in_features: int, per_byte: int, dtype: torch.dtype) -> Tensor:
    return weight_packed.new_empty(weight_packed.shape[0], in_features, dtype=dtype)


@torch.library.custom_op("bitlab::triton_quantize_tokens", mutates_args=())
def triton_quantize_tokens(x: Tensor, per_tensor: bool) -> tuple[Tensor, Tensor]:
    """x [tokens, K], not empty -> int8 [tokens, K], float32 [1] or [tokens, 1]."""
    with _device_of(x):  # a plane of its own: the order of x
        q, scales, _ = arrange(x, 1, 1, "per_tensor" if per_tensor else "per_token", overlap=False)
    assert scales is not None
    return q, scales[:1].clone() if per_tensor else scales[:, None]


@triton_quantize_tokens.register_fake
def _(x: Tensor, per_tensor: bool) -> tuple[Tensor, Tensor]:
    scale = x.new_empty(1 if per_tensor else (x.shape[0], 1), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.int8), scale


@torch.library.custom_op("bitlab::triton_dequantize_tokens", mutates_args=())
def triton_dequantize_tokens(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 q [tokens, K], float32 scale [1] or [tokens, 1] -> [tokens, K]."""
    q = q.contiguous()
    tokens, in_features = q.shape
    x = q.new_empty(q.shape, dtype=dtype)
    with _device_of(q):
        scale_tokens_kernel[(tokens, triton.cdiv(in_features, TOKEN_TILE))](
            q, scale, x, in_features, PER_TENSOR=scale.dim() == 1, TILE=TOKEN_TILE, **OPTIONS
        )
    return x


@triton_dequantize_tokens.register_fake
def _(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return q.new_empty(q.shape, dtype=dtype)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
