"""`python -m bitcore`: what this machine has and which kernel each common config gets."""

import platform

import torch

import bitcore
from bitcore import extensions, machine
from bitcore.config import BitQuantConfig
from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels import KernelRegistry

PRESETS = {
    "bitnet_b158": BitQuantConfig.bitnet_b158(),
    "weight_only": BitQuantConfig.weight_only(),
    "int8_per_tensor": BitQuantConfig.int8_per_tensor(),
    "int4(128)": BitQuantConfig.int4(128),
    "bitnet_b158, base3": BitQuantConfig(storage_format="base3"),
}


def main() -> None:
    """Prints the facts and the tables."""
    missing = extensions.why_missing()
    features = machine.cpu_features()
    report = extensions.build_report()
    facts = {
        "bitlab": f"{bitcore.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads; "
        + (
            "features unknown without the extension"
            if features is None
            else ", ".join(features) or "no feature that a kernel asks for"
        ),
        "gpus": "; ".join(machine.gpus()) or "none that torch sees",
        "cpu kernels": missing
        or f"built: {', '.join(extensions.cpu_kernel_names())} ({report.get('compiler', 'unknown compiler')})",
    }
    cuda = report.get("cuda")
    built_for = ", ".join(cuda.get("architectures", ())) if isinstance(cuda, dict) else ""
    facts["cuda kernels"] = extensions.why_cuda_missing() or f"built for compute capability {built_for}"
    if missing:
        facts["to mend"] = extensions.REMEDY
    for name, fact in facts.items():
        print(f"{name + ':':<14} {fact}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        print(f"\nkernel for each config on {device}, by dtype of the input:")
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        print("  " + f"{'config':<20}" + "".join(f"{str(dtype).removeprefix('torch.'):<13}" for dtype in dtypes))
        for name, config in PRESETS.items():
            print("  " + f"{name:<20}" + "".join(f"{_kernel_name(config, device, dtype):<13}" for dtype in dtypes))
    for device in devices:
        print(f"\nKernelRegistry.explain(BitQuantConfig(), {device!r}):")
        print(KernelRegistry.explain(BitQuantConfig(), device))


def _kernel_name(config: BitQuantConfig, device: str, dtype: torch.dtype) -> str:
    try:
        return KernelRegistry.get_kernel_for_config(config, device, dtype).name
    except KernelNotFoundError:
        return "none"


if __name__ == "__main__":
    main()
