"""Quantization of weights and activations, and its straight-through estimator (STE) for training.

Everything is computed in float32, whatever the dtype of the input, and rounds half to even. Scales multiply: a weight
is about `value * scale`. Reciprocals are taken once and multiplied, as the published BitNet code does, so that the same
weights and inputs give the same integers as there. A config's `weight_scale_dtype` rounds the scale, not the integers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bitcore.checks import check_config, check_finite, config_or_default
from bitcore.config import ActivationGranularity, BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, ShapeError

MIN_SCALE = 1e-5  # of absmean, absmedian and absmax: BitNet's clamp, keeps rows of zeros from dividing by zero


VALUE_RANGE = {"ternary": (-1, 1), "int4": (-8, 7), "int8": (-128, 127)}


class QuantizedWeight(NamedTuple):
    """int8 values [N, K], their float32 scale, and for asymmetric int4 the int8 zero point (shaped as the scale)."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None


class Quantizer(ABC):
    """A rule that turns float weights into integers and a scale. Subclasses write `quantize`.

    Scales are float32 [1] (per_tensor), [N] (per_channel) or [N, ceil(K / group_size)] (per_group). A NaN or Inf in a
    weight is in its scale, too; what packs weights refuses it.

    Raises:
        ArgumentError: `config` is for weights of another `weight_dtype`.
    """

    weight_dtype: ClassVar[str | None] = None  # of the configs that the rule is for; None: of any

    def __init__(self, config: BitQuantConfig) -> None:
        check_config(config)
        if self.weight_dtype not in (None, config.weight_dtype):
            raise ArgumentError("config.weight_dtype", config.weight_dtype, str(self.weight_dtype))
        self.config = config

    @abstractmethod
    def quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Quantizes `weight` [N, K]: (int8 values [N, K], scale), with a zero point as third where the rule has one."""

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """(values - zero_point) * scale, float32 [N, K]."""
        return dequantize(values, scale, zero_point, self.config)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """`quantize`, with the zero point named and None where there is none."""
        values, scale, *zero_point = self.quantize(weight)
        return QuantizedWeight(values, scale, zero_point[0] if zero_point else None)

    def fake_quantize(self, weight: Tensor, quantization_lambda: float = 1.0) -> Tensor:
        """The dequantized weight in `weight`'s dtype; its gradient goes to `weight` by `config.ste`.

        identity: unchanged (arXiv 1308.3432). clipped: only where the weight is `within_range` (arXiv 1602.02830).
        Below 1, `quantization_lambda` gives weight + quantization_lambda * (quantized - weight).
        """
        with torch.no_grad():
            quantized = self.quantize_weight(weight)
            values = blend(weight, self.dequantize(*quantized).to(weight.dtype), quantization_lambda)
            passes = self.within_range(weight, *quantized[1:]) if self.config.ste == "clipped" else None
        return straight_through(weight, values, passes)

    def within_range(self, weight: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """Bool [N, K]: where `weight` is at most half a step beyond the lowest and the highest quantized weight."""
        lowest, highest = VALUE_RANGE[self.config.weight_dtype]
        steps = weight.float() / per_weight(scale, weight, self.config)
        if zero_point is not None:
            steps = steps + per_weight(zero_point, weight, self.config)
        return (steps >= lowest - 0.5) & (steps <= highest + 0.5)


class TernaryQuantizer(Quantizer):
    """Ternary weights by absmean, absmedian or threshold.

    absmean    scale = mean(abs(w)), at least 1e-5; t = round(w * (1 / scale)), clamped to -1..1 (arXiv 2402.17764)
    absmedian  the same with the (lower) median, which small networks may prefer (arXiv 2407.09527)
    threshold  scale = max(abs(w)), at least 1e-8; t = sign(w) where abs(w) > threshold_factor * scale, else 0
    """

    weight_dtype = "ternary"

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes `weight` [N, K], any float dtype: (int8 ternary [N, K], float32 scale).

        Raises:
            ShapeError, DtypeError: `weight` is not a 2-d floating-point tensor.
        """
        values, scale, _ = _quantize_blocks(weight, self.config, self._quantize_rows)
        return values, scale

    def _quantize_rows(self, w: Tensor) -> QuantizedWeight:
        magnitude = w.abs()
        if self.config.weight_quantizer == "threshold":
            scale = magnitude.amax(-1, keepdim=True).clamp(min=1e-8)
            ternary = w.sign().where(magnitude > self.config.threshold_factor * scale, 0.0)
        else:
            absmean = self.config.weight_quantizer == "absmean"
            center = mean(magnitude) if absmean else magnitude.median(-1, keepdim=True).values
            scale = center.clamp(min=MIN_SCALE)
            ternary = (w * scale.reciprocal()).round().clamp(-1, 1)
        return QuantizedWeight(ternary.to(torch.int8), scale, None)


class Int4Quantizer(Quantizer):
    """int4 weights, values -8..7.

    absmax  symmetric: scale = max(abs(w)) / 7, at least 1e-5 / 7; q = round(w * (1 / scale))
    minmax  with a zero point: scale = (max(w, 0) - min(w, 0)) / 15; zero_point = round(-8 - min * (1 / scale));
            q = round(w * (1 / scale)) + zero_point, so that 0.0 is exact
    """

    weight_dtype = "int4"

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Quantizes `weight` [N, K], any float dtype: (int8 [N, K], scale), for minmax with the int8 zero point.

        Raises:
            ShapeError, DtypeError: `weight` is not a 2-d floating-point tensor.
        """
        values, scale, zero_point = _quantize_blocks(weight, self.config, self._quantize_rows)
        return (values, scale) if zero_point is None else (values, scale, zero_point)

    def _quantize_rows(self, w: Tensor) -> QuantizedWeight:
        if self.config.weight_quantizer == "absmax":
            scale = w.abs().amax(-1, keepdim=True).clamp(min=MIN_SCALE) / 7
            values = (w * scale.reciprocal()).round().clamp(-8, 7)
            return QuantizedWeight(values.to(torch.int8), scale, None)
        lowest = w.amin(-1, keepdim=True).clamp(max=0)
        highest = w.amax(-1, keepdim=True).clamp(min=0)
        scale = (highest - lowest).clamp(min=MIN_SCALE) / 15
        inverse = scale.reciprocal()
        zero_point = (-8 - lowest * inverse).round().clamp(-8, 7)
        values = ((w * inverse).round() + zero_point).clamp(-8, 7)
        return QuantizedWeight(values.to(torch.int8), scale, zero_point.to(torch.int8))


class Int8Quantizer(Quantizer):
    """int8 weights, values -127..127: scale = max(abs(w)) / 127, at least 1e-5 / 127; q = round(w * (1 / scale))."""

    weight_dtype = "int8"

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes `weight` [N, K], any float dtype: (int8 [N, K], float32 scale).

        Raises:
            ShapeError, DtypeError: `weight` is not a 2-d floating-point tensor.
        """
        values, scale, _ = _quantize_blocks(weight, self.config, self._quantize_rows)
        return values, scale

    def _quantize_rows(self, w: Tensor) -> QuantizedWeight:
        scale = w.abs().amax(-1, keepdim=True).clamp(min=MIN_SCALE) / 127
        values = (w * scale.reciprocal()).round().clamp(-127, 127)
        return QuantizedWeight(values.to(torch.int8), scale, None)


def quantizer_for(config: BitQuantConfig) -> Quantizer:
    """The quantizer of `config`'s weights."""
    if config.weight_dtype == "ternary":
        return TernaryQuantizer(config)
    return Int4Quantizer(config) if config.weight_dtype == "int4" else Int8Quantizer(config)


def ternary_quantize(weight: Tensor, config: BitQuantConfig | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes `weight` [N, K]: (int8 in {-1, 0, 1} [N, K], float32 scale). By default absmean with one scale.

    Raises:
        ShapeError, DtypeError: `weight` is not a 2-d floating-point tensor.
        QuantizationError: a weight is NaN or infinite.
        ArgumentError: `config` is not for ternary weights.
    """
    check_finite("weight", weight)
    return TernaryQuantizer(config_or_default(config)).quantize(weight)


def ternary_quantize_ste(weight: Tensor, config: BitQuantConfig | None = None) -> tuple[Tensor, Tensor]:
    """As `ternary_quantize`, but the ternary weight has `weight`'s dtype and passes its gradient to `weight`.

    NaN or Inf in a weight is in the scale, so that training goes on until a loss or an anomaly check shows it.
    The gradient is unchanged, or with `config.ste` "clipped" where `Quantizer.within_range` holds.
    The scale is detached. The gradient of `w_ternary * scale` is therefore `scale` times that of the dequantized
    weight: layers use `Quantizer.fake_quantize`, where the identity is taken for the whole.
    """
    quantizer = TernaryQuantizer(config_or_default(config))
    with torch.no_grad():
        ternary, scale = quantizer.quantize(weight)
        passes = quantizer.within_range(weight, scale) if quantizer.config.ste == "clipped" else None
    return straight_through(weight, ternary.to(weight.dtype), passes), scale


def dequantize(
    values: Tensor, scale: Tensor, zero_point: Tensor | None = None, config: BitQuantConfig | None = None
) -> Tensor:
    """(values - zero_point) * scale.

    Args:
        values: int8 [N, K].
        scale: float32 [1], [N] or [N, groups].
        zero_point: int8 as `scale`, or None for 0.
        config: says the group size of a [N, groups] scale.

    Returns:
        float32 [N, K].

    Raises:
        ShapeError: a shape is not such.
    """
    for argument, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tensor is not None and not _fits(tensor, values, config):
            expected = "[1], [out_features] or [out_features, groups]"
            raise ShapeError(argument, f"of shape {list(tensor.shape)}", f"{expected} of values {list(values.shape)}")
    centered = values.float() if zero_point is None else values.float() - per_weight(zero_point, values, config).float()
    return centered * per_weight(scale, values, config)


def _fits(scale: Tensor, values: Tensor, config: BitQuantConfig | None) -> bool:
    """Whether `scale` is of the shape [1], [N] or [N, groups] for `values` [N, K]."""
    if values.dim() != 2 or scale.dim() not in (1, 2):
        return False
    rows, columns = values.shape
    if scale.dim() == 1:
        return scale.shape[0] in (1, rows)
    return scale.shape[0] == rows and -(-columns // _group_size(scale, columns, config)) == scale.shape[1]


def _group_size(scale: Tensor, columns: int, config: BitQuantConfig | None) -> int:
    return config.group_size if config is not None else -(-columns // max(scale.shape[1], 1)) or 1


def per_weight(scale: Tensor, values: Tensor, config: BitQuantConfig | None = None) -> Tensor:
    """`scale` [1], [N] or [N, groups] in a shape that multiplies `values` [N, K]."""
    if scale.dim() == 1:
        return scale if scale.shape[0] == 1 else scale.unsqueeze(1)
    return scale.repeat_interleave(_group_size(scale, values.shape[1], config), dim=1)[:, : values.shape[1]]


def quantize_activations(x: Tensor, granularity: ActivationGranularity = "per_token") -> tuple[Tensor, Tensor]:
    """absmax: m = max(abs(x)), at least 1e-5; q = round(x * (127 / m)), clamped to -128..127; scale = m / 127.

    `127 / m` is `1 / m`, rounded, times 127, as PyTorch evaluates it. A token (per_tensor: an input) with NaN or Inf
    gets q = 0 and scale = NaN, so that what is computed from it is NaN and nothing else is touched.

    Args:
        x: [tokens, K], any float dtype.
        granularity: "per_token" or "per_tensor".

    Returns:
        int8 [tokens, K] and float32 scale [tokens, 1] or [1].
    """
    x = x.float()
    magnitude = x.abs()
    if granularity == "per_token":
        largest = magnitude.amax(-1, keepdim=True)
    else:
        largest = magnitude.amax().reshape(1) if x.numel() > 0 else x.new_zeros(1)
    finite = largest.isfinite()
    largest = largest.clamp(min=MIN_SCALE)
    q = (x * (largest.reciprocal() * 127)).round().clamp(-128, 127).where(finite, 0.0)
    # A tensor divisor: CUDA would multiply by the rounded reciprocal of a Python number.
    scale = (largest / torch.full_like(largest, 127.0)).where(finite, torch.nan)
    return q.to(torch.int8), scale


def fake_quantize_activations(
    x: Tensor, granularity: ActivationGranularity = "per_token", quantization_lambda: float = 1.0
) -> Tensor:
    """The dequantized activations in `x`'s shape and dtype; their gradient goes to `x` unchanged (STE).

    absmax scales clip nothing, so there is no clipped STE for them. Below 1, `quantization_lambda` gives
    x + quantization_lambda * (quantized - x).
    """
    with torch.no_grad():
        q, scale = quantize_activations(x.reshape(-1, x.shape[-1]), granularity)
        quantized = blend(x, (q * scale).to(x.dtype).reshape(x.shape), quantization_lambda)
    return straight_through(x, quantized)


def mean(magnitude: Tensor) -> Tensor:
    """The float32 mean of each row of `magnitude` [rows, columns]: [rows, 1].

    Added in float64, where the device has it, so that the order of adding on a device or by some number of threads is
    lost in the rounding to float32.
    """
    dtype = torch.float32 if magnitude.device.type == "mps" else torch.float64
    return magnitude.mean(-1, keepdim=True, dtype=dtype).float()


def blend(x: Tensor, quantized: Tensor, quantization_lambda: float) -> Tensor:
    """Between `x` and `quantized`: x + quantization_lambda * (quantized - x), at 1 exactly `quantized`."""
    if quantization_lambda == 1:
        return quantized
    # Not torch.lerp: torch.compile would make a graph for each number that it gets.
    return x + quantization_lambda * (quantized - x)


def straight_through(x: Tensor, quantized: Tensor, passes: Tensor | None = None) -> Tensor:
    """`quantized` in the forward pass; in the backward pass the identity of `x`, where the bool `passes` holds."""
    result: Tensor = _StraightThrough.apply(x, quantized, passes)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, quantized: Tensor, passes: Tensor | None) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        return gradients[0] if passes is None else gradients[0] * passes, None, None


def _quantize_blocks(
    weight: Tensor, config: BitQuantConfig, quantize_rows: Callable[[Tensor], QuantizedWeight]
) -> QuantizedWeight:
    """Cuts `weight` into the rows that share a scale (its last group may be short) and puts the results together."""
    if weight.dim() != 2:
        raise ShapeError("weight", f"of shape {list(weight.shape)}", "[out_features, in_features]")
    if not weight.is_floating_point():
        raise DtypeError("weight", weight.dtype, "a floating-point dtype")
    w = weight.float()
    if w.numel() == 0:  # no weights: a scale that is never used
        w = w.new_zeros(max(w.shape[0], 1), max(w.shape[1], 1))
    if config.weight_granularity == "per_tensor":
        blocks = [quantize_rows(w.reshape(1, -1))]
    elif config.weight_granularity == "per_channel":
        blocks = [quantize_rows(w)]
    else:
        blocks = [quantize_rows(block) for block in torch.split(w, config.group_size, dim=1)]

    def joined(parts: list[Tensor]) -> Tensor:
        result = torch.cat(parts, dim=1)
        return result if config.weight_granularity == "per_group" else result.flatten()

    scale = joined([block.scale for block in blocks])
    if config.weight_scale_dtype != "float32":
        scale = scale.to(getattr(torch, config.weight_scale_dtype)).float()

    values = torch.cat([block.values for block in blocks], dim=1).reshape(w.shape)[: weight.shape[0], : weight.shape[1]]
    zero_points = [block.zero_point for block in blocks if block.zero_point is not None]
    return QuantizedWeight(values, scale, joined(zero_points) if zero_points else None)
