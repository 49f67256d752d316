"""The CUDA kernels where calls meet: on streams, in graphs, from several threads, on several GPUs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_cuda import ROWS, cuda_kernel, every_config, random_weight, same

from bitcore import BitQuantConfig
from bitcore.exceptions import DeviceError
from bitcore.kernels import KernelRegistry
from bitcore.kernels.reference import ReferenceKernel
from bitlayers import BitLinear

REASON = KernelRegistry._kernels["cuda"].unavailable_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the CUDA kernels cannot run here: {REASON}")


@pytest.mark.parametrize("rows", ROWS)
def test_on_a_side_stream(rows: int) -> None:
    config = BitQuantConfig()
    weight = random_weight(512, 1024, config)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which makes the weight
    for _ in range(20):
        with torch.cuda.stream(stream):
            x = torch.randn(rows, 1024, device="cuda").mul_(2).add_(1)
            y = cuda_kernel(config).linear(x, weight)
        stream.synchronize()
        assert same(y, ReferenceKernel(config).linear(x, weight))


@every_config
@pytest.mark.parametrize("rows", ROWS)
def test_in_a_graph_replayed_with_new_data(config: BitQuantConfig, rows: int) -> None:
    layer = BitLinear(1024, 768, quant_config=config, device="cuda").deploy()
    x = torch.randn(rows, 1024, device="cuda")
    with torch.inference_mode():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(layer(x)[:, :768].repeat(1, 2)[:, :1024])  # launches that depend on each other
        for _ in range(3):
            x.copy_(torch.randn(rows, 1024))
            graph.replay()
            assert same(y, layer(layer(x)[:, :768].repeat(1, 2)[:, :1024]))


def test_new_weights_are_seen_by_the_next_launch() -> None:
    """Launches may overlap; a weight that the launch before has written must still be read as written."""
    config = BitQuantConfig()
    weights = [random_weight(2560, 2560, config) for _ in range(2)]
    target = weights[0]._replace(packed=weights[0].packed.clone())
    kernel, reference = cuda_kernel(config), ReferenceKernel(config)
    for rows in ROWS:
        x = torch.randn(rows, 2560, device="cuda", dtype=torch.bfloat16)
        expected = [reference.linear(x, weight._replace(scale=target.scale)) for weight in weights]
        for turn in range(20):
            target.packed.copy_(weights[turn % 2].packed)
            assert same(kernel.linear(x, target), expected[turn % 2])


@pytest.mark.parametrize("config", [BitQuantConfig(), BitQuantConfig.weight_only()], ids=str)
def test_threads_that_call_at_once(config: BitQuantConfig) -> None:
    """Both sizes are served by the same kernel, in blocks of different shared memory."""

    def call_often(out_features: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            weight = random_weight(out_features, 4096, config)
            x = torch.randn(5, 4096, device="cuda", dtype=torch.bfloat16)
            first = cuda_kernel(config).linear(x, weight)
            return all(torch.equal(cuda_kernel(config).linear(x, weight), first) for _ in range(1000))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(call_often, (4096, 8192))) == [True, True]


@pytest.mark.parametrize("config", [BitQuantConfig(), BitQuantConfig.weight_only()], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_a_thread_that_has_not_used_the_gpu(config: BitQuantConfig, rows: int) -> None:
    weight = random_weight(9000, 1024, config)
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)
    kernel = cuda_kernel(config)
    expected = kernel.linear(x, weight)
    with ThreadPoolExecutor(1) as thread:
        y = thread.submit(kernel.linear, x, weight).result()
    assert same(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("rows", ROWS)
def test_on_the_second_gpu(rows: int) -> None:
    config = BitQuantConfig()
    weight = random_weight(300, 600, config, "cuda:1")
    x = torch.randn(rows, 600, device="cuda:1")
    assert torch.cuda.current_device() == 0
    y = cuda_kernel(config).linear(x, weight)
    assert torch.cuda.current_device() == 0
    assert y.device == x.device
    assert same(y, ReferenceKernel(config).linear(x, weight))
    with pytest.raises(DeviceError, match=r"x is on cuda:0, expected on cuda:1"):
        cuda_kernel(config).linear(x.to("cuda:0"), weight)
