"""The ternary formats of GGUF against gguf's own decoders, and on data that is none."""

from math import lcm

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ternary_samples import decoded, packed, random_ternary
from torch import Tensor

from bitcore import CheckpointError
from bitcore.exceptions import QuantizationError, ShapeError
from bitcore.quantizers import dequantize
from bitmodels.formats import EncodedWeight
from bitmodels.formats.codes import PART_WEIGHTS
from bitmodels.formats.fitting import BLOCK_SIZES
from bitmodels.formats.gguf_types import TERNARY_FORMATS

BLOCK_FORMATS = ["TQ1_0", "TQ2_0", "Q2_0"]
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 4))


def random_scale(*shape: int) -> Tensor:
    """float32 that float16 holds exactly."""
    return torch.rand(*shape).mul(3).add(0.001).half().float()


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@pytest.mark.parametrize("name", TERNARY_FORMATS)
@given(SIZES)
def test_ours_to_gguf_to_ours(name: str, storage_format: str, sizes: tuple[int, int]) -> None:
    encoding, rows, columns = TERNARY_FORMATS[name], sizes[0], sizes[1] * BLOCK_SIZES[name]
    weight, config = packed(random_ternary(rows, columns), random_scale(1), storage_format)
    data = encoding.encode(weight.values(config), weight.scale)
    assert data.numel() == encoding.nbytes(rows, columns)
    back, back_config = EncodedWeight("layer.weight", encoding, rows, columns, data).pack(config)
    assert torch.equal(back.packed, weight.packed)
    assert torch.equal(back.scale, weight.scale)
    assert (back.in_features, back_config) == (columns, config)
    back.check(back_config)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_gguf_dequantizes_to_ternary_times_scale(name: str, granularity: str) -> None:
    ternary = random_ternary(6, 1024)
    scale = random_scale(*{"per_tensor": (1,), "per_channel": (6,), "per_group": (6, 4)}[granularity])
    data = TERNARY_FORMATS[name].encode(ternary, scale)
    theirs = gguf.quants.dequantize(data.reshape(6, -1).numpy(), gguf.GGMLQuantizationType[name])
    assert torch.equal(torch.from_numpy(theirs), dequantize(ternary, scale))
    weight = decoded(TERNARY_FORMATS[name], data, 6, 1024)
    assert torch.equal(weight.values, ternary)
    assert torch.equal(weight.scale, scale)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("empty", [(slice(2, 3), slice(256, 512)), (slice(3, 4), slice(None)), (slice(None),) * 2])
def test_blocks_of_zeros_that_gguf_gives_no_scale(name: str, empty: tuple[slice, slice]) -> None:
    ternary = random_ternary(5, 768)
    ternary[empty] = 0
    scale = torch.tensor([0.75])
    theirs = gguf.quants.quantize((ternary * scale).numpy(), gguf.GGMLQuantizationType[name])
    assert (theirs.reshape(-1, TERNARY_FORMATS[name].nbytes(1, 256))[:, -2:] == 0).all(1).any()
    weight = decoded(TERNARY_FORMATS[name], torch.from_numpy(theirs).flatten(), 5, 768)
    assert torch.equal(weight.values, ternary)
    assert weight.scale.tolist() == ([0.75] if ternary.any() else [1.0])


def test_every_byte_of_tq1_0_decodes_as_gguf_decodes_it() -> None:
    data = torch.randint(0, 256, (400, 54), dtype=torch.uint8)
    data[:, 52:] = torch.tensor([0.5]).half().view(torch.uint8)
    theirs = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType.TQ1_0)
    assert len(data[:, :52].unique()) == 256
    weight = decoded(TERNARY_FORMATS["TQ1_0"], data.flatten(), 400, 256)
    assert torch.equal(dequantize(weight.values, weight.scale), torch.from_numpy(theirs))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_the_simplest_granularity_is_found(name: str) -> None:
    encoding, ternary = TERNARY_FORMATS[name], random_ternary(4, 1024)
    for scale, granularity, group_size in (
        (torch.full((4,), 0.25), "per_tensor", 128),
        (torch.tensor([0.25, 0.5, 1.0, 2.0]), "per_channel", 128),
        (torch.tensor([[0.25, 0.5]]).expand(4, 2), "per_group", 512),
    ):
        data = encoding.encode(ternary, scale)
        weight, config = EncodedWeight("layer.weight", encoding, 4, 1024, data).pack(packed(ternary, scale)[1])
        assert (config.weight_granularity, config.group_size) == (granularity, group_size)
        assert torch.equal(dequantize(weight.values(config), weight.scale, None, config), dequantize(ternary, scale))


@pytest.mark.parametrize("name", TERNARY_FORMATS)
def test_parts_of_a_large_matrix_are_put_together(name: str) -> None:
    columns = 768
    rows = 2 * PART_WEIGHTS // columns + 3
    ternary = random_ternary(rows, columns)
    encoding = TERNARY_FORMATS[name]
    data = encoding.encode(ternary, torch.ones(1))
    assert len(list(encoding.parts(data, rows, columns))) == 3
    assert torch.equal(decoded(encoding, data, rows, columns).values, ternary)


@given(st.integers(1, 70), st.integers(1, 9))
def test_blocks_of_i2_s_cross_rows(in_features: int, factor: int) -> None:
    rows = lcm(in_features, 128) // in_features * factor
    encoding = TERNARY_FORMATS["I2_S"]
    ternary = random_ternary(rows, in_features)
    data = encoding.encode(ternary.reshape(-1, 128), torch.tensor([0.1]))
    weight = decoded(encoding, data, rows, in_features)
    assert torch.equal(weight.values, ternary)
    assert weight.scale.tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("name", ["TQ2_0", "Q2_0", "I2_S"])
def test_code_3_is_refused_with_its_place(name: str) -> None:
    encoding = TERNARY_FORMATS[name]
    data = encoding.encode(random_ternary(3, 256), torch.ones(1))
    block = data.numel() // 3 if name != "I2_S" else 64
    data[block + 5] |= 0b11
    with pytest.raises(
        CheckpointError, match=rf"layer.weight \({name}\): weight is code 3 at \[1, \d+\], expected code"
    ):
        decoded(encoding, data, 3, 256)
    with pytest.raises(CheckpointError, match="code 3"):
        EncodedWeight("layer.weight", encoding, 3, 256, data).pack(packed(random_ternary(1, 1), torch.ones(1))[1])


@pytest.mark.parametrize("name", TERNARY_FORMATS)
def test_data_of_another_size_is_refused(name: str) -> None:
    data = TERNARY_FORMATS[name].encode(random_ternary(3, 256), torch.ones(1))
    with pytest.raises(CheckpointError, match=rf"data is of {data.numel() - 1} bytes, expected {data.numel()}"):
        decoded(TERNARY_FORMATS[name], data[1:], 3, 256)


@pytest.mark.parametrize("bad", [0.0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", TERNARY_FORMATS)
def test_bad_scales_are_refused(name: str, bad: float) -> None:
    encoding = TERNARY_FORMATS[name]
    data = encoding.encode(random_ternary(2, 512), torch.ones(1))
    if name == "I2_S":
        data[256:260] = torch.tensor([bad]).view(torch.uint8)
    else:
        blocks = data.reshape(-1, encoding.code_bytes + 2)
        blocks[1, encoding._scale_at] = torch.tensor([bad]).half().view(torch.uint8)
    with pytest.raises(CheckpointError, match=rf"layer.weight \({name}\): scale is {bad} at .*positive and finite"):
        decoded(encoding, data, 2, 512)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scales_that_float16_cannot_hold_are_refused(name: str, scale: float) -> None:
    with pytest.raises(QuantizationError, match=rf"weight_scale is .*float16 scales of {name}; a scale tensor"):
        TERNARY_FORMATS[name].encode(random_ternary(1, 256), torch.tensor([scale]))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_zero_weights_can_have_any_scale(name: str) -> None:
    """Layers of BitNet b1.58 2B-4T have masters so small that all weights are 0 and the scale is the least, 1e-5."""
    data = TERNARY_FORMATS[name].encode(torch.zeros(2, 256, dtype=torch.int8), torch.tensor([1e-5]))
    weight = decoded(TERNARY_FORMATS[name], data, 2, 256)
    assert (weight.values.any().item(), weight.scale.tolist()) == (False, [1.0])


def test_scales_are_rounded_to_float16() -> None:
    weight = decoded(
        TERNARY_FORMATS["Q2_0"], TERNARY_FORMATS["Q2_0"].encode(random_ternary(2, 64), torch.rand(1) + 0.1), 2, 64
    )
    assert torch.equal(weight.scale, weight.scale.half().float())


def test_i2_s_has_one_scale() -> None:
    with pytest.raises(ShapeError, match=r"weight_scale is of shape \[2\], expected \[1\] for I2_S"):
        TERNARY_FORMATS["I2_S"].encode(random_ternary(2, 128), torch.ones(2))


def test_groups_smaller_than_blocks_are_refused() -> None:
    with pytest.raises(
        ShapeError, match="weight_scale is for groups of 64 weights, expected one for each block of 256"
    ):
        TERNARY_FORMATS["TQ2_0"].encode(random_ternary(2, 256), torch.ones(2, 4))


@pytest.mark.parametrize("name", TERNARY_FORMATS)
def test_what_is_not_ternary_is_refused(name: str) -> None:
    ternary = random_ternary(2, 256)
    ternary[1, 7] = 2
    with pytest.raises(QuantizationError, match=r"weight is 2 at \[1, 7\]"):
        TERNARY_FORMATS[name].encode(ternary, torch.ones(1))


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        (
            "TQ2_0",
            4,
            320,
            "in_features is 320, expected a multiple of 256 for TQ2_0; it fits Q2_0, bitnet, and BitLab's",
        ),
        ("TQ1_0", 4, 384, "in_features is 384, expected a multiple of 256 for TQ1_0; it fits I2_S, Q2_0, bitnet"),
        ("Q2_0", 3, 100, "in_features is 100, expected a multiple of 64 for Q2_0; no foreign format can hold it, and"),
        ("I2_S", 128, 65, "in_features is 65, expected a multiple of 128 for I2_S; it fits bitnet"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_those_formats_that_do(
    name: str, rows: int, columns: int, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        TERNARY_FORMATS[name].encode(random_ternary(rows, columns), torch.ones(1))
