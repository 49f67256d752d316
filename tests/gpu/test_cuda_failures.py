"""What the CUDA kernels do with what is wrong, and what compute-sanitizer says of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitcore import BitQuantConfig
from bitcore.exceptions import DeviceError, DtypeError, ShapeError
from bitcore.kernels import KernelRegistry
from bitcore.kernels.cuda import CudaKernel
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight

REASON = KernelRegistry._kernels["cuda"].unavailable_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the CUDA kernels cannot run here: {REASON}")
ROOT = Path(__file__).parent.parent.parent


def random_weight(rows: int, columns: int, config: BitQuantConfig) -> PackedWeight:
    return PackedWeight.from_float(torch.randn(rows, columns, device="cuda"), config)


def test_arguments_that_do_not_fit() -> None:
    config = BitQuantConfig()
    kernel, weight = CudaKernel(config), random_weight(8, 64, config)
    on_cpu = PackedWeight(weight.packed.cpu(), weight.scale.cpu(), None, 64)
    x = torch.randn(2, 64, device="cuda")
    with pytest.raises(DeviceError, match=r"x is on cpu, expected on cuda:0, where the weight is"):
        kernel.linear(x.cpu(), weight)
    with pytest.raises(DeviceError, match=r"x is on cuda:0, expected on cpu"):
        kernel.linear(x, on_cpu)
    with pytest.raises(DeviceError, match=r"bias is on cpu"):
        kernel.linear(x, weight, torch.randn(8))
    with pytest.raises(DtypeError, match=r"x is torch.int8"):
        kernel.linear(x.to(torch.int8), weight)
    with pytest.raises(ShapeError, match=r"x is of shape \[2, 63\]"):
        kernel.linear(x[:, :63], weight)
    with pytest.raises(RuntimeError, match=r"contiguous"):
        kernel.linear(x, weight._replace(packed=weight.packed.repeat(1, 2)[:, ::2]))
    assert torch.equal(kernel.linear(x, weight), ReferenceKernel(config).linear(x, weight))  # nothing is left behind


def test_out_of_memory_is_pytorchs_own_error() -> None:
    config = BitQuantConfig()
    weight = random_weight(2**20, 4, config)
    x = torch.randn(1, 4, device="cuda").expand(2**22, 4)
    with pytest.raises(torch.OutOfMemoryError, match=r"x of shape \[4194304, 4\]"):
        CudaKernel(config).linear(x, weight)


FAULT = """
import os, torch
from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitcore.packed_weight import PackedWeight

class Beyond:  # bytes that nobody has allocated, behind one that somebody has
    byte = torch.empty(1, dtype=torch.uint8, device="cuda")
    __cuda_array_interface__ = {
        "shape": (2**21, 640), "typestr": "|u1", "data": (byte.data_ptr(), False), "version": 3
    }

assert KernelRegistry._kernels["cuda"].unavailable_reason() is None
weight = PackedWeight(torch.as_tensor(Beyond(), device="cuda"), torch.ones(1, device="cuda"), None, 2560)
x = torch.randn(1, 2560, device="cuda", dtype=torch.bfloat16)
torch.cuda.synchronize()
try:
    KernelRegistry._kernels["cuda"](BitQuantConfig()).linear(x, weight)
    print("nothing at the call", flush=True)
    torch.cuda.synchronize()
except RuntimeError as error:
    print("raised:", error, flush=True)
os._exit(0)  # CUDA is of no more use to this process
"""


@pytest.mark.parametrize("debug", ["0", "1"])
def test_what_fails_in_a_kernel_is_raised_at_the_call_when_debugging(debug: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "BITLAB_DEBUG": debug}
    result = subprocess.run(
        [sys.executable, "-c", FAULT], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "illegal memory access" in result.stdout, result.stdout + result.stderr[-2000:]
    assert ("nothing at the call" in result.stdout) == (debug == "0")
    assert ("raised: running a kernel" in result.stdout) == (debug == "1")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    result = subprocess.run(
        [
            sanitizer,
            "--tool",
            tool,
            "--kernel-name",
            "kns=bitlab",  # not PyTorch's, which would take minutes
            "--error-exitcode",
            "9",
            sys.executable,
            str(Path(__file__).parent / "every_path.py"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # ten times what it takes: a warp that waits for ever under a tool fails the test
    )
    assert result.returncode == 0, result.stdout[:3000] + result.stdout[-1000:] + result.stderr[-2000:]
    assert "all equal" in result.stdout
