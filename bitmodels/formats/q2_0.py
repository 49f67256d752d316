"""GGUF Q2_0: 64 weights in 18 bytes, 2.25 bits each (ggml type 42, in llama.cpp since pull request 24448, June 2026).

    offset 0  fp16  scale
    offset 2  uint8 qs[16]

A byte holds the codes u = t + 1 of four neighbours, the first in the low bits: BitLab's own 2bit. Code 3 stands for +2
there; a ternary matrix has none, and one that has is refused.
"""

import torch
from torch import Tensor

from bitmodels.formats.block_format import BlockFormat


def codes_of_bytes(code_bytes: Tensor) -> Tensor:
    """uint8 [blocks, 16] -> uint8 codes [blocks, 64]."""
    return torch.stack([code_bytes >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)


def bytes_of_codes(codes: Tensor) -> Tensor:
    """uint8 codes [blocks, 64] -> uint8 [blocks, 16]."""
    first, second, third, fourth = codes.reshape(-1, 16, 4).unbind(-1)
    return first | second << 2 | third << 4 | fourth << 6


Q2_0 = BlockFormat("Q2_0", 42, None, 16, True, codes_of_bytes, bytes_of_codes)
