"""A kernel may start before those in front of it have ended; it must still read what they write last."""

import pytest
import torch
from test_cuda import REASON, cuda_kernel, random_weight, same

from bitcore import BitQuantConfig

CONFIGS = {"per_token": BitQuantConfig(weight_granularity="per_channel"), "weight-only": BitQuantConfig.weight_only()}
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"the CUDA kernels cannot run here: {REASON}"),
    pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS),
    pytest.mark.parametrize("sizes", [(2560, 2560), (4096, 4096), (11008, 4096)], ids=str),
    pytest.mark.parametrize("rows", [1, 4, 8, 16, 48, 64, 256, 1030]),
]


def test_x_of_a_kernel_that_lets_the_next_start_early(
    rows: int, sizes: tuple[int, int], config: BitQuantConfig
) -> None:
    pytest.importorskip("triton")
    from late_copy import late_copy

    kernel, weight = cuda_kernel(config), random_weight(*sizes, config)
    x, late = torch.randn(2, rows, sizes[1], device="cuda").bfloat16()
    torch.cuda.synchronize()
    late_copy(x, late)
    y = kernel.linear(x, weight)
    torch.cuda.synchronize()
    assert torch.equal(x, late)
    assert same(y, kernel.linear(late, weight))


def test_weights_of_the_kernel_in_front(rows: int, sizes: tuple[int, int], config: BitQuantConfig) -> None:
    """In a graph, where nothing is between the kernels, and the call in front lets the next one start early."""
    kernel, weights = cuda_kernel(config), [random_weight(*sizes, config) for _ in range(2)]
    x = torch.randn(rows, sizes[1], device="cuda").bfloat16()
    expected = [kernel.linear(x, weight) for weight in weights]
    target = weights[0]._replace(packed=weights[0].packed.clone(), scale=weights[0].scale.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = []
        for weight in weights * 2:
            target.scale.copy_(weight.scale)
            target.packed.copy_(weight.packed)
            outputs.append(kernel.linear(x, target))
    for _ in range(10):
        graph.replay()
        assert all(same(y, expected[turn % 2]) for turn, y in enumerate(outputs))
