"""GGUF TQ2_0: 256 weights in 66 bytes, 2.0625 bits each (ggml type 35; layout of ggml's block_tq2_0).

    offset  0  uint8 qs[64]
    offset 64  fp16  scale

A byte holds the codes u = t + 1 of four weights that are 32 apart, the first in the low bits; 3 is no code:

    bits               7:6               5:4               3:2               1:0
    qs[32 h + m]       u[128h + 96 + m]  u[128h + 64 + m]  u[128h + 32 + m]  u[128h + m]      h = 0..1, m = 0..31
"""

import torch
from torch import Tensor

from bitmodels.formats.block_format import BlockFormat


def codes_of_bytes(code_bytes: Tensor) -> Tensor:
    """uint8 [blocks, 64] -> uint8 codes [blocks, 256]."""
    halves = code_bytes.reshape(-1, 2, 32)
    return torch.stack([halves >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)


def bytes_of_codes(codes: Tensor) -> Tensor:
    """uint8 codes [blocks, 256] -> uint8 [blocks, 64]."""
    first, second, third, fourth = codes.reshape(-1, 2, 4, 32).unbind(2)
    return (first | second << 2 | third << 4 | fourth << 6).flatten(1)


TQ2_0 = BlockFormat("TQ2_0", 35, 37, 64, False, codes_of_bytes, bytes_of_codes)
