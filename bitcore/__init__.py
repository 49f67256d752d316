"""BitLab's core: quantization configs, quantizers, packing, kernels. Needs torch and pydantic alone."""

from bitcore.config import BitQuantConfig
from bitcore.exceptions import BitLabError, CheckpointError, KernelNotFoundError, QuantizationError
from bitcore.version import __version__

__all__ = [
    "BitLabError",
    "BitQuantConfig",
    "CheckpointError",
    "KernelNotFoundError",
    "QuantizationError",
    "__version__",
]
