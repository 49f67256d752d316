"""GGUF files: written here and read by gguf, written by gguf and read here, damaged, hostile."""

import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ternary_samples import packed, random_ternary

from bitcore import CheckpointError
from bitcore.exceptions import ArgumentError, DependencyError, QuantizationError, ShapeError
from bitcore.quantizers import dequantize
from bitmodels.formats import EncodedWeight, gguf_tensor, gguf_weight, open_checkpoint, write_gguf
from bitmodels.formats.fitting import BLOCK_SIZES
from bitmodels.formats.gguf_writer import OutgoingGgufTensor

METADATA: dict[str, Any] = {
    "general.architecture": "bitnet",
    "general.file_type": 37,
    "bitnet.rope.freq_base": 500000.0,
    "bitnet.offset": -(1 << 40),
    "tokenizer.ggml.tokens": ["a", "Ġb", "<s>"],
    "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0],
    "tokenizer.ggml.add_bos_token": True,
}


def write(path: Path, name: str = "TQ2_0", scale_tensor: bool = True) -> None:
    """Two ternary weights and three other tensors."""
    rows = [packed(random_ternary(6, 512), torch.tensor([0.3])), packed(random_ternary(4, 256), torch.tensor([0.7]))]
    tensors = [gguf_tensor("token_embd.weight", torch.randn(5, 7).bfloat16())]
    tensors += [gguf_tensor("output_norm.weight", torch.randn(7)), gguf_tensor("ids", torch.arange(3))]
    for number, (weight, config) in enumerate(rows):
        tensors += gguf_weight(f"blk.{number}.attn_q.weight", weight, config, name, scale_tensor=scale_tensor)
    write_gguf(path, tensors, METADATA)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write(path)
    return path.read_bytes()


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_ours_to_gguf_to_ours(tmp_path: Path, name: str, storage_format: str) -> None:
    weight, config = packed(random_ternary(6, 512), torch.rand(1) + 0.1, storage_format)
    embedding, norm, ids = torch.randn(5, 7).bfloat16(), torch.randn(7), torch.arange(3)
    tensors = [gguf_tensor("embedding", embedding), gguf_tensor("norm", norm), gguf_tensor("ids", ids)]
    tensors += gguf_weight("blk.0.attn_q.weight", weight, config, name, scale_tensor=name != "I2_S")
    write_gguf(tmp_path / "model.gguf", tensors, METADATA)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.config == {**METADATA, "general.architecture": "bitnet"}
    assert {entry.name: (entry.shape, entry.encoding) for entry in checkpoint.entries.values()} == {
        "embedding": ((5, 7), "bfloat16"),
        "norm": ((7,), "float32"),
        "ids": ((3,), "int64"),
        "blk.0.attn_q.weight": ((6, 512), name),
    }
    read = dict(checkpoint)
    for tensor_name, tensor in (("embedding", embedding), ("norm", norm), ("ids", ids)):
        assert torch.equal(read[tensor_name], tensor)
    back, back_config = read["blk.0.attn_q.weight"].pack(config)
    assert back_config == config
    assert torch.equal(back.packed, weight.packed)
    assert torch.equal(back.scale, weight.scale)
    assert open_checkpoint(tmp_path).entries == checkpoint.entries
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("scale_tensor", [False, True])
def test_gguf_reads_ternary_times_scale(tmp_path: Path, name: str, scale_tensor: bool) -> None:
    ternary, scale = random_ternary(6, 512), torch.rand(1) + 0.1
    weight, config = packed(ternary, scale)
    write_gguf(tmp_path / "m", gguf_weight("a.weight", weight, config, name, scale_tensor=scale_tensor), METADATA)
    reader = gguf.GGUFReader(tmp_path / "m")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["tokenizer.ggml.tokens"].contents() == METADATA["tokenizer.ggml.tokens"]
    assert found["a.weight"].shape.tolist() == [512, 6]
    values = torch.from_numpy(gguf.quants.dequantize(found["a.weight"].data, found["a.weight"].tensor_type))
    if scale_tensor:
        assert found["a.scale"].data.tolist() == scale.tolist()
        values = values * torch.from_numpy(found["a.scale"].data.copy())
    else:
        scale = scale.half().float()
    assert torch.equal(values, dequantize(ternary, scale))


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_what_gguf_writes_is_read(tmp_path: Path, alignment: int) -> None:
    ternary = random_ternary(3, 256).numpy()
    masters = np.random.default_rng(0).standard_normal((4, 96)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_uint8("small", 7)
    writer.add_float64("pi", 3.14159)
    writer.add_array("flags", [True, False])
    kind = gguf.GGMLQuantizationType
    writer.add_tensor("t", gguf.quants.quantize(ternary * np.float32(0.5), kind.TQ1_0), raw_dtype=kind.TQ1_0)
    writer.add_tensor("q8", gguf.quants.quantize(masters, kind.Q8_0), raw_dtype=kind.Q8_0)
    writer.add_tensor("half", masters.astype(np.float16))
    writer.add_tensor("cube", masters.reshape(2, 2, 96))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert [checkpoint.config[key] for key in ("small", "pi", "flags")] == [7, 3.14159, [True, False]]
    weight = checkpoint.read("t").decode()
    assert (weight.values.numpy() == ternary).all()
    assert weight.scale.tolist() == [0.5]
    assert checkpoint.entries["q8"].encoding == "Q8_0"
    expected = gguf.quants.dequantize(gguf.quants.quantize(masters, kind.Q8_0), kind.Q8_0)
    assert torch.equal(checkpoint.read("q8"), torch.from_numpy(expected))
    assert torch.equal(checkpoint.read("half"), torch.from_numpy(masters).half())
    assert torch.equal(checkpoint.read("cube"), torch.from_numpy(masters).reshape(2, 2, 96))


@given(st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    end = len(whole.rstrip(b"\0"))  # what follows is padding
    path.write_bytes(whole[: data.draw(st.integers(0, end - 1))])
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        open_checkpoint(path)


@given(st.data())
def test_damaged_headers_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """Whatever the bytes are, nothing but a CheckpointError comes out."""
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 900))
        damaged[place : place + 1] = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(damaged)
    try:
        for _, tensor in open_checkpoint(path):
            if isinstance(tensor, EncodedWeight):
                tensor.decode()
    except CheckpointError:
        pass


def header(tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, entries) + rest


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor_info(name: bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


HUGE = 1 << 60
SPACE = bytes(4096)
HOSTILE = [
    (b"", "is not a GGUF file"),
    (b"GGUF", "is truncated or damaged: 4 bytes are needed at byte 4, 0 follow"),
    (b"GGML" + SPACE, "does not begin with GGUF"),
    (header(version=1), "is of GGUF version 1, expected"),
    (header(version=3 << 24), "is big-endian"),
    (header(tensors=HUGE, rest=bytes(999)), "empty name"),
    (header(tensors=HUGE), "truncated or damaged: 8 bytes are needed"),
    (header(entries=HUGE), "truncated or damaged"),
    (header(entries=1, rest=struct.pack("<Q", HUGE) + SPACE), f"{HUGE} bytes are needed"),
    (header(entries=1, rest=string(b"k") + struct.pack("<IIQ", 9, 4, HUGE) + SPACE), f"{4 * HUGE} bytes are needed"),
    (header(entries=1, rest=string(b"k") + struct.pack("<IIQ", 9, 8, HUGE) + SPACE), f"{8 * HUGE} bytes are needed"),
    (header(entries=1, rest=string(b"k") + struct.pack("<IIQ", 9, 9, 1) + SPACE), "k is an array of type 9"),
    (header(entries=1, rest=string(b"k") + struct.pack("<I", 13) + SPACE), "k is of type 13"),
    (header(entries=1, rest=string(b"\xff\xfe") + SPACE), "not UTF-8"),
    (header(entries=2, rest=(string(b"k") + struct.pack("<IB", 0, 1)) * 2), "has the key k twice"),
    (header(entries=1, rest=string(b"general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
    (header(entries=1, rest=string(b"general.alignment") + struct.pack("<II", 4, 48)), "general.alignment is 48"),
    (header(entries=1, rest=string(b"general.alignment") + struct.pack("<IQ", 10, 32)), "a power of two as uint32"),
    (header(entries=1, rest=string(b"split.count") + struct.pack("<IH", 2, 3)), "is one of 3 parts"),
    (
        header(1, rest=tensor_info(b"t", (HUGE,)) + SPACE),
        rf"t \(F32 \[{HUGE}\]\) needs {4 * HUGE} bytes, \d+ are there",
    ),
    (header(1, rest=tensor_info(b"t", (1 << 32, 1 << 32)) + SPACE), "t is of shape"),
    (header(1, rest=tensor_info(b"t", (4, 0)) + SPACE), r"t is of shape \[0, 4\]"),
    (header(1, rest=tensor_info(b"t", (1,) * 5) + SPACE), "t has 5 dimensions"),
    (header(1, rest=tensor_info(b"t", ()) + SPACE), "t has 0 dimensions"),
    (header(1, rest=tensor_info(b"t", (1,), kind=99) + SPACE), "no tensor type has the number 99"),
    (header(1, rest=tensor_info(b"t", (1,), offset=HUGE) + SPACE), "needs 4 bytes, 0 are there"),
    (header(1, rest=tensor_info(b"t", (1,), offset=3) + SPACE), "t is at offset 3, expected a multiple of 32"),
    (header(2, rest=tensor_info(b"t", (1,)) * 2 + SPACE), "has the tensor t twice"),
    (header(2, rest=tensor_info(b"t", (9,)) + tensor_info(b"u", (9,), offset=32) + SPACE), "t .* needs 36 bytes, 32"),
    (header(1, rest=tensor_info(b"t", (300, 2), kind=35) + SPACE), r"t of shape \[2, 300\]: in_features is 300"),
    (header(1, rest=tensor_info(b"t", (100, 2), kind=36) + SPACE), "of 200 weights, expected a multiple of 128"),
    (header(1, rest=tensor_info(b"t", (33, 2), kind=8) + SPACE), "a row has 33 values, expected a multiple of 32"),
]


@pytest.mark.parametrize(("contents", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_hostile_headers_are_refused(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_q2_0_of_128_weights_a_block_is_told_from_a_truncated_file(tmp_path: Path) -> None:
    blocks = 64
    info = tensor_info(b"t", (128, blocks), kind=42)
    contents = header(1, rest=info)
    path = tmp_path / "model.gguf"
    path.write_bytes(contents + bytes(-len(contents) % 32) + bytes(34 * blocks))
    with pytest.raises(CheckpointError, match=r"needs 2304 bytes, 2176 are there. They would do for .*blocks of 128"):
        open_checkpoint(path)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale_tensors_are_refused(tmp_path: Path, bad: float) -> None:
    weight, config = packed(random_ternary(2, 256), torch.ones(1))
    tensors = gguf_weight("a.weight", weight, config, "TQ2_0", scale_tensor=True)
    tensors[1] = gguf_tensor("a.scale", torch.tensor([bad]))
    write_gguf(tmp_path / "m.gguf", tensors, METADATA)
    with pytest.raises(CheckpointError, match=rf"a.scale is {bad} at \[0\], expected positive and finite"):
        open_checkpoint(tmp_path / "m.gguf").read("a.weight")


def test_scale_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    weight, config = packed(random_ternary(2, 256), torch.ones(1))
    tensors = gguf_weight("a.weight", weight, config, "TQ2_0", scale_tensor=True)
    tensors[1] = gguf_tensor("a.scale", torch.ones(2))
    write_gguf(tmp_path / "m.gguf", tensors, METADATA)
    with pytest.raises(CheckpointError, match=r"a.scale is F32 \[2\], expected F32 \[1\] beside a.weight"):
        open_checkpoint(tmp_path / "m.gguf").read("a.weight")


def test_weights_that_cannot_be_written_are_refused_at_once() -> None:
    weight, config = packed(random_ternary(2, 320), torch.ones(1))
    with pytest.raises(ShapeError, match="in_features is 320, expected a multiple of 256 for TQ2_0; it fits Q2_0"):
        gguf_weight("a.weight", weight, config, "TQ2_0", scale_tensor=True)
    with pytest.raises(ArgumentError, match="format_name is 'TL1', expected one of TQ1_0, TQ2_0, Q2_0, I2_S"):
        gguf_weight("a.weight", weight, config, "TL1", scale_tensor=True)
    wide, wide_config = packed(random_ternary(2, 256), torch.ones(1))
    with pytest.raises(ArgumentError, match="scale_tensor is True, expected False: I2_S has the exact scale itself"):
        gguf_weight("a.weight", wide, wide_config, "I2_S", scale_tensor=True)
    rows, rows_config = packed(random_ternary(2, 256), torch.rand(2) + 0.1)
    with pytest.raises(ShapeError, match=r"weight_scale is of shape \[2\], expected \[1\] for a scale tensor"):
        gguf_weight("a.weight", rows, rows_config, "TQ2_0", scale_tensor=True)
    with pytest.raises(ArgumentError, match=r"a is torch\.complex64"):
        gguf_tensor("a", torch.zeros(2, dtype=torch.complex64))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    weight, config = packed(random_ternary(2, 256), torch.tensor([1e-30]))
    with pytest.raises(QuantizationError, match="weight_scale is from 1e-30"):
        write_gguf(path, gguf_weight("a.weight", weight, config, "TQ2_0", scale_tensor=False), METADATA)
    with pytest.raises(ShapeError, match="a is of 4 bytes, expected 8"):
        write_gguf(path, [OutgoingGgufTensor("a", (2,), 0, lambda: torch.ones(1))], METADATA)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.gguf", b"old")]


@pytest.mark.parametrize("value", [None, [], [1, "a"], [1 << 40], 1 << 70, {}, [[1]]])
def test_metadata_that_gguf_has_no_type_for_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ArgumentError, match=r"metadata\['key'\] is"):
        write_gguf(tmp_path / "m.gguf", [], {**METADATA, "key": value})
    with pytest.raises(ArgumentError, match=r"metadata is without general\.architecture"):
        write_gguf(tmp_path / "m.gguf", [], {})
    with pytest.raises(ArgumentError, match="tensors is with two of name a"):
        write_gguf(tmp_path / "m.gguf", [gguf_tensor("a", torch.ones(1))] * 2, METADATA)
    assert not list(tmp_path.iterdir())


def test_without_the_gguf_package(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert isinstance(open_checkpoint(path).read("blk.0.attn_q.weight"), EncodedWeight)
    with pytest.raises(DependencyError, match=r"writing GGUF files needs the gguf package: pip install gguf$"):
        write(tmp_path / "other.gguf")
    path.write_bytes(header(1, rest=tensor_info(b"t", (32, 2), kind=8) + SPACE))
    with pytest.raises(DependencyError, match="a tensor of GGUF type 8 needs the gguf package"):
        open_checkpoint(path)


def test_names_that_are_not_there(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"has no tensor blk\.0\.attn_q\.scale"):  # it belongs to the weight
        checkpoint.read("blk.0.attn_q.scale")
    path.write_bytes(whole[:2000])
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight cannot be read"):
        checkpoint.read("blk.1.attn_q.weight")
