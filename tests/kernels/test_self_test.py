"""The self-test of compiled CPU kernels: right ones pass, a wrong one is left out and named."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bitcore import BitQuantConfig, extensions
from bitcore.exceptions import ExtensionWarning
from bitcore.kernels import KernelRegistry, cpu, self_test

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))

HERE = [name for name in extensions.cpu_kernel_names() if cpu._why_not_here(name) is None]


@pytest.mark.parametrize("name", HERE)
def test_kernels_of_this_machine_pass(name: str) -> None:
    state = torch.get_rng_state()
    assert self_test.failure_of(name, extensions.cpu_kernel_names().index(name)) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_passes_where_tensors_are_fake_or_on_another_device() -> None:
    for context in (FakeTensorMode(), torch.device("meta"), torch.inference_mode(), torch.autocast("cpu")):
        with context:
            assert self_test.failure_of(HERE[0], extensions.cpu_kernel_names().index(HERE[0])) is None


@pytest.mark.parametrize("storage_format", self_test.FORMATS)
def test_a_kernel_that_is_wrong_in_one_format_is_left_out(storage_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = self_test._packed

    def spoilt(weight: torch.Tensor, own_format: str) -> torch.Tensor:
        return real(weight.flip(0) if own_format == storage_format else weight, own_format)

    monkeypatch.setattr(self_test, "_packed", spoilt)
    cpu._why_not_here.cache_clear()
    try:
        with pytest.warns(ExtensionWarning, match=rf"{HERE[0]} is left out: .* outputs are wrong for {storage_format}"):
            assert KernelRegistry.get_kernel_for_config(BitQuantConfig()).name == "reference"  # all look wrong
        assert "its self-test failed" in KernelRegistry.explain(BitQuantConfig())
    finally:
        cpu._why_not_here.cache_clear()
