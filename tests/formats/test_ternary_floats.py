"""Ternary weights in floating point: scales of a tensor, of rows, of shards, and matrices that are not ternary."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ternary_samples import random_ternary
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.exceptions import DtypeError, QuantizationError, ShapeError
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize
from bitmodels.formats import ternary_of_floats
from bitmodels.formats.scales import config_for


def floats(ternary: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return dequantize(ternary, scale.to(dtype).float()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40))
def test_one_scale(dtype: torch.dtype, rows: int, columns: int) -> None:
    weight = floats(random_ternary(rows, columns), torch.rand(1) + 0.1, dtype)
    values, scale, _ = ternary_of_floats(weight)
    assert scale.shape == (1,)
    assert torch.equal(dequantize(values, scale), weight.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_shards_of_rows(dtype: torch.dtype) -> None:
    """As column-parallel layers are: a scale for each block of rows."""
    scale = torch.tensor([0.5, 0.25, 0.7]).repeat_interleave(8)
    weight = floats(random_ternary(24, 48), scale, dtype)
    values, found, _ = ternary_of_floats(weight)
    assert found.shape == (24,)
    assert torch.equal(dequantize(values, found), weight.float())


@pytest.mark.parametrize("shards", [2, 3, 4, 6, 8])
def test_shards_of_columns(shards: int) -> None:
    """As row-parallel layers are: a scale for each block of columns, which becomes one for each group."""
    weight = torch.cat(
        [floats(random_ternary(7, 32), torch.rand(1) + 0.1, torch.float16) for _ in range(shards)], dim=1
    )
    quantized = ternary_of_floats(weight)
    assert quantized.scale.shape == (7, shards)
    config = config_for(quantized.scale, weight.shape[1], BitQuantConfig())
    assert (config.weight_granularity, config.group_size) == ("per_group", 32)
    packed = PackedWeight.from_quantized(quantized, config)
    assert torch.equal(dequantize(packed.values(config), packed.scale, None, config), weight.float())


def test_rows_and_shards_of_zeros_take_the_scale_of_the_rest() -> None:
    ternary = random_ternary(6, 64)
    ternary[0, 0] = 1
    ternary[2], ternary[4, 32:] = 0, 0
    values, scale, _ = ternary_of_floats(ternary.half() * 0.5)
    assert (scale.tolist(), torch.equal(values, ternary)) == ([0.5], True)
    values, scale, _ = ternary_of_floats(torch.zeros(3, 4))
    assert (scale.tolist(), values.any().item()) == ([1.0], False)


def test_what_is_not_ternary_is_refused_with_its_values() -> None:
    weight = floats(random_ternary(8, 32), torch.tensor([0.5]), torch.float16)
    weight[5, :3] = torch.tensor([0.5, 0.25, -0.125])
    with pytest.raises(QuantizationError, match=r"weight is not ternary: row 5 has . magnitudes, .*0.125, 0.25, 0.5"):
        ternary_of_floats(weight)
    with pytest.raises(QuantizationError, match="not ternary"):
        ternary_of_floats(torch.randn(8, 48))
    with pytest.raises(QuantizationError, match="not ternary"):  # nearly is not
        ternary_of_floats(torch.tensor([[0.5, 0.5, -0.50048828, 0.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    weight = random_ternary(3, 4).float()
    weight[1, 2] = bad
    with pytest.raises(QuantizationError, match=rf"weight is {bad} at \[1, 2\], expected finite"):
        ternary_of_floats(weight)


def test_what_is_no_matrix_of_floats_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight is of shape \[3\]"):
        ternary_of_floats(torch.ones(3))
    with pytest.raises(DtypeError, match=r"weight is torch.int8"):
        ternary_of_floats(torch.ones(3, 3, dtype=torch.int8))
