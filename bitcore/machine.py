"""Facts about this machine, each asked once."""

from functools import cache

import torch

from bitcore import extensions


@cache
def cpu_features() -> tuple[str, ...] | None:
    """What this CPU has of the features that kernels ask for, as in /proc/cpuinfo; None without the extension."""
    native = extensions.cpu_module()
    return None if native is None else tuple(native.cpu_features())


@cache
def gpus() -> tuple[str, ...]:
    """A line for each GPU that torch sees."""
    if torch.cuda.is_available():
        lines = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            lines.append(f"cuda:{index} {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
        return tuple(lines)
    return ("mps",) if torch.backends.mps.is_available() else ()
