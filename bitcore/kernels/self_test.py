"""The self-test of the compiled CPU kernels: what one computes before it may serve, once a process."""

import warnings

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ExtensionWarning
from bitcore.kernels.compiled import operator_mode
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import QuantizedWeight

OUT_FEATURES, IN_FEATURES = 29, 333  # tails of every kernel's tiles
ROWS = (1, 9)  # one token, and more than a tile of them
CONFIGS = (  # every storage format, with the lowest and the highest weight
    (BitQuantConfig(), -1, 1),
    (BitQuantConfig(storage_format="base3"), -1, 1),
    (BitQuantConfig(weight_dtype="int4", weight_granularity="per_tensor"), -8, 7),
    (BitQuantConfig(weight_dtype="int8"), -128, 127),
)


@torch.no_grad()
def failure_of(name: str, index: int) -> str | None:
    """Where outputs of the kernel `name`, the operator's `index`, are not the exact ones, or None; warns if so.

    Activations are whole numbers with 127 the largest, so their int8 scale is 1 and every output a whole number.
    """
    with _disable_current_modes():  # the first layer may be built of fake tensors, or on the meta device
        for config, lowest, highest in CONFIGS:
            values = _whole_numbers(OUT_FEATURES, lowest, highest)
            quantized = QuantizedWeight(values.to(torch.int8), torch.ones(1, device="cpu"), None)
            packed, scale, _, _ = PackedWeight.from_quantized(quantized, config)
            mode = operator_mode(config) | index
            for rows in ROWS:
                x = _whole_numbers(rows, -127, 127)
                x[:, 0] = 127
                y = torch.ops.bitlab.packed_linear.default(x.float(), packed, scale, None, None, IN_FEATURES, mode)
                wrong = int((y != (x @ values.T).float()).sum())
                if wrong > 0:
                    failure = f"{wrong} of {y.numel()} outputs are wrong for {config.packed_format} and {rows} tokens"
                    warnings.warn(f"kernel {name} is left out: {failure}. Please report it", ExtensionWarning, 2)
                    return failure
    return None


def _whole_numbers(rows: int, lowest: int, highest: int) -> Tensor:
    """int64 [rows, IN_FEATURES], spread over lowest..highest: the same ones always, PyTorch's generator untouched."""
    numbers = torch.arange(rows * IN_FEATURES, device="cpu") * 2654435761 >> 9  # Knuth's multiplicative hash
    return (lowest + numbers % (highest - lowest + 1)).reshape(rows, IN_FEATURES)
