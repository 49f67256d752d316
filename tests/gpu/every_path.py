"""Runs every path of the CUDA kernels once on small odd shapes; to be run under compute-sanitizer."""

import torch

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel", weight_quantizer="minmax"),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(weight_granularity="per_group", group_size=64),
]


def main() -> None:
    """Raises where a kernel differs from the reference."""
    assert KernelRegistry._kernels["cuda"].unavailable_reason() is None
    for config in CONFIGS:
        kernel, reference = KernelRegistry._kernels["cuda"](config), ReferenceKernel(config)
        # The last two have so many rows that a block takes more of them.
        for in_features, out_features in ((203, 141), (1280, 80), (2061, 4509), (600, 11003)):
            weight = PackedWeight.from_float(torch.randn(out_features, in_features, device="cuda"), config)
            for rows in (1, 3, 9, 16, 20, 70, 130, 515) if out_features < 1000 else (9, 16):
                x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
                assert torch.equal(kernel.linear(x, weight), reference.linear(x, weight)), (config, rows)
    config = BitQuantConfig.weight_only()
    weight = PackedWeight.from_float(torch.randn(141, 203, device="cuda"), config)
    for rows in (1, 4, 20, 200):
        x = torch.randn(rows, 203, device="cuda", dtype=torch.bfloat16)
        y, expected = (
            kernel(config).linear(x, weight) for kernel in (KernelRegistry._kernels["cuda"], ReferenceKernel)
        )
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    torch.cuda.synchronize()
    print("all equal")


if __name__ == "__main__":
    main()
