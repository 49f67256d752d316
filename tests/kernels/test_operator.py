"""The compiled operator as PyTorch sees it: fakes, compile, export, and arguments that would read outside a tensor."""

import pytest
import torch

from bitcore import BitQuantConfig, extensions
from bitcore.kernels import KernelRegistry
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLinear

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))


def arguments(rows: int = 3) -> list[object]:
    weight = PackedWeight.from_float(torch.randn(6, 10), BitQuantConfig())
    mode = 2 * extensions.cpu_kernel_names().index("portable")
    return [torch.randn(rows, 10), weight.packed, weight.scale, torch.randn(6), 10, mode]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, *others = arguments()
    torch.library.opcheck(torch.ops.bitlab.ternary_linear.default, (x.to(dtype), *others))
    torch.library.opcheck(torch.ops.bitlab.ternary_linear.default, (x.to(dtype).reshape(1, 3, 10), *others))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(3, 10, dtype=torch.int64), "x must be"),
        (0, torch.ones(3, 10, dtype=torch.float64), "x must be"),
        (0, torch.ones(3, 11), "x must have in_features"),
        (0, torch.ones(()), "x must have in_features"),
        (1, torch.zeros(6, 2, dtype=torch.uint8), "weight_packed must be"),
        (1, torch.zeros(6, 3, dtype=torch.int8), "weight_packed must be"),
        (1, torch.zeros(3, 6, dtype=torch.uint8).T, "weight_packed must be"),
        (2, torch.ones(2), "weight_scale must be"),
        (2, torch.ones(1, dtype=torch.float16), "weight_scale must be"),
        (3, torch.ones(5), "bias must be"),
        (3, torch.ones(6, dtype=torch.int32), "bias must be"),
        (4, 0, "in_features must be 1"),
        (4, 2**23 + 1, "in_features must be 1"),
        (5, -1, "mode names no kernel"),
        (5, 1000, "mode names no kernel"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    call = arguments()
    call[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitlab.ternary_linear.default(*call)


@pytest.mark.parametrize("norm", [False, True])
def test_compiled_deployed_layer_gives_the_same_bits(norm: bool) -> None:
    layer = BitLinear(24, 6, norm=norm).deploy()
    x = torch.randn(5, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled(x[:2]), layer(x[:2]))


def test_export_keeps_the_operator() -> None:
    layer = BitLinear(24, 6).deploy()
    x = torch.randn(5, 24)
    program = torch.export.export(layer, (x,))
    assert "bitlab.ternary_linear" in str(program.graph)
    assert torch.equal(program.module()(x), layer(x))


def test_kernel_in_another_process_is_the_same_after_pickle() -> None:
    import copy
    import pickle

    kernel = KernelRegistry.get_kernel_for_config(BitQuantConfig())
    for again in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        weight = PackedWeight.from_float(torch.randn(6, 10), BitQuantConfig())
        x = torch.randn(2, 10)
        assert torch.equal(again.linear(x, weight), kernel.linear(x, weight))
