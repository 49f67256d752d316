"""`python -m bitcore`: what this machine has and which kernel each common config gets."""

from bitcore.broken_pipe import quiet_without_a_reader
from bitcore.config import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitcore.machine_report import DTYPES, machine_report


def main() -> None:
    """Prints the facts and the tables."""
    report = machine_report()
    for name, fact in report.facts.items():
        print(f"{name + ':':<14} {fact}")
    for device in report.devices:
        print(f"\nkernel for each config on {device.device}, by dtype of the input:")
        print("  " + f"{'config':<20}" + "".join(f"{str(dtype).removeprefix('torch.'):<13}" for dtype in DTYPES))
        for name, kernel_of in device.kernel_of.items():
            print("  " + f"{name:<20}" + "".join(f"{kernel or 'none':<13}" for kernel in kernel_of.values()))
    for device in report.devices:
        print(f"\nKernelRegistry.explain(BitQuantConfig(), {device.device!r}):")
        print(KernelRegistry.explain(BitQuantConfig(), device.device))


if __name__ == "__main__":
    with quiet_without_a_reader():
        main()
