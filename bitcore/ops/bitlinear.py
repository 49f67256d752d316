"""The functional form of BitLinear: training on fake-quantized values, inference on packed weights, with gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore.checks import check_finite, check_positive, config_or_default
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, KernelNotFoundError, ShapeError
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.kernels.base import check_input
from bitcore.ops.fused_training import fused_linears, fused_operators
from bitcore.packed_weight import PackedWeight
from bitcore.packing import packed_columns
from bitcore.quantizers import QuantizedWeight, dequantize, fake_quantize_activations, quantizer_for


def forward(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    quant_config: BitQuantConfig | None = None,
    training: bool = True,
    *,
    quantization_lambda: float = 1.0,
    qweight: Tensor | None = None,
    qweight_scale: Tensor | None = None,
    qweight_zero_point: Tensor | None = None,
) -> Tensor:
    """Y = quantize(x) @ quantize(weight).T + bias.

    Args:
        x: [..., K], floating point.
        weight: [N, K], floating point. Needed in training.
        bias: [N] or None.
        quant_config: BitNet b1.58 if None.
        training: True multiplies fake-quantized values in floating point; gradients go through quantization unchanged
            (STE). False runs the best kernel for x's device and dtype on packed weights.
        quantization_lambda: in training, 0 (floating point) to 1 (what inference computes): weights and activations are
            x + quantization_lambda * (quantize(x) - x).
        qweight: for inference, in place of `weight`: int8 values [N, K] as `prepare_weights` gives, checked and packed
            at every call, or uint8 [N, bytes] as bitcore.packing gives, read in place: bytes are not looked at.
        qweight_scale: float32 scale of `qweight`.
        qweight_zero_point: int8 zero point of `qweight`, for int4 weights that have one.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError: an argument is missing or does not fit.
        QuantizationError: a weight is NaN or infinite, or int8 `qweight` or its scale are not what quantizers make.
        KernelNotFoundError: the kernel that was forced cannot serve.
    """
    config = config_or_default(quant_config)
    if training:
        if weight is None:
            raise ArgumentError("weight", None, "a float tensor [out_features, in_features] in training")
        if not 0 <= quantization_lambda <= 1:
            raise ArgumentError("quantization_lambda", quantization_lambda, "0 to 1")
        check_training_input(x, weight)
        return forward_training(x, weight, bias, config, quantization_lambda, _training_kernel(x, weight, config))
    packed = _packed(x, weight, qweight, qweight_scale, qweight_zero_point, config)
    packed.check_scale_shape(config, "qweight_scale")
    request = KernelRequest(config, x.device.type, x.dtype, packed.in_features, packed.packed.shape[0])
    return forward_packed(KernelRegistry.resolve(request), x, packed, bias, weight)


def prepare_weights(weight: Tensor, quant_config: BitQuantConfig | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes `weight` [N, K] for `forward(training=False)`: (float32 scale, int8 values [N, K]).

    Raises:
        QuantizationError: a weight is NaN or infinite, or so large that its scale is.
        ArgumentError: the config's quantizer has a zero point: use `Int4Quantizer` and pass all three.
    """
    config = config_or_default(quant_config)
    if config.weight_quantizer == "minmax":
        raise ArgumentError("quant_config.weight_quantizer", "minmax", "a quantizer without a zero point")
    with torch.no_grad():
        check_finite("weight", weight)
        values, scale, _ = quantizer_for(config).quantize_weight(weight.detach())
        check_finite("weight_scale", scale)
    return scale, values


def forward_training(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    config: BitQuantConfig,
    quantization_lambda: float = 1.0,
    kernel: BitKernelBase | None = None,
) -> Tensor:
    """The product of fake-quantized `x` [..., K] and `weight` [N, K]; see `forward`.

    At a `quantization_lambda` of 1 by `kernel`, where it trains faster than F.linear (fused_training).
    """
    check_training_input(x, weight)
    operators = fused_operators(kernel, x, [weight]) if quantization_lambda == 1 else None
    if kernel is not None and operators is not None:
        return fused_linears(kernel, operators, x, [weight], [bias])[0]
    if config.activation_dtype == "int8":
        x = fake_quantize_activations(x, config.activation_granularity, quantization_lambda)
    return F.linear(x, quantizer_for(config).fake_quantize(weight, quantization_lambda), bias)


def _training_kernel(x: Tensor, weight: Tensor, config: BitQuantConfig) -> BitKernelBase | None:
    """The kernel that serves `x`; None while a graph is traced, where no choice can be made."""
    if torch.compiler.is_compiling():
        return None
    request = KernelRequest(config, x.device.type, x.dtype, weight.shape[1], weight.shape[0])
    try:
        return KernelRegistry.resolve(request)
    except KernelNotFoundError:  # training needs none
        return None


def forward_packed(
    kernel: BitKernelBase, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, master: Tensor | None = None
) -> Tensor:
    """`kernel.linear`, with gradients to x, bias and master where they are wanted, as in training."""
    if torch.is_grad_enabled() and (
        x.requires_grad or (master is not None and master.requires_grad) or (bias is not None and bias.requires_grad)
    ):
        y: Tensor = _PackedLinear.apply(x, bias, master, kernel, weight)  # type: ignore[no-untyped-call]
        return y
    return kernel.linear(x, weight, bias)


def check_training_input(x: Tensor, weight: Tensor) -> None:
    """Raises the typed error of an `x` that `weight` [N, K] cannot multiply."""
    if weight.dim() != 2:
        raise ShapeError("weight", f"of shape {list(weight.shape)}", "[out_features, in_features]")
    check_input(x, weight.shape[1], weight.device)
    check_training_dtype(x, weight)


def check_training_dtype(x: Tensor, weight: Tensor) -> None:
    """Raises DtypeError where `x` and `weight` cannot be multiplied in training."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise DtypeError("x", x.dtype, f"{weight.dtype}, the weight's dtype")


def _packed(
    x: Tensor,
    weight: Tensor | None,
    qweight: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    config: BitQuantConfig,
) -> PackedWeight:
    if qweight is None:
        if weight is None:
            raise ArgumentError("qweight", None, "a tensor, or `weight` to quantize")
        return PackedWeight.from_float(weight, config)
    if scale is None:
        raise ArgumentError("qweight_scale", None, "the scale of qweight")
    if qweight.dtype == torch.int8:
        check_positive("qweight_scale", scale)
        return PackedWeight.from_quantized(QuantizedWeight(qweight, scale, zero_point), config)
    if qweight.dtype != torch.uint8:
        raise DtypeError("qweight", qweight.dtype, "torch.int8 values or torch.uint8 packed bytes")
    if x.dim() == 0:
        raise ShapeError("x", "of shape []", "[..., in_features]")
    columns = packed_columns(x.shape[-1], config.packed_format)
    if qweight.dim() != 2 or qweight.shape[1] != columns:
        raise ShapeError(
            "qweight", f"of shape {list(qweight.shape)}", f"[out_features, {columns}] for x of {x.shape[-1]} features"
        )
    return PackedWeight(qweight, scale.float(), zero_point, x.shape[-1])


class _PackedLinear(torch.autograd.Function):
    """Forward on the kernel; backward by the STE's definition, with quantization taken for the identity."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, master: Tensor | None, kernel: BitKernelBase, weight: PackedWeight
    ) -> Tensor:
        clipped = kernel.config.ste == "clipped"
        ctx.save_for_backward(x, weight.packed, weight.scale, weight.zero_point, master if clipped else None)
        ctx.config = kernel.config
        return kernel.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        x, packed, scale, zero_point, clipped_master = ctx.saved_tensors
        config: BitQuantConfig = ctx.config
        x_gradient = bias_gradient = master_gradient = None
        if ctx.needs_input_grad[0]:
            weight = PackedWeight(packed, scale, zero_point, x.shape[-1])
            dequantized = dequantize(weight.values(config), scale, zero_point, config)
            x_gradient = (gradient.float() @ dequantized).to(x.dtype)
        flat = gradient.flatten(0, -2) if gradient.dim() > 1 else gradient.unsqueeze(0)
        if ctx.needs_input_grad[1]:
            bias_gradient = flat.float().sum(0)
        if ctx.needs_input_grad[2]:
            quantized = (
                x
                if config.activation_dtype == "float32"
                else fake_quantize_activations(x, config.activation_granularity)
            )
            master_gradient = flat.float().T @ quantized.reshape(-1, x.shape[-1]).float()
            if clipped_master is not None:
                within_range = quantizer_for(config).within_range(clipped_master, scale, zero_point)
                master_gradient = master_gradient * within_range
        return x_gradient, bias_gradient, master_gradient, None, None
