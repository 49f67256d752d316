"""Fixtures. BITLAB_REQUIRED_KERNELS names kernels (comma-separated) whose tests may not be skipped on this machine."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, settings

from bitcore.kernels import KernelRegistry

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
def kernel_class(request: pytest.FixtureRequest) -> object:
    """The kernel of an indirect parameter, or a skip with the registry's reason: a failure if it is a required one."""
    name = request.param
    kernel = KernelRegistry._kernels[name]
    reason = kernel.unavailable_reason()
    if reason is not None:
        if name in REQUIRED_KERNELS:
            pytest.fail(f"kernel {name} is required here, but {reason}")
        pytest.skip(f"{name}: {reason}")
    return kernel


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    unknown = REQUIRED_KERNELS - set(KernelRegistry._kernels)
    if unknown:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        print(f"\nBITLAB_REQUIRED_KERNELS names no kernels: {', '.join(sorted(unknown))}")
