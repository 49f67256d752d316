"""The self-test of compiled CPU kernels: right ones pass, a wrong one is left out and named."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bitcore import BitQuantConfig, extensions
from bitcore.exceptions import ExtensionWarning
from bitcore.kernels import KernelRegistry, cpu, self_test
from bitcore.kernels.compiled import STORAGE_FORMATS
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import QuantizedWeight

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


@pytest.mark.parametrize("storage_format", STORAGE_FORMATS)
def test_a_kernel_that_is_wrong_in_one_format_is_left_out(storage_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedWeight.from_quantized

    def spoilt(weight: QuantizedWeight, config: BitQuantConfig) -> PackedWeight:
        packed = real(weight, config)
        return packed._replace(packed=packed.packed.flip(0)) if config.packed_format == storage_format else packed

    monkeypatch.setattr(PackedWeight, "from_quantized", spoilt)
    cpu._why_not_here.cache_clear()
    try:
        with pytest.warns(ExtensionWarning, match=rf"{HERE[0]} is left out: .* outputs are wrong for {storage_format}"):
            assert KernelRegistry.get_kernel_for_config(BitQuantConfig()).name == "reference"  # all look wrong
        assert "its self-test failed" in KernelRegistry.explain(BitQuantConfig())
    finally:
        cpu._why_not_here.cache_clear()
