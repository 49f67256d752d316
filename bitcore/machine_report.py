"""machine_report: what this machine has, and which kernel each common config gets on it."""

import platform
from dataclasses import dataclass

import torch

from bitcore import extensions, machine
from bitcore.config import BitQuantConfig
from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels import KernelRegistry, KernelRequest
from bitcore.kernels.registry import Verdict
from bitcore.version import __version__

PRESETS = {
    "bitnet_b158": BitQuantConfig.bitnet_b158(),
    "weight_only": BitQuantConfig.weight_only(),
    "int8_per_tensor": BitQuantConfig.int8_per_tensor(),
    "int4(128)": BitQuantConfig.int4(128),
    "bitnet_b158, base3": BitQuantConfig(storage_format="base3"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class DeviceReport:
    """The kernels of one device."""

    device: str
    kernel_of: dict[str, dict[str, str | None]]  # by config and dtype of the input; None: no kernel serves it
    verdicts: tuple[Verdict, ...]  # on float32 inputs of the default config, best kernel first


@dataclass(frozen=True)
class MachineReport:
    """What `machine_report` found: facts by name, and the devices that torch can use."""

    facts: dict[str, str]
    devices: tuple[DeviceReport, ...]


def versions() -> str:
    """BitLab's version, and those of torch and Python."""
    return f"{__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def machine_report() -> MachineReport:
    """Asks this machine."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return MachineReport(_facts(), tuple(_device_report(device) for device in devices))


def _facts() -> dict[str, str]:
    missing = extensions.why_missing()
    features = machine.cpu_features()
    report = extensions.build_report()
    cuda, threads = report.get("cuda"), torch.get_num_threads()
    built_for = ", ".join(cuda.get("architectures", ())) if isinstance(cuda, dict) else ""
    facts = {
        "bitlab": versions(),
        "cpu": f"{platform.machine()}, {threads} thread{'' if threads == 1 else 's'}; "
        + (
            "features unknown without the extension"
            if features is None
            else ", ".join(features) or "no feature that a kernel asks for"
        ),
        "gpus": "; ".join(machine.gpus()) or "none that torch sees",
        "cpu kernels": missing
        or f"built: {', '.join(extensions.cpu_kernel_names())} ({report.get('compiler', 'unknown compiler')})",
        "cuda kernels": extensions.why_cuda_missing() or f"built for compute capability {built_for}",
    }
    return {**facts, "to mend": extensions.REMEDY} if missing else facts


def _device_report(device: str) -> DeviceReport:
    kernel_of = {
        name: {str(dtype).removeprefix("torch."): _kernel_name(config, device, dtype) for dtype in DTYPES}
        for name, config in PRESETS.items()
    }
    verdicts = KernelRegistry.verdicts(KernelRequest(BitQuantConfig(), device, torch.float32))
    return DeviceReport(device, kernel_of, tuple(verdicts))


def _kernel_name(config: BitQuantConfig, device: str, dtype: torch.dtype) -> str | None:
    try:
        return KernelRegistry.get_kernel_for_config(config, device, dtype).name
    except KernelNotFoundError:
        return None
