"""The CUDA kernels on the emulator, as a kernel for CPU tensors."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.kernels.base import BitKernelBase
from bitcore.kernels.compiled import operator_mode
from bitcore.packed_weight import PackedWeight

LIBRARY_VARIABLE = "BITLAB_CUDA_EMULATOR"  # names what build.py makes
MAX_WEIGHTS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Weight(ctypes.Structure):
    """As in linear.h."""

    _fields_: ClassVar = [
        ("packed", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("scale_stride", ctypes.c_int64),
        ("zero_point", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_dtype", ctypes.c_int),
        ("y", ctypes.c_void_p),
    ]


class Linear(ctypes.Structure):
    """As in linear.h."""

    _fields_: ClassVar = [
        ("x", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("m", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("quantization", ctypes.c_int),
        ("format", ctypes.c_int),
        ("group_size", ctypes.c_int64),
        ("weights", Weight * MAX_WEIGHTS),
        ("weight_count", ctypes.c_int),
    ]


class Device(ctypes.Structure):
    """As in linear.h."""

    _fields_: ClassVar = [(name, ctypes.c_int) for name in ("compute_capability", "multiprocessors", "shared_memory")]


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

    def _linear_few(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
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
                self._run(linear)
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

    def _run(self, linear: Linear) -> None:
        arguments = ctypes.byref(linear), None, ctypes.byref(self._device)
        workspace = torch.randint(256, (self._library.emulated_workspace_bytes(*arguments),), dtype=torch.uint8)
        seed = int(torch.randint(2**31, ()))
        error = self._library.emulated_run(*arguments, ctypes.c_void_p(workspace.data_ptr()), seed)
        if error != 0:
            raise RuntimeError(f"the kernels return error {error}")
