import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitcore.exceptions import ArgumentError, DtypeError, QuantizationError, ShapeError
from bitcore.packing import (
    check_packed_ternary,
    pack_int4,
    pack_int8,
    pack_ternary,
    packed_columns,
    unpack_int4,
    unpack_int8,
    unpack_ternary,
)

SIZES = st.tuples(st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**31))


def random_integers(low: int, high: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randint(
        low, high + 1, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@given(SIZES)
def test_ternary_round_trip(storage_format: str, sizes: tuple[int, int, int]) -> None:
    rows, columns, seed = sizes
    ternary = random_integers(-1, 1, rows, columns, seed)
    packed = pack_ternary(ternary, storage_format)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_columns(columns, storage_format))
    assert packed.is_contiguous()
    assert torch.equal(unpack_ternary(packed, columns, storage_format), ternary)


@given(SIZES)
def test_int4_round_trip(sizes: tuple[int, int, int]) -> None:
    rows, columns, seed = sizes
    values = random_integers(-8, 7, rows, columns, seed)
    packed = pack_int4(values)
    assert packed.shape == (rows, -(-columns // 2))
    assert torch.equal(unpack_int4(packed, columns), values)


def test_int8_is_every_byte_once() -> None:
    values = torch.arange(-128, 128).reshape(2, 128)
    packed = pack_int8(values)
    assert packed.flatten().tolist() == list(range(256))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_int8(packed, 128), values.to(torch.int8))
    assert torch.equal(pack_int8(values.float()), packed)


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_bytes_are_those_of_the_documented_layout(columns: int, seed: int) -> None:
    """An independent encoder, weight by weight, in numpy."""
    ternary = random_integers(-1, 1, 3, columns, seed)
    codes = np.pad(ternary.numpy().astype(int) + 1, ((0, 0), (0, 60)), constant_values=1)
    two_bit = [[sum(row[4 * i + j] << 2 * j for j in range(4)) for i in range(-(-columns // 4))] for row in codes]
    assert pack_ternary(ternary, "2bit").tolist() == two_bit
    base3 = []
    for row in codes:
        values = [sum(row[5 * i + j] * 3 ** (4 - j) for j in range(5)) for i in range(-(-columns // 5))]
        base3.append([-(-256 * v // 243) for v in values])
    assert pack_ternary(ternary, "base3").tolist() == base3


def test_padding_is_zero_weights() -> None:
    assert pack_ternary(torch.tensor([[1]])).tolist() == [[0b01010110]]
    assert unpack_ternary(pack_ternary(torch.tensor([[1]])), 4).tolist() == [[1, 0, 0, 0]]


def test_sizes_of_the_formats() -> None:
    ternary = torch.zeros(2, 11, dtype=torch.int8)
    assert pack_ternary(ternary, "2bit").shape == (2, 3)
    assert pack_ternary(ternary, "base3").shape == (2, 3)
    assert pack_ternary(torch.zeros(2, 4096, dtype=torch.int8), "base3").shape == (2, 820)


def test_float_and_strided_weights_pack() -> None:
    ternary = random_integers(-1, 1, 6, 10, 1)
    assert torch.equal(pack_ternary(ternary.float().T), pack_ternary(ternary.T.contiguous()))


def test_code_3_is_refused_with_its_place() -> None:
    packed = pack_ternary(torch.zeros(3, 16, dtype=torch.int8))
    packed[1, 2] |= 0b110000
    with pytest.raises(
        QuantizationError, match=r"packed is \d+ at \[1, 2\], a code of 3, expected ternary weights in 2bit"
    ):
        unpack_ternary(packed, 16)


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@pytest.mark.parametrize(
    ("rows", "columns", "offset"), [(1, 1, 0), (3, 13, 0), (5, 16, 3), (700, 1001, 1), (1024, 512, 0)]
)
def test_one_damaged_byte_is_found_wherever_it_is(storage_format: str, rows: int, columns: int, offset: int) -> None:
    good, bad = (0b10010010, 0b10110010) if storage_format == "2bit" else (128, 20)
    packed = torch.full((rows * columns + offset,), good, dtype=torch.uint8)[offset:].view(rows, columns)
    in_features = columns * (4 if storage_format == "2bit" else 5)
    check_packed_ternary(packed, in_features, storage_format)
    for place in {0, rows * columns - 1, int(torch.randint(rows * columns, ()))}:
        row, column = divmod(place, columns)
        packed[row, column] = bad
        with pytest.raises(QuantizationError, match=rf"packed is {bad} at \[{row}, {column}\]"):
            check_packed_ternary(packed, in_features, storage_format)
        packed[row, column] = good


def test_every_byte_of_base3_is_decoded_or_refused() -> None:
    good = 0
    for byte in range(256):
        packed = torch.tensor([[byte]], dtype=torch.uint8)
        try:
            ternary = unpack_ternary(packed, 5, "base3")
        except QuantizationError:
            continue
        good += 1
        assert torch.equal(pack_ternary(ternary, "base3"), packed)
    assert good == 243


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.tensor([[0, 2]]), QuantizationError, "w_ternary is from 0 to 2, expected whole numbers from -1 to 1"),
        (torch.tensor([[0.5, 1.0]]), QuantizationError, "not all whole"),
        (torch.tensor([[float("nan"), 1.0]]), QuantizationError, "w_ternary"),
        (torch.tensor([0, 1]), ShapeError, r"w_ternary is of shape \[2\]"),
    ],
)
def test_what_is_not_ternary_is_refused(weights: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack_ternary(weights)


def test_wrong_packed_tensors_are_refused() -> None:
    packed = pack_ternary(torch.zeros(3, 16, dtype=torch.int8))
    with pytest.raises(
        ShapeError, match=r"packed is of shape \[3, 4\], expected \[out_features, 5\] for in_features 17"
    ):
        unpack_ternary(packed, 17)
    with pytest.raises(DtypeError, match=r"packed is torch.int32, expected torch.uint8"):
        unpack_ternary(packed.int(), 16)
    with pytest.raises(ArgumentError, match="storage_format is '3bit', expected '2bit' or 'base3'"):
        unpack_ternary(packed, 16, "3bit")  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="w_int4 is from 8 to 8"):
        pack_int4(torch.tensor([[8]]))
    with pytest.raises(QuantizationError, match="w_int8 is from 128 to 128"):
        pack_int8(torch.tensor([[128]]))
    with pytest.raises(ShapeError, match=r"packed is of shape \[1, 3\], expected \[out_features, 2\]"):
        unpack_int8(torch.zeros(1, 3, dtype=torch.uint8), 2)


def test_meta_tensors_pack_to_shapes() -> None:
    packed = pack_ternary(torch.empty(5, 9, dtype=torch.int8, device="meta"), "base3")
    assert (packed.shape, packed.device.type) == ((5, 2), "meta")
