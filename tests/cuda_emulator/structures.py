"""What the CUDA kernels are called with, as their headers have it (bitcore/csrc/cuda)."""

import ctypes
from typing import ClassVar

MAX_WEIGHTS = 4


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


class RowNorm(ctypes.Structure):
    """As in row_norm.h."""

    _fields_: ClassVar = [
        ("source", ctypes.c_int),
        ("x", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("eps", ctypes.c_float),
    ]


class Attention(ctypes.Structure):
    """As in attention.h; the library finds `splits` and the workspace."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "cos", "sin", "keys", "values", "position", "y")),
        *((name, ctypes.c_void_p) for name in ("partial", "arrivals")),
        *((name, ctypes.c_int) for name in ("dtype", "batch", "heads", "kv_heads", "head_dim")),
        ("room", ctypes.c_int64),
        ("splits", ctypes.c_int),
    ]
