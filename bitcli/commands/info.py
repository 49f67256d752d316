"""`bitlab info`: what this machine has, and which kernel each common config gets."""

from typing import TYPE_CHECKING

from bitcli.options import Json
from bitcli.output import print_facts, print_json, print_table

if TYPE_CHECKING:
    from bitcore.machine_report import DeviceReport


def info(json: Json = False) -> None:
    """Show what this machine has, and which kernel serves which layers on it.

    The last table has every kernel, best first, for BitNet b1.58 layers: chosen, usable, or why not.
    """
    from bitcore.machine_report import machine_report

    report = machine_report()
    if json:
        print_json({"facts": report.facts, "devices": [_as_json(device) for device in report.devices]})
        return
    print_facts(report.facts)
    for device in report.devices:
        dtypes = next(iter(device.kernel_of.values()))
        print_table(
            f"kernel of each config on {device.device}, by dtype of the input",
            {"config": "left", **dict.fromkeys(dtypes, "left")},
            ((name, *(kernel or "none" for kernel in found.values())) for name, found in device.kernel_of.items()),
        )
        print_table(
            f"kernels for BitNet b1.58 in float32 on {device.device}",
            {"kernel": "left", "priority": "right", "verdict": "left"},
            device.verdicts,
        )


def _as_json(device: "DeviceReport") -> dict[str, object]:
    return {
        "device": device.device,
        "kernel_of": device.kernel_of,
        "kernels": [verdict._asdict() for verdict in device.verdicts],
    }
