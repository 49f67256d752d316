"""Products that take the norm in front of them along: the bits of norm and product one after the other."""

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels.cuda import ROW_SOURCES, CudaKernel
from bitcore.ops import cuda_decoding
from bitcore.packed_weight import PackedWeight

UNAVAILABLE = CudaKernel.unavailable_reason()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONFIGS = {
    "2bit": BitQuantConfig(),
    "base3": BitQuantConfig(storage_format="base3"),
    "int4": BitQuantConfig.int4(group_size=64),
    "weight_only": BitQuantConfig.weight_only(),
    "per_channel": BitQuantConfig(weight_granularity="per_channel"),
    "per_tensor": BitQuantConfig(activation_granularity="per_tensor"),
    "int8": BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel", activation_dtype="float32"),
}


def rows_of(source: str, x: Tensor, other: Tensor | None, norm: tuple[Tensor, float] | None) -> tuple[Tensor, Tensor]:
    """(the rows before the norm, the rows), one operator after the other."""
    if source in ("copy", "add"):
        before = x if other is None else x + other
    else:
        assert other is not None
        before = cuda_decoding.gated_activation(x, other, source, None, 0.0)
    return before, before if norm is None else cuda_decoding.rms_norm(before, *norm)


@pytest.mark.parametrize("source", ROW_SOURCES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_gives_the_bits_of_norm_and_products_one_after_the_other(source: str, dtype: torch.dtype, name: str) -> None:
    config = CONFIGS[name]
    kernel = CudaKernel(config)
    for shape, in_features in (((1,), 2560), ((1, 1), 6912), ((3,), 2560), ((1,), 64), ((20,), 320), ((1,), 8256)):
        for has_norm, has_bias in ((True, False), (False, True)):
            weights = [
                PackedWeight.from_float(torch.randn(rows, in_features, device="cuda"), config) for rows in (70, 16, 1)
            ]
            biases = [torch.randn(len(weight.packed), device="cuda") for weight in weights] if has_bias else []
            x, other = (torch.randn(2, *shape, in_features, device="cuda") * 3).to(dtype).unbind()
            second = None if source == "copy" else other
            norm = (torch.randn(in_features, device="cuda").to(dtype), 1e-5) if has_norm else None
            before, rows = rows_of(source, x, second, norm)
            outputs = kernel.normed_linear_group(source, x, second, norm, weights, biases)
            expected = kernel.linear_group(rows, weights, biases or [None] * 3)
            if source == "add":
                expected.append(before)
            assert len(outputs) == len(expected)
            for output, wanted in zip(outputs, expected, strict=True):
                assert torch.equal(output, wanted)


@torch.no_grad()
def test_rows_that_are_not_finite_stay_their_own_matter() -> None:
    kernel = CudaKernel(BitQuantConfig())
    weights = [PackedWeight.from_float(torch.randn(40, 256, device="cuda"), kernel.config)]
    x, norm = torch.randn(3, 256, device="cuda").bfloat16(), (torch.ones(256, device="cuda").bfloat16(), 1e-5)
    x[1, 7] = torch.inf
    (y,) = kernel.normed_linear_group("copy", x, None, norm, weights, [])
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    assert kernel.normed_linear_group("copy", x[1], None, norm, weights, [])[0].isnan().all()


def test_arguments_that_do_not_fit_are_refused() -> None:
    kernel = CudaKernel(BitQuantConfig())
    weights = [PackedWeight.from_float(torch.randn(40, 256, device="cuda"), kernel.config)]
    x, norm = torch.randn(1, 256, device="cuda"), (torch.ones(256, device="cuda"), 1e-5)
    for arguments, message in (
        (("copy", x, x, norm, weights, []), "source must"),
        (("add", x, None, norm, weights, []), "source must"),
        (("add", x, x.half(), norm, weights, []), "second tensor must"),
        (("copy", torch.cat([x, x]).T, None, norm, weights, []), "x must"),
        (("copy", x[:, :128], None, None, weights, []), "x must"),
        (("copy", x[:, :128].contiguous(), None, None, weights, []), "x must"),
        (("copy", x, None, (norm[0][:9], 1e-5), weights, []), "weight must"),
        (("copy", x, None, norm, weights * 5, []), "1 to 4 weights"),
        (("copy", x, None, norm, weights, [x[0]] * 2), "equally long"),
    ):
        with pytest.raises(RuntimeError, match=message):
            kernel.normed_linear_group(*arguments)


def test_opcheck() -> None:
    kernel = CudaKernel(BitQuantConfig())
    packed, scale, _, in_features = PackedWeight.from_float(torch.randn(40, 256, device="cuda"), kernel.config)
    x, norm_weight = (
        torch.randn(2, 1, 256, device="cuda").bfloat16().unbind(),
        torch.ones(256, device="cuda").bfloat16(),
    )
    for source, other in ((0, None), (1, x[1]), (2, x[1])):
        arguments = (x[0], other, norm_weight, 1e-5, source, [packed], [scale], [], [], in_features, kernel._mode)
        torch.library.opcheck(torch.ops.bitlab.normed_linear_group.default, arguments)
