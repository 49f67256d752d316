"""Quantizers against their definitions, written out in float64 or by rows, and the STE's gradients."""

import re

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, QuantizationError, ShapeError
from bitcore.quantizers import (
    Int4Quantizer,
    Quantizer,
    TernaryQuantizer,
    dequantize,
    fake_quantize_activations,
    quantize_activations,
    quantizer_for,
    ternary_quantize,
    ternary_quantize_ste,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GRANULARITIES = ["per_tensor", "per_channel", "per_group"]


def groups_of(
    weight: Tensor, granularity: str, group_size: int
) -> list[tuple[Tensor, tuple[slice, slice], tuple[int, ...]]]:
    """(values, where they are, where their scale is) of every group that shares a scale."""
    everything = slice(None)
    if granularity == "per_tensor":
        return [(weight, (everything, everything), (0,))]
    if granularity == "per_channel":
        return [(row, (slice(n, n + 1), everything), (n,)) for n, row in enumerate(weight)]
    found = []
    for n, row in enumerate(weight):
        for g, start in enumerate(range(0, weight.shape[1], group_size)):
            columns = slice(start, start + group_size)
            found.append((row[columns], (slice(n, n + 1), columns), (n, g)))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", ["absmean", "absmedian", "threshold"])
def test_ternary_equals_its_definition(rule: str, granularity: str, dtype: torch.dtype) -> None:
    weight = torch.randn(7, 41).to(dtype)
    config = BitQuantConfig(weight_quantizer=rule, weight_granularity=granularity, threshold_factor=0.3, group_size=16)
    ternary, scale = TernaryQuantizer(config).quantize(weight)
    assert (ternary.dtype, scale.dtype, ternary.shape) == (torch.int8, torch.float32, weight.shape)
    for values, place, scale_place in groups_of(weight.float(), granularity, 16):
        size = values.abs()
        if rule == "threshold":
            expected_scale = size.max().clamp(min=1e-8)
            expected = torch.where(size > 0.3 * expected_scale, values.sign(), 0)
        else:
            # The scale may differ from the float64 one by rounding; with the scale as given, the integers are exact.
            center = (
                size.double().mean() if rule == "absmean" else size.flatten().sort().values[(size.numel() - 1) // 2]
            )
            expected_scale = center.clamp(min=1e-5).float()
            expected = (values * (1 / scale[scale_place])).round().clamp(-1, 1)
        torch.testing.assert_close(scale[scale_place], expected_scale, rtol=1e-6, atol=0)
        assert torch.equal(ternary[place].flatten(), expected.flatten().to(torch.int8))


def test_absmean_is_the_published_rule() -> None:
    """The integers of BitNet b1.58's reference code: `(w * (1.0 / w.abs().mean().clamp_(min=1e-5))).round().clamp_(-1,
    1)`.
    """
    weight = torch.randn(64, 64)
    inverse = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    assert torch.equal(ternary_quantize(weight)[0].float(), (weight * inverse).round().clamp_(-1, 1))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_int4_symmetric(granularity: str) -> None:
    config = BitQuantConfig(weight_dtype="int4", weight_granularity=granularity, group_size=16)
    weight = torch.randn(5, 40) * 3
    values, scale = Int4Quantizer(config).quantize(weight)
    assert values.min() >= -8
    assert values.max() <= 7
    for group, place, scale_place in groups_of(weight, granularity, 16):
        torch.testing.assert_close(scale[scale_place], group.abs().max() / 7)
        error = (Int4Quantizer(config).dequantize(values, scale)[place].flatten() - group.flatten()).abs().max()
        assert error <= scale[scale_place] / 2 * 1.0001


@pytest.mark.parametrize("shift", [-2.0, 0.0, 5.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_int4_with_zero_point(granularity: str, shift: float) -> None:
    config = BitQuantConfig(
        weight_dtype="int4", weight_quantizer="minmax", weight_granularity=granularity, group_size=16
    )
    weight = torch.rand(5, 40) + shift
    weight[:, 3] = 0.0
    values, scale, zero_point = Int4Quantizer(config).quantize(weight)
    restored = Int4Quantizer(config).dequantize(values, scale, zero_point)
    assert torch.equal(restored[:, 3], torch.zeros(5))  # 0.0 is exact
    largest_scale = scale.max()
    assert (
        restored - weight
    ).abs().max() <= largest_scale * 1.01  # half a step, and as much for the zero point's rounding
    assert zero_point.dtype == torch.int8
    assert zero_point.shape == scale.shape


def test_dequantize_is_value_times_scale() -> None:
    ternary, scale = ternary_quantize(torch.randn(4, 6), BitQuantConfig(weight_granularity="per_channel"))
    assert torch.equal(dequantize(ternary, scale), ternary.float() * scale[:, None])


@pytest.mark.parametrize(
    "config", [BitQuantConfig(), BitQuantConfig(weight_quantizer="threshold"), BitQuantConfig.int4(4)], ids=str
)
def test_rows_of_zeros_and_empty_weights(config: BitQuantConfig) -> None:
    values, scale, _ = quantizer_for(config).quantize_weight(torch.zeros(3, 10))
    assert not values.any()
    assert scale.isfinite().all()
    values, scale, _ = quantizer_for(config).quantize_weight(torch.zeros(0, 10))
    assert values.shape == (0, 10)
    assert scale.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_per_token(dtype: torch.dtype) -> None:
    x = (torch.randn(9, 33) * torch.logspace(-8, 8, 9)[:, None]).to(dtype)
    x = x.nan_to_num(1.0, 1.0, -1.0)
    q, scale = quantize_activations(x)
    for row, q_row, scale_row in zip(x.float(), q, scale, strict=True):
        largest = row.abs().max().clamp(min=1e-5)
        assert torch.equal(q_row.float(), (row * (127 / largest)).round().clamp(-128, 127))
        assert torch.equal(scale_row[0], largest / 127)


def test_activations_per_tensor() -> None:
    x = torch.randn(9, 33)
    q, scale = quantize_activations(x, "per_tensor")
    largest = x.abs().max()
    assert scale.shape == (1,)
    assert torch.equal(q.float(), (x * (127 / largest)).round().clamp(-128, 127))
    assert quantize_activations(torch.zeros(0, 5), "per_tensor")[0].shape == (0, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_activations_spoil_their_own_token_alone(bad: float) -> None:
    x = torch.randn(3, 8)
    good, good_scale = quantize_activations(x)
    x[1, 2] = bad
    q, scale = quantize_activations(x)
    assert scale[1].isnan()
    assert not q[1].any()
    assert torch.equal(q[[0, 2]], good[[0, 2]])
    assert torch.equal(scale[[0, 2]], good_scale[[0, 2]])


def test_ties_round_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_activations(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_ste_passes_gradients_to_the_weight_unchanged() -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    ternary, scale = ternary_quantize_ste(weight)
    assert torch.equal(ternary.detach(), ternary_quantize(weight)[0].float())
    assert not scale.requires_grad
    gradient = torch.randn(4, 5)
    ternary.backward(gradient)
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize(
    "config", [BitQuantConfig(), BitQuantConfig.int4(4), BitQuantConfig(weight_quantizer="threshold")], ids=str
)
def test_fake_quantize_is_the_identity_backwards(config: BitQuantConfig) -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    quantizer = quantizer_for(config)
    fake = quantizer.fake_quantize(weight)
    assert torch.equal(fake, quantizer.dequantize(*quantizer.quantize_weight(weight.detach())))
    gradient = torch.randn(4, 5)
    fake.backward(gradient)
    assert torch.equal(weight.grad, gradient)
    x = torch.randn(2, 3, 5, requires_grad=True)
    fake_quantize_activations(x).backward(gradient[:2, None].expand(2, 3, 5))
    assert torch.equal(x.grad, gradient[:2, None].expand(2, 3, 5))


def test_a_user_can_extend_quantizer() -> None:
    class SignQuantizer(Quantizer):
        def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
            return weight.sign().to(torch.int8), weight.abs().mean().reshape(1)

    quantizer = SignQuantizer(BitQuantConfig())
    weight = torch.randn(3, 4, requires_grad=True)
    fake = quantizer.fake_quantize(weight)
    assert torch.equal(fake, weight.sign() * weight.abs().mean())
    fake.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight is of shape \[3\], expected \[out_features, in_features\]"):
        ternary_quantize(torch.randn(3))
    with pytest.raises(DtypeError, match=r"weight is torch.int64, expected a floating-point dtype"):
        ternary_quantize(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(QuantizationError, match=r"weight is inf at \[1, 0\], expected finite"):
        ternary_quantize(torch.tensor([[1.0], [torch.inf]]))


def test_configs_of_other_weights_are_refused() -> None:
    for make in (lambda config: ternary_quantize(torch.randn(2, 2), config), TernaryQuantizer):
        with pytest.raises(ArgumentError, match=r"config.weight_dtype is int4, expected ternary"):
            make(BitQuantConfig.int4())
    with pytest.raises(ArgumentError, match=r"config.weight_dtype is ternary, expected int4"):
        Int4Quantizer(BitQuantConfig())
    with pytest.raises(ArgumentError, match=r"quant_config is 'ternary', expected a BitQuantConfig"):
        ternary_quantize(torch.randn(2, 2), "ternary")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (2, 3, 4), (3, 3)], ids=str)
def test_scales_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    config = BitQuantConfig(weight_granularity="per_group", group_size=2)
    values = torch.ones(3, 8, dtype=torch.int8)
    with pytest.raises(ShapeError, match=rf"scale is of shape {re.escape(str(list(shape)))}, expected .* \[3, 8\]"):
        dequantize(values, torch.ones(shape), None, config)
    with pytest.raises(ShapeError, match="zero_point is of shape"):
        dequantize(values, torch.ones(3, 4), torch.zeros(shape, dtype=torch.int8), config)
    assert torch.equal(dequantize(values, torch.full((3, 4), 2.0), None, config), torch.full((3, 8), 2.0))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_scale_is_rounded_and_the_integers_are_not(granularity: str) -> None:
    weight = torch.randn(7, 41)
    plain = BitQuantConfig(weight_granularity=granularity, group_size=16)
    values, scale = TernaryQuantizer(plain).quantize(weight)
    for dtype in (torch.bfloat16, torch.float16):
        config = plain.model_copy(update={"weight_scale_dtype": str(dtype).removeprefix("torch.")})
        rounded_values, rounded = TernaryQuantizer(config).quantize(weight)
        assert torch.equal(rounded_values, values)
        assert torch.equal(rounded, scale.to(dtype).float())
        assert rounded.dtype == torch.float32


def test_lambda_is_exact_at_both_ends() -> None:
    weight, x = torch.randn(4, 9), torch.randn(4, 9)
    quantizer = quantizer_for(BitQuantConfig())
    assert torch.equal(quantizer.fake_quantize(weight, 0.0), weight)
    assert torch.equal(quantizer.fake_quantize(weight, 1.0), quantizer.fake_quantize(weight))
    assert torch.equal(fake_quantize_activations(x, quantization_lambda=0.0), x)


def test_the_clipped_ste_of_ternary_values() -> None:
    weight = torch.tensor([[0.1, -0.1, 4.0, -4.0, 0.8, -0.8]], requires_grad=True)  # the mean is 1.63
    ternary, _ = ternary_quantize_ste(weight, BitQuantConfig(ste="clipped"))
    ternary.sum().backward()
    assert weight.grad.tolist() == [[1, 1, 0, 0, 1, 1]]
