"""Hugging Face `bitnet`: bytes and scales against transformers' own functions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ternary_samples import decoded, packed, random_ternary
from torch import Tensor
from transformers.integrations import bitnet as theirs

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, ConfigError, QuantizationError, ShapeError
from bitcore.packing import pack_ternary
from bitcore.quantizers import dequantize
from bitmodels.formats import BitNetQuantization, EncodedWeight, bitnet_layer
from bitmodels.formats.bitnet import BITNET, BITNET_UNPACKED, check_orientation
from bitmodels.formats.codes import PART_WEIGHTS

CLASSES = ["bitlinear", "autobitlinear"]


def unpacked_by_transformers(data: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.compiler.set_stance("force_eager"):
        return theirs.unpack_weights(data, dtype)


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@given(st.integers(1, 12), st.integers(1, 70))
def test_ours_to_hugging_face_to_ours(storage_format: str, quarter: int, in_features: int) -> None:
    weight, config = packed(random_ternary(4 * quarter, in_features), torch.ones(1), storage_format)
    data = BITNET.encode(weight.values(config))
    assert data.shape == (quarter, in_features)
    back, back_config = EncodedWeight("layer.weight", BITNET, 4 * quarter, in_features, data).pack(config)
    assert torch.equal(back.packed, weight.packed)
    assert back_config == config


@given(st.integers(1, 40), st.integers(1, 9))
def test_rows_that_are_no_multiple_of_4_read_as_transformers_packs_them(out_features: int, in_features: int) -> None:
    ternary = random_ternary(out_features, in_features)
    data = theirs.pack_weights(ternary.clone())
    assert torch.equal(decoded(BITNET, data, out_features, in_features).values, ternary)


def test_transformers_unpacks_what_is_packed_here() -> None:
    ternary = random_ternary(24, 33)
    data = BITNET.encode(ternary)
    assert torch.equal(unpacked_by_transformers(data, torch.float32), ternary.float())
    assert torch.equal(theirs.pack_weights(ternary.clone()), data)


def test_parts_of_a_large_matrix_are_put_together() -> None:
    ternary = random_ternary(4 * (PART_WEIGHTS // 512 + 3) - 1, 512)
    weight = decoded(BITNET, theirs.pack_weights(ternary.clone()), *ternary.shape)
    assert torch.equal(weight.values, ternary)


@pytest.mark.parametrize("linear_class", CLASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_layer_of_transformers_multiplies_by_the_same_weights(linear_class: str, dtype: torch.dtype) -> None:
    """Activations of one 127 are quantized to 127, so the output is a column of the weights in units of its scale."""
    quantization = BitNetQuantization(linear_class=linear_class)
    layer = (theirs.BitLinear if linear_class == "bitlinear" else theirs.AutoBitLinear)(8, 12, bias=False, dtype=dtype)
    ternary, stored = random_ternary(12, 8), torch.tensor([0.75], dtype=dtype)
    data = BITNET.encode(ternary)
    layer.weight.data = data if linear_class == "bitlinear" else unpacked_by_transformers(data, dtype)
    layer.weight_scale.data = stored
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        columns = layer(torch.eye(8, dtype=dtype) * 127) / 127
    weight = decoded(BITNET, data, 12, 8, quantization.scale_of_stored(stored))
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(columns.T.float(), dequantize(weight.values, weight.scale), rtol=tolerance, atol=0)


@pytest.mark.parametrize("linear_class", CLASSES)
@given(st.floats(2.0**-16, 2.0**16, width=32))
def test_scales_come_back_bit_for_bit(linear_class: str, value: float) -> None:
    quantization = BitNetQuantization(linear_class=linear_class)
    scale = torch.tensor([value])
    stored = quantization.stored_of_scale(scale)
    assert torch.equal(quantization.scale_of_stored(stored), scale)
    assert stored.dtype == torch.float32 or linear_class == "bitlinear"


@given(st.floats(2.0**-14, 2.0**15, width=16))
def test_published_scales_come_back_bit_for_bit(value: float) -> None:
    """bitlinear files hold bfloat16 reciprocals: float32 is enough to write them again."""
    quantization = BitNetQuantization()
    published = torch.tensor([value], dtype=torch.bfloat16)
    stored = quantization.stored_of_scale(quantization.scale_of_stored(published))
    assert (stored.dtype, stored.bfloat16().item()) == (torch.float32, published.item())


@pytest.mark.parametrize("linear_class", CLASSES)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-320])
def test_bad_scales_are_refused(linear_class: str, bad: float) -> None:
    with pytest.raises(QuantizationError, match=r"weight_scale is .* at \[0\], expected positive and finite"):
        BitNetQuantization(linear_class=linear_class).scale_of_stored(torch.tensor([bad], dtype=torch.float64))


def test_several_scales_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight_scale is of shape \[2\], expected \[1\]"):
        BitNetQuantization().scale_of_stored(torch.ones(2))
    with pytest.raises(ShapeError, match="one scale a weight"):
        BitNetQuantization().stored_of_scale(torch.ones(2))


@pytest.mark.parametrize(("out_features", "in_features"), [(4, 4), (8, 12), (640, 2560), (12, 5), (7, 8), (400, 36)])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_bytes_go_to_2bit_by_a_shorter_way(out_features: int, in_features: int, offset: int) -> None:
    ternary = torch.randint(-1, 2, (out_features, in_features), dtype=torch.int8)
    rows = -(-out_features // 4)
    padded = torch.cat([ternary, ternary.new_zeros(4 * rows - out_features, in_features)])
    data = torch.zeros(rows * in_features + offset, dtype=torch.uint8)[offset:].view(rows, in_features)
    data.copy_(BITNET.encode(padded))
    ours, _ = EncodedWeight("w", BITNET, out_features, in_features, data).pack(BitQuantConfig())
    assert torch.equal(ours.packed, pack_ternary(ternary))
    shorter = out_features % 4 == 0 and in_features % 4 == 0
    assert (BITNET.to_2bit(data, out_features, in_features) is not None) == shorter
    data[rows - 1, 3] |= 3
    assert BITNET.to_2bit(data, out_features, in_features) is None


def test_code_3_and_wrong_shapes_are_refused() -> None:
    data = BITNET.encode(random_ternary(16, 5))
    data[2, 3] |= 0b11 << 4
    with pytest.raises(CheckpointError, match=r"layer.weight \(bitnet\): weight is code 3 at \[10, 3\]"):
        decoded(BITNET, data, 16, 5)
    with pytest.raises(CheckpointError, match=r"weight is of shape \[4, 5\], expected \[5, 5\] for 17 out_features"):
        decoded(BITNET, data, 17, 5)


def test_padding_of_the_last_rows_may_hold_anything() -> None:
    ternary = random_ternary(6, 3)
    data = theirs.pack_weights(ternary.clone())
    data[:, :] |= 0b11 << 6
    assert torch.equal(decoded(BITNET, data, 6, 3).values, ternary)


def test_unpacked_weights() -> None:
    ternary = random_ternary(5, 7)
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(decoded(BITNET_UNPACKED, ternary.to(dtype), 5, 7).values, ternary)
    masters = ternary.float()
    masters[3, 2] = 0.25
    with pytest.raises(CheckpointError, match=r"0.25 at \[3, 2\], expected -1, 0 or \+1 .* quantization_mode online"):
        decoded(BITNET_UNPACKED, masters, 5, 7)
    masters[3, 2] = torch.nan
    with pytest.raises(CheckpointError, match=r"nan at \[3, 2\]"):
        decoded(BITNET_UNPACKED, masters, 5, 7)


@pytest.mark.parametrize("scale", [0.004, 0.05, 0.9])
def test_orientation(scale: float) -> None:
    """A network whose typical weight is `scale`, written by each class and read as each."""
    true_scales = torch.rand(9).add(0.5) * scale
    for written, read in ((a, b) for a in CLASSES for b in CLASSES):
        quantization = BitNetQuantization(linear_class=read)
        stored = [BitNetQuantization(linear_class=written).stored_of_scale(value.reshape(1)) for value in true_scales]
        scales = {str(i): quantization.scale_of_stored(value) for i, value in enumerate(stored)}
        if written == read or scale == 0.9:  # about 1: nothing can be seen
            check_orientation(scales, quantization)
        else:
            with pytest.raises(CheckpointError, match=rf'linear_class {read} makes .*set "linear_class": "{written}"'):
                check_orientation(scales, quantization)


def test_config() -> None:
    published = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline", "new": 1}
    assert BitNetQuantization.model_validate(published).multiplies_bias
    assert BitNetQuantization(linear_class="autobitlinear", quantization_mode="online").is_online
    assert not BitNetQuantization(quantization_mode="online").is_online
    with pytest.raises(ConfigError, match="linear_class"):
        BitNetQuantization(linear_class="linear")


def test_a_layer_to_write() -> None:
    weight, config = packed(random_ternary(8, 6), torch.tensor([0.3]))
    bias = torch.randn(8)
    tensors = {tensor.name: tensor for tensor in bitnet_layer("q_proj", weight, bias, config, BitNetQuantization())}
    assert list(tensors) == ["q_proj.weight", "q_proj.weight_scale", "q_proj.bias"]
    for tensor in tensors.values():
        made = tensor.make()
        assert (made.shape, made.dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(tensors["q_proj.bias"].make(), bias)


def test_layers_that_cannot_be_written_are_refused() -> None:
    weight, config = packed(random_ternary(8, 64), torch.tensor([0.3]))
    auto = BitNetQuantization(linear_class="autobitlinear")
    online = BitNetQuantization(linear_class="autobitlinear", quantization_mode="online")
    with pytest.raises(ArgumentError, match="bitlinear for the bias of q_proj"):
        bitnet_layer("q_proj", weight, torch.zeros(8), config, auto)
    with pytest.raises(ArgumentError, match="online"):
        bitnet_layer("q_proj", weight, None, config, online)
    six, _ = packed(random_ternary(6, 64), torch.tensor([0.3]))
    with pytest.raises(ShapeError, match=r"out_features is 6, expected a multiple of 4 for bitnet; it fits Q2_0, and"):
        bitnet_layer("q_proj", six, None, config, auto)
    rows, rows_config = packed(random_ternary(8, 64), torch.rand(8) + 0.1)
    with pytest.raises(ShapeError, match=r"weight_scale is of shape \[8\]"):
        bitnet_layer("q_proj", rows, None, rows_config, auto)
