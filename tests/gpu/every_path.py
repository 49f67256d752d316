"""Runs every path of the CUDA kernels once on small odd shapes; to be run under compute-sanitizer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitcore.kernels.cuda import CudaKernel
from bitcore.kernels.reference import ReferenceKernel
from bitcore.ops import cuda_decoding
from bitcore.packed_weight import PackedWeight
from bitlayers.rotary import HalfRotary

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel", weight_quantizer="minmax"),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(weight_granularity="per_group", group_size=64),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
]


def main() -> None:
    """Raises where a kernel differs from the reference."""
    assert KernelRegistry._kernels["cuda"].unavailable_reason() is None
    for config in CONFIGS:
        kernel, reference = KernelRegistry._kernels["cuda"](config), ReferenceKernel(config)
        # The last two have so many rows that a block takes more of them.
        for in_features, out_features in ((203, 141), (1280, 80), (7680, 40), (2061, 4509), (4200, 11003)):
            weight = PackedWeight.from_float(torch.randn(out_features, in_features, device="cuda"), config)
            for rows in (1, 2, 3, 9, 16, 20, 70, 130, 515) if out_features < 1000 else (9, 16):
                x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
                assert torch.equal(kernel.linear(x, weight), reference.linear(x, weight)), (config, rows)
        # Few tokens of more tiles than multiprocessors.
        weight = PackedWeight.from_float(torch.randn(17000, 320, device="cuda"), config)
        x = torch.randn(12, 320, device="cuda", dtype=torch.bfloat16)
        assert torch.equal(kernel.linear(x, weight), reference.linear(x, weight)), config
    # Of whole eights of rows: in turns of an H200, the last one narrower where there are 392. The last two are tiles of
    # three warpgroups there.
    for rows, out_features, in_features in (
        (200, 13501, 256),
        (280, 13501, 256),
        (392, 13501, 256),
        (200, 13504, 256),
        (280, 13504, 256),
        (392, 13504, 256),
        (16, 11003, 4096),
        (128, 9001, 512),
    ):
        y, expected = by_both(CONFIGS[0], rows, out_features, in_features)
        assert torch.equal(y, expected), (out_features, rows)
    for rows, out_features, in_features in (
        (1, 141, 203),
        (4, 141, 203),
        (20, 141, 203),
        (200, 141, 203),
        (280, 5888, 512),
        (192, 23000, 256),
    ):
        y, expected = by_both(BitQuantConfig.weight_only(), rows, out_features, in_features)
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    between_products()
    torch.cuda.synchronize()
    print("all equal")


def by_both(config: BitQuantConfig, rows: int, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """A random layer of random bfloat16 tokens, [rows, out_features]: by the CUDA kernel, and by the reference."""
    weight = PackedWeight.from_float(torch.randn(out_features, in_features, device="cuda"), config)
    x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
    return KernelRegistry._kernels["cuda"](config).linear(x, weight), ReferenceKernel(config).linear(x, weight)


@torch.no_grad()
def between_products() -> None:
    """The steps of decoding: a few rows, and attention in one part and in several."""
    kernel = CudaKernel(BitQuantConfig())
    for in_features, rows in ((203, 3), (1280, 1), (8320, 1)):
        weight = PackedWeight.from_float(torch.randn(90, in_features, device="cuda"), kernel.config)
        x, delta = torch.randn(2, rows, in_features, device="cuda").bfloat16().unbind()
        norm = torch.rand(in_features, device="cuda").bfloat16(), 1e-5
        y, before = kernel.normed_linear_group("add", x, delta, norm, [weight], [])
        total, normed = cuda_decoding.add_rms_norm(x, delta, *norm)
        assert torch.equal(before, total)
        assert torch.equal(y, kernel.linear(normed, weight))
    for room, past in ((40, 17), (2300, 1999)):
        q, (k, v) = torch.randn(1, 1, 512, device="cuda").half(), torch.randn(2, 1, 1, 128, device="cuda").half()
        cos, sin = torch.rand(2, 1, 64, device="cuda").half()
        keys, values = torch.randn(2, 1, 2, room, 64, device="cuda").half()
        position, arrivals = torch.tensor([past], device="cuda"), torch.zeros(8, dtype=torch.int32, device="cuda")
        y = cuda_decoding.attend_at(q, k, v, cos, sin, keys, values, position, arrivals)
        turned = HalfRotary(cos, sin)(q.view(1, 8, 1, 64), k.view(1, 2, 1, 64))[0].double()
        seen = keys[:, :, : past + 1].double(), values[:, :, : past + 1].double()
        expected = F.scaled_dot_product_attention(turned, *seen, enable_gqa=True).view(y.shape)
        torch.testing.assert_close(y.double(), expected, rtol=0.01, atol=0.01)


if __name__ == "__main__":
    main()
