"""The kernels compile for GPUs that are not here: no launch, so no GPU is needed."""

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bitcore.kernels.triton import INTERPRETED  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
SIZES = (
    "rows",
    "columns",
    "tokens",
    "out_features",
    "in_features",
    "row_bytes",
    "slice_bytes",
    "width",
    "groups",
    "group_bytes",
    "row_size",
)
STRIDES = ("token_stride", "feature_stride")
POINTERS = {
    "x": "*bf16", "q": "*i8", "y": "*bf16", "packed": "*u8", "scales": "*fp32", "sums": "*i32", "weight_scale": "*fp32",
    "zero_point": "*i8", "bias": "*bf16", "largest_magnitudes": "*fp32", "norm_weight": "*bf16", "norm_eps": "fp32",
}  # fmt: skip


def compiled(kernel: object, target: GPUTarget, constants: dict[str, object], **pointers: str) -> dict[str, str]:
    types = {
        **POINTERS,
        **pointers,
        **dict.fromkeys((*SIZES, *STRIDES), "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    names = kernel.arg_names
    signature = {name: types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in names
        if not signature[name].startswith(("constexpr", "tensordesc"))
        and name not in ("tokens", "groups", "rows", "columns", "threshold_factor", "norm_eps")
    }
    return triton.compile(ASTSource(kernel, signature, places, aligned), target=target, options={"num_warps": 4}).asm


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("per_byte", [4, 5, 2])
def test_products_compile(target: GPUTarget, per_byte: int) -> None:
    from bitcore.kernels.triton.product import product_kernel

    nvidia = target.backend == "cuda"
    constants = {
        "PER_BYTE": per_byte,
        "BLOCK": 32,
        "OFFSET": 1,
        "QUANTIZED": True,
        "GRANULARITY": "per_channel",
        "UNMASKED": True,
        "PTX": nvidia,
        "OVERLAP": nvidia and target.arch >= 90,
        "TOKENS": 64,
        "FEATURES": 64,
        "SLICES": 1,
        "BYTES": 32,
        "STAGES": 2,
        "BOXES": 0,
        "zero_point": None,
        "bias": None,
    }
    if nvidia and target.arch >= 90 and per_byte != 5:
        boxes = {"q": f"tensordesc<i8[64, {32 * per_byte}]>", "packed": "tensordesc<u8[64, 32]>"}
        assert "cp.async.bulk.tensor" in compiled(product_kernel, target, {**constants, "BOXES": 2}, **boxes)["ptx"]
    code = compiled(product_kernel, target, constants)
    if nvidia:  # int8 tensor cores, and on Hopper with the decoded weights from registers
        assert ("wgmma.mma_async" if target.arch >= 90 else "mma.sync") in code["ptx"]
        assert ".s8" in code["ptx"]
    else:
        assert "mfma_i32" in code["amdgcn"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
def test_the_other_kernels_compile(target: GPUTarget) -> None:
    from bitcore.kernels.triton.arrange import arrange_kernel
    from bitcore.kernels.triton.gemv import gemv_kernel

    nvidia = target.backend == "cuda"
    overlaps = nvidia and target.arch >= 90
    constants = {
        "PER_BYTE": 4,
        "OFFSET": 1,
        "ONE_SCALE": True,
        "PTX": nvidia,
        "OVERLAP": overlaps,
        "FEATURES": 4,
        "PIECES": 2,
        "WORDS": 256,
        "ALIGNED": True,
        "DIGITS": 1,
        "AHEAD": 0,
        "zero_point": None,
        "bias": None,
        "feature_stride": 1,
    }
    assert compiled(gemv_kernel, target, {**constants, "ALIGNED": False, "DIGITS": 3, "AHEAD": 1}, y="*fp32")
    code = compiled(gemv_kernel, target, constants)
    if nvidia:
        assert "dp4a.u32.s32" in code["ptx"]
        assert ("griddepcontrol.wait" in code["ptx"]) == overlaps
        assert "ld.global.b16" not in code["ptx"]  # x comes 16 bytes at a time
    constants = {
        "PER_BYTE": 4, "BLOCK": 32, "TILE": 512, "PARTS": 5, "EARLY": True, "QUANTIZE": True, "PTX": nvidia,
        "OVERLAP": overlaps, "feature_stride": 1,
    }  # fmt: skip
    per_token = {**constants, "PER_TENSOR": False, "largest_magnitudes": None}
    assert compiled(arrange_kernel, target, per_token)
    assert compiled(arrange_kernel, target, {**per_token, "in_features": 1})  # Triton takes ones for constants
    constants["norm_weight"] = None
    assert compiled(arrange_kernel, target, {**constants, "PER_TENSOR": True})
    code = compiled(arrange_kernel, target, {**constants, "PER_TENSOR": False, "largest_magnitudes": None})
    if nvidia:
        assert "ld.global.b16" not in code["ptx"]
    assert compiled(arrange_kernel, target, {**constants, "PER_TENSOR": False, "PARTS": 0})


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize(("per_byte", "slots"), [(4, 4), (5, 8)])
def test_the_passes_of_training_compile(target: GPUTarget, per_byte: int, slots: int) -> None:
    from bitcore.kernels.triton.training import (
        pack_kernel,
        row_statistics_kernel,
        scale_tokens_kernel,
        scales_kernel,
        unpack_kernel,
    )

    layout = {"PER_CHANNEL": False, "PER_BYTE": per_byte, "SLOTS": slots, "TILE": 256}
    weight = {"w": "*fp32", "statistics": "*fp64"}
    for absmean in (True, False):
        rule = {"ABSMEAN": absmean, "TILE": 1024}
        assert compiled(row_statistics_kernel, target, rule, **weight)
        assert compiled(scales_kernel, target, {**rule, "PER_CHANNEL": False}, **weight)
        assert compiled(pack_kernel, target, {**layout, "ABSMEAN": absmean}, threshold_factor="fp32", **weight)
    assert compiled(unpack_kernel, target, layout, w="*bf16")
    assert compiled(scale_tokens_kernel, target, {"PER_TENSOR": False, "TILE": 2048})
