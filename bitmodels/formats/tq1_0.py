"""GGUF TQ1_0: 256 weights in 54 bytes, 1.6875 bits each (ggml type 34; layout of ggml's block_tq1_0).

    offset  0  uint8 qs[48]    5 weights a byte
    offset 48  uint8 qh[4]     4 weights a byte
    offset 52  fp16  scale

A byte holds the digits u = t + 1 of its weights as the fraction v / 243 in units of 1/256, rounded up, as in BitLab's
base3; v has the first digit as its most significant one, and in qh a fifth digit 0. The weights of a byte are not
neighbours:

    qs[m],     m = 0..31    weights       m + 32 n, n = 0..4
    qs[32 + m] m = 0..15    weights 160 + m + 16 n, n = 0..4
    qh[m],     m = 0..3     weights 240 + m +  4 n, n = 0..3
"""

import torch
from torch import Tensor

from bitmodels.formats.block_format import BlockFormat

PARTS = ((32, 5), (16, 5), (4, 4))  # bytes and digits of qs[:32], qs[32:], qh
POWERS_OF_3 = (1, 3, 9, 27, 81)


def codes_of_bytes(code_bytes: Tensor) -> Tensor:
    """uint8 [blocks, 52] -> uint8 codes [blocks, 256]. Every byte has digits, also the 13 that no encoder writes."""
    powers = torch.tensor(POWERS_OF_3, dtype=torch.uint8).reshape(1, -1, 1)
    parts = torch.split(code_bytes, [count for count, _ in PARTS], dim=1)
    digits = []
    for part, (_, weights) in zip(parts, PARTS, strict=True):
        fraction = part.unsqueeze(1) * powers[:, :weights]  # modulo 256: the digits before are gone
        digits.append((fraction.to(torch.int16) * 3 >> 8).to(torch.uint8).flatten(1))
    return torch.cat(digits, dim=1)


def bytes_of_codes(codes: Tensor) -> Tensor:
    """uint8 codes [blocks, 256] -> uint8 [blocks, 52]."""
    parts = torch.split(codes, [count * weights for count, weights in PARTS], dim=1)
    packed = []
    for part, (count, weights) in zip(parts, PARTS, strict=True):
        value = torch.zeros(len(codes), count, dtype=torch.int32)
        for digit in part.reshape(-1, weights, count).unbind(1):
            value = value * 3 + digit
        value = value * 3 ** (5 - weights)
        packed.append(((value * 256 + 242) // 243).to(torch.uint8))
    return torch.cat(packed, dim=1)


TQ1_0 = BlockFormat("TQ1_0", 34, 36, 52, False, codes_of_bytes, bytes_of_codes)
