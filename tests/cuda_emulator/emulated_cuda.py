"""The CUDA kernels on the emulator, as a kernel for CPU tensors."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from structures import MAX_WEIGHTS, Attention, Device, Linear, RowNorm, Weight
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.kernels.base import BitKernelBase
from bitcore.kernels.compiled import operator_mode
from bitcore.kernels.cuda import ROW_SOURCES
from bitcore.packed_weight import PackedWeight

LIBRARY_VARIABLE = "BITLAB_CUDA_EMULATOR"  # names what build_emulator.py makes
needs_library = pytest.mark.skipif(
    LIBRARY_VARIABLE not in os.environ, reason="needs a build for the emulator: make test-cuda-emulated"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as linear.h numbers them
# An H200; the same with so few multiprocessors that each computes many tiles; an A100; a T4.
DEVICES = (Device(90, 132, 232448), Device(90, 6, 232448), Device(80, 108, 166912), Device(75, 40, 65536))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
    library.emulated_workspace_bytes.restype = ctypes.c_size_t
    return library


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class EmulatedCuda(BitKernelBase):
    """The kernels of bitcore/csrc/cuda for a `device`, on CPU tensors and in an order of events that chance decides."""

    device_types = frozenset({"cpu"})

    def __init__(self, config: BitQuantConfig, device: Device) -> None:
        super().__init__(config)
        self._device = device
        self._library = _library()

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        return self.linear_group(x, [weight], [bias])[0]

    def linear_group(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for first in range(0, len(weights), MAX_WEIGHTS):
            part = slice(first, first + MAX_WEIGHTS)
            outputs += self._linear_few(x, weights[part], biases[part])
        return outputs

    def normed_linear_group(
        self,
        source: str,
        x: Tensor,
        other: Tensor | None,
        norm: tuple[Tensor, float],
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """As that of CudaKernel."""
        row_norm, values = _row_norm(source, x, other, norm)
        outputs = self._linear_few(x, weights, biases, row_norm)
        return outputs if values is None else [*outputs, values]

    def row_norm(self, source: str, x: Tensor, other: Tensor | None, norm: tuple[Tensor, float]) -> Tensor:
        """The rows that `normed_linear_group` multiplies."""
        row_norm, _ = _row_norm(source, x, other, norm)
        y = torch.empty_like(x)
        row_norm.y = y.data_ptr()
        _check(self._library.emulated_row_norm(ctypes.byref(row_norm), ctypes.byref(self._device), _seed()))
        return y

    def attend_at(self, *tensors: Tensor) -> Tensor:
        """As bitcore.ops.cuda_decoding.attend_at."""
        q, keys = tensors[0], tensors[5]
        batch, kv_heads, room, head_dim = keys.shape
        y = torch.empty_like(q)
        names = ("q", "k", "v", "cos", "sin", "keys", "values", "position", "arrivals")
        attention = Attention(
            **{name: tensor.data_ptr() for name, tensor in zip(names, tensors, strict=True)},
            y=y.data_ptr(),
            dtype=DTYPES.index(q.dtype),
            batch=batch,
            heads=q.shape[2] // head_dim,
            kv_heads=kv_heads,
            head_dim=head_dim,
            room=room,
        )
        _check(self._library.emulated_attention(ctypes.byref(attention), ctypes.byref(self._device), _seed()))
        return y

    def _linear_few(
        self,
        x: Tensor,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor | None],
        row_norm: RowNorm | None = None,
    ) -> list[Tensor]:
        k = weights[0].in_features
        rows = x.reshape(-1, k)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        outputs = [rows.new_full((len(rows), len(weight.packed)), float("nan")) for weight in weights]
        if len(rows) > 0:
            mode = operator_mode(self.config)
            linear = Linear(
                x=rows.data_ptr(),
                dtype=DTYPES.index(x.dtype),
                m=len(rows),
                k=k,
                x_stride=rows.stride(0),
                quantization=mode >> 10 & 3,
                format=mode >> 8 & 3,
                group_size=mode >> 16,
            )
            for weight, bias, y in zip(weights, biases, outputs, strict=True):
                if len(weight.packed) > 0:
                    linear.weights[linear.weight_count] = self._weight(weight, bias, y)
                    linear.weight_count += 1
            if linear.weight_count > 0:
                self._run(linear, row_norm)
        return [y.reshape(*x.shape[:-1], y.shape[1]) for y in outputs]

    @staticmethod
    def _weight(weight: PackedWeight, bias: Tensor | None, y: Tensor) -> Weight:
        groups = weight.scale.shape[1] if weight.scale.dim() == 2 else 1
        return Weight(
            packed=weight.packed.data_ptr(),
            n=len(weight.packed),
            scale=weight.scale.data_ptr(),
            scale_stride=0 if weight.scale.numel() == 1 else groups,
            zero_point=_pointer(weight.zero_point),
            bias=_pointer(bias),
            bias_dtype=0 if bias is None else DTYPES.index(bias.dtype),
            y=y.data_ptr(),
        )

    def _run(self, linear: Linear, row_norm: RowNorm | None) -> None:
        norm = None if row_norm is None else ctypes.byref(row_norm)
        arguments = ctypes.byref(linear), norm, ctypes.byref(self._device)
        workspace = torch.randint(256, (self._library.emulated_workspace_bytes(*arguments),), dtype=torch.uint8)
        _check(self._library.emulated_run(*arguments, ctypes.c_void_p(workspace.data_ptr()), _seed()))


def _row_norm(
    source: str, x: Tensor, other: Tensor | None, norm: tuple[Tensor, float]
) -> tuple[RowNorm, Tensor | None]:
    """What is asked, and where x + other will be."""
    values = torch.empty_like(x) if source == "add" else None
    weight, eps = norm
    row_norm = RowNorm(
        source=ROW_SOURCES.index(source),
        x=x.data_ptr(),
        other=_pointer(other),
        values=_pointer(values),
        weight=weight.data_ptr(),
        dtype=DTYPES.index(x.dtype),
        rows=x.numel() // x.shape[-1],
        n=x.shape[-1],
        eps=eps,
    )
    return row_norm, values


def _seed() -> int:
    return int(torch.randint(2**31, ()))


def _check(error: int) -> None:
    if error != 0:
        raise RuntimeError(f"the kernels return error {error}")
