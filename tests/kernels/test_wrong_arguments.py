"""What does not fit is a typed error of every kernel, which names the argument, what it was and what was expected."""

import pytest
import torch
from kernels_and_configs import every_kernel, random_weight, serve
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, DeviceError, DtypeError, ShapeError
from bitcore.kernels import BitKernelBase

PER_GROUP = BitQuantConfig(weight_granularity="per_group", group_size=32)
PER_CHANNEL = BitQuantConfig(weight_granularity="per_channel")
MINMAX = BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel", weight_quantizer="minmax")


@every_kernel
@pytest.mark.parametrize(
    ("config", "name", "change", "error", "message"),
    [
        (
            BitQuantConfig(),
            "packed",
            lambda p: p.repeat(1, 40),
            ShapeError,
            r"\[6, 640\], expected \[out_features, 16\]",
        ),
        (BitQuantConfig(), "packed", lambda p: p[:, :10].contiguous(), ShapeError, r"\[6, 10\], expected .*, 16\]"),
        (BitQuantConfig(), "packed", lambda p: p.flatten(), ShapeError, r"\[96\], expected .*, 16\]"),
        (BitQuantConfig(), "packed", lambda p: p.to(torch.int8), DtypeError, r"torch.int8, expected torch.uint8"),
        (BitQuantConfig(), "scale", lambda s: s.new_ones(2), ShapeError, r"\[2\], expected \[1\]"),
        (BitQuantConfig(), "scale", lambda s: s.new_ones(0), ShapeError, r"\[0\], expected \[1\]"),
        (BitQuantConfig(), "scale", lambda s: s.half(), DtypeError, r"torch.float16, expected torch.float32"),
        (BitQuantConfig(), "scale", lambda s: s.to("meta"), DeviceError, r"on meta"),
        (PER_CHANNEL, "scale", lambda s: s[:2], ShapeError, r"\[2\], expected \[6\]"),
        (PER_GROUP, "scale", lambda s: s.T.contiguous(), ShapeError, r"\[2, 6\], expected \[6, 2\]"),
        (PER_GROUP, "scale", lambda s: s[:, 0].contiguous(), ShapeError, r"\[6\], expected \[6, 2\]"),
        (MINMAX, "zero_point", lambda z: None, ArgumentError, r"None, expected zero points"),
        (MINMAX, "zero_point", lambda z: z.float(), DtypeError, r"torch.float32, expected torch.int8"),
        (MINMAX, "zero_point", lambda z: z[:5], ShapeError, r"\[5\], expected \[6\]"),
        (MINMAX, "zero_point", lambda z: z.to("meta"), DeviceError, r"on meta"),
        (PER_CHANNEL, "zero_point", lambda z: torch.zeros(6, dtype=torch.int8), ArgumentError, r"expected None"),
    ],
)
def test_weights_that_are_not_as_the_config_says(
    kernel_class: type[BitKernelBase],
    config: BitQuantConfig,
    name: str,
    change: object,
    error: type[Exception],
    message: str,
) -> None:
    kernel, weight = serve(kernel_class, config), random_weight(6, 64, config)
    assert callable(change)
    wrong = weight._replace(**{name: change(getattr(weight, name))})
    x = torch.randn(3, 64)
    with pytest.raises(error, match=f"weight_{name} is .*{message}"):
        kernel.linear(x, wrong)
    assert kernel.linear(x, weight).isfinite().all()


@every_kernel
@pytest.mark.parametrize(
    ("norm_weight", "error", "message"),
    [
        (torch.ones(1), ShapeError, r"\[1\], expected \[64\]"),
        (torch.ones(128), ShapeError, r"\[128\], expected \[64\]"),
        (torch.ones(64, dtype=torch.int64), DtypeError, r"torch.int64, expected torch.float32, x's dtype"),
        (torch.ones(64, dtype=torch.float16), DtypeError, r"torch.float16, expected torch.float32, x's dtype"),
        (torch.ones(64, device="meta"), DeviceError, r"on meta, expected on"),
    ],
    ids=str,
)
def test_a_norm_that_does_not_fit(
    kernel_class: type[BitKernelBase], norm_weight: Tensor, error: type[Exception], message: str
) -> None:
    kernel, weight = serve(kernel_class, BitQuantConfig()), random_weight(6, 64, BitQuantConfig())
    x = torch.randn(3, 64)
    if norm_weight.device.type == "cpu":
        norm_weight = norm_weight.to(x.device)
    with pytest.raises(error, match=f"norm_weight is .*{message}"):
        kernel.normed_linear(x, norm_weight, 1e-5, weight)
    with pytest.raises(ShapeError, match=r"x is of shape \[3, 63\]"):
        kernel.normed_linear(x[:, :63], x.new_ones(64), 1e-5, weight)
    assert kernel.normed_linear(x, x.new_ones(64), 1e-5, weight).isfinite().all()
