"""The self-test of the compiled CPU kernels: what one computes before it may serve, once a process."""

import warnings

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from bitcore.exceptions import ExtensionWarning
from bitcore.packing import pack_int4, pack_int8, pack_ternary

OUT_FEATURES, IN_FEATURES = 29, 333  # tails of every kernel's tiles
ROWS = (1, 9)  # one token, and more than a tile of them
FORMATS = {"2bit": (-1, 1), "base3": (-1, 1), "int4": (-8, 7), "int8": (-128, 127)}  # as the operator numbers them


@torch.no_grad()
def failure_of(name: str, index: int) -> str | None:
    """Where outputs of the kernel `name`, the operator's `index`, are not the exact ones, or None; warns if so.

    Activations are whole numbers with 127 the largest, so their int8 scale is 1 and every output a whole number.
    """
    with _disable_current_modes():  # the first layer may be built of fake tensors, or on the meta device
        for number, (storage_format, (lowest, highest)) in enumerate(FORMATS.items()):
            weight = _whole_numbers(OUT_FEATURES, lowest, highest)
            packed = _packed(weight, storage_format)
            for rows in ROWS:
                x = _whole_numbers(rows, -127, 127)
                x[:, 0] = 127
                arguments = packed, torch.ones(1, device="cpu"), None, None, IN_FEATURES, number << 8 | index
                y = torch.ops.bitlab.packed_linear.default(x.float(), *arguments)
                wrong = int((y != (x @ weight.T).float()).sum())
                if wrong > 0:
                    failure = f"{wrong} of {y.numel()} outputs are wrong for {storage_format} and {rows} tokens"
                    warnings.warn(f"kernel {name} is left out: {failure}. Please report it", ExtensionWarning, 2)
                    return failure
    return None


def _packed(weight: Tensor, storage_format: str) -> Tensor:
    if storage_format == "int4":
        return pack_int4(weight)
    return pack_int8(weight) if storage_format == "int8" else pack_ternary(weight, storage_format)  # type: ignore[arg-type]


def _whole_numbers(rows: int, lowest: int, highest: int) -> Tensor:
    """int64 [rows, IN_FEATURES], spread over lowest..highest: the same ones always, PyTorch's generator untouched."""
    numbers = torch.arange(rows * IN_FEATURES, device="cpu") * 2654435761 >> 9  # Knuth's multiplicative hash
    return (lowest + numbers % (highest - lowest + 1)).reshape(rows, IN_FEATURES)
