"""Fixtures. BITLAB_REQUIRED_KERNELS names kernels (comma-separated) whose tests may not be skipped on this machine."""

import os
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from bitcore.kernels import BitKernelBase, KernelRegistry

settings.register_profile(
    "bitlab",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("bitlab")

REQUIRED_KERNELS = {name for name in os.environ.get("BITLAB_REQUIRED_KERNELS", "").split(",") if name}


@pytest.fixture(autouse=True)
def fresh_random_data() -> None:
    """New data in every run; a failing test shows the seed that brings it back (BITLAB_TEST_SEED)."""
    seed = int(os.environ.get("BITLAB_TEST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"BITLAB_TEST_SEED={seed}")
    torch.manual_seed(seed)


@pytest.fixture
def kernel_class(request: pytest.FixtureRequest) -> Iterator[object]:
    """The kernel of an indirect parameter; tensors are made on its device while the test runs.

    Only a required kernel can be unavailable here (see below): a failure.
    """
    kernel = KernelRegistry._kernels[request.param]
    reason = kernel.unavailable_reason()
    if reason is not None:
        pytest.fail(f"kernel {request.param} is required here, but {reason}")
    with torch.device(device_of(kernel)):
        yield kernel


def device_of(kernel: type[BitKernelBase]) -> str:
    """The device on which a kernel is tested."""
    return "cpu" if kernel.device_types is None or "cpu" in kernel.device_types else min(kernel.device_types)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the kernels that this machine cannot run, unless they are required."""

    def wanted(item: pytest.Item) -> bool:
        name = item.callspec.params.get("kernel_class") if hasattr(item, "callspec") else None
        return name is None or name in REQUIRED_KERNELS or KernelRegistry._kernels[name].unavailable_reason() is None

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    unknown = REQUIRED_KERNELS - set(KernelRegistry._kernels)
    if unknown:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        print(f"\nBITLAB_REQUIRED_KERNELS names no kernels: {', '.join(sorted(unknown))}")
