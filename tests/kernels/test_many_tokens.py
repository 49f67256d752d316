"""Many tokens in one call: threads, weights decoded once, activations that do not fit into scratch memory."""

import pytest
import torch
from kernels_and_configs import CONFIGS, FLOAT_CONFIGS, assert_same, every_compiled_kernel, random_weight

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase
from bitcore.kernels.reference import ReferenceKernel


@every_compiled_kernel
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_threads_do_not_change_bits(kernel_class: type[BitKernelBase], rows: int) -> None:
    config = BitQuantConfig()
    weight = random_weight(1030, 1500, config)
    x, bias = torch.randn(rows, 1500), torch.randn(1030)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(kernel_class(config).linear(x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert_same(outputs[1], outputs[0])
    assert_same(outputs[2], outputs[0])
    assert_same(outputs[0], ReferenceKernel(config).linear(x, weight, bias))


@every_compiled_kernel
@pytest.mark.parametrize("in_features", [1, 64, 319, 320, 321, 1281, 2563])
def test_base3_decoded_once_for_many_tokens(kernel_class: type[BitKernelBase], in_features: int) -> None:
    for config in (CONFIGS[3], FLOAT_CONFIGS[3]):
        weight = random_weight(301, in_features, config)
        x, bias = torch.randn(70, in_features), torch.randn(301)
        expected = torch.cat([kernel_class(config).linear(part, weight, bias) for part in x.split(5)])
        for rows in (10, 11, 31, 32, 33, 70):
            assert_same(kernel_class(config).linear(x[:rows], weight, bias), expected[:rows])


@every_compiled_kernel
def test_more_tokens_than_scratch_holds(kernel_class: type[BitKernelBase]) -> None:
    config = BitQuantConfig()
    weight = random_weight(3, 20000, config)
    x = torch.randn(501, 20000)  # 10 MB of int8 activations, quantized in chunks
    assert_same(kernel_class(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))
