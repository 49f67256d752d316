"""Bytes that each format's own implementations write, kept as digests."""

from hashlib import sha256

import gguf
import pytest
import torch
from ternary_samples import decoded, golden_ternary
from torch import Tensor

from bitmodels.formats.bitnet import BITNET
from bitmodels.formats.gguf_types import TERNARY_FORMATS

TQ1_0 = "4caf7350c4a46ebb07589c227851cf92f7781fa4bdd1642551aa9a1965e1cbb3f757f6adf494f38b8b1f9a20f18405382d43ee100038"
TQ2_0 = (
    "28420568a229619280015944456886492a4504299216518468a9196051a64682"
    "2845998818869aa4a48295021a9541a00802aa026a98991655464a569a2410a50038"
)
Q2_0 = "003818961461461a14a99208609996442a14"
I2_S = "288150298a6849860240651151299261a851106886944512296a6409459a9182"
FIRST_BLOCK_AND_DIGEST = {
    "TQ1_0": (TQ1_0, "3aed914f77e3a60fa03579d755ea6fb53d6ec092310ef50dbc6f61cde62d54f8"),
    "TQ2_0": (TQ2_0, "a380a45b8a1eb39ccf1a12c43cd3e1540b9838be5d448e9332cf3d4029f51b2e"),
    "Q2_0": (Q2_0, "9ba9a1821962bc986f696421947056ad20880f90df9f108f653296bed824dce4"),
    "I2_S": (I2_S, "98bf00c2fc971b35e46e0dd4e09ea5c346beb74c91d3930d766c7ab6cd2bf740"),
}


def raw(data: Tensor) -> bytes:
    return data.numpy().tobytes()


def test_the_golden_matrix() -> None:
    ternary = golden_ternary()
    assert ternary[0, :16].tolist() == [-1, 1, 0, -1, 1, 0, 0, 1, -1, 0, 0, -1, 0, -1, 1, 0]
    assert [int((ternary == value).sum()) for value in (-1, 0, 1)] == [665, 681, 702]


@pytest.mark.parametrize("name", FIRST_BLOCK_AND_DIGEST)
def test_gguf(name: str) -> None:
    encoding = TERNARY_FORMATS[name]
    data = encoding.encode(golden_ternary(), torch.tensor([0.5]))
    first_block, digest = FIRST_BLOCK_AND_DIGEST[name]
    assert raw(data).hex().startswith(first_block)
    assert sha256(raw(data)).hexdigest() == digest
    assert data.numel() == encoding.nbytes(8, 256)
    weight = decoded(encoding, data, 8, 256)
    assert torch.equal(weight.values, golden_ternary())
    assert weight.scale.tolist() == [0.5]


def test_the_tail_of_i2_s() -> None:
    data = TERNARY_FORMATS["I2_S"].encode(golden_ternary(), torch.tensor([0.5]))
    assert raw(data)[-32:].hex() == "0000003f" + 28 * "00"


def test_bitnet() -> None:
    data = BITNET.encode(golden_ternary())
    assert data.shape == (2, 256)
    assert raw(data)[:16].hex() == "101219085211a98a20255124a954a6a9"
    assert sha256(raw(data)).hexdigest() == "61f685f0e07cbd01eec7cc51fe1ea5bc89ee1a4fb37fa2387083d4e1fa15b70a"
    assert torch.equal(decoded(BITNET, data, 8, 256).values, golden_ternary())


def test_the_example_in_transformers_documentation() -> None:
    data = torch.tensor([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], dtype=torch.uint8)
    expected = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
    assert decoded(BITNET, data, 8, 2).values.tolist() == expected
    assert torch.equal(BITNET.encode(torch.tensor(expected, dtype=torch.int8)), data)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_gguf_quantizes_to_the_same_bytes(name: str) -> None:
    weights = (golden_ternary() * 0.5).numpy().astype("float32")
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    ours = TERNARY_FORMATS[name].encode(golden_ternary(), torch.tensor([0.5]))
    assert theirs.tobytes() == raw(ours)
