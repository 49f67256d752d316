"""The compiled operator as PyTorch sees it: fakes, compile, export, and arguments that would read outside a tensor."""

import pytest
import torch

from bitcore import BitQuantConfig, extensions
from bitcore.kernels import KernelRegistry
from bitcore.kernels.portable import PortableKernel
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLinear

CONFIG = BitQuantConfig()
INT4 = BitQuantConfig(weight_dtype="int4", weight_granularity="per_group", weight_quantizer="minmax", group_size=4)

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))


def arguments(rows: int = 3) -> list[object]:
    weight = PackedWeight.from_float(torch.randn(6, 10), CONFIG)
    return [
        torch.randn(rows, 10),
        weight.packed,
        weight.scale,
        None,
        torch.randn(6),
        10,
        PortableKernel(CONFIG)._mode,
    ]


def int4_arguments() -> list[object]:
    weight = PackedWeight.from_float(torch.randn(6, 10), INT4)
    mode = PortableKernel(INT4)._mode
    return [torch.randn(3, 10), weight.packed, weight.scale, weight.zero_point, None, 10, mode]


def group_arguments() -> list[object]:
    weights = [PackedWeight.from_float(torch.randn(rows, 10), CONFIG) for rows in (6, 3)]
    packed, scales = [weight.packed for weight in weights], [weight.scale for weight in weights]
    biases = [torch.randn(6), torch.randn(3)]
    return [torch.randn(3, 10), packed, scales, [], biases, 10, PortableKernel(CONFIG)._mode]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, *others = arguments()
    torch.library.opcheck(torch.ops.bitlab.packed_linear.default, (x.to(dtype), *others))
    torch.library.opcheck(torch.ops.bitlab.packed_linear.default, (x.to(dtype).reshape(1, 3, 10), *others))
    x, *others = group_arguments()
    torch.library.opcheck(torch.ops.bitlab.packed_linear_group.default, (x.to(dtype), *others))


def test_opcheck_with_zero_points() -> None:
    torch.library.opcheck(torch.ops.bitlab.packed_linear.default, tuple(int4_arguments()))


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
        (2, torch.ones(6, 1), "weight_scale must be"),
        (3, torch.ones(1), "weight_zero_point must be"),
        (4, torch.ones(5), "bias must be"),
        (4, torch.ones(6, dtype=torch.int32), "bias must be"),
        (5, 0, "in_features is too"),
        (5, 2**23 + 1, "in_features is too"),
        (6, -1, "mode names no kernel"),
        (6, 0xFF, "mode names no kernel"),
        (6, 3 << 8, "weight_packed must be"),
        (6, 3 << 10, "mode names no kernel"),
        (6, 6 << 16, "group_size must be a multiple"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    call = arguments()
    call[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitlab.packed_linear.default(*call)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, torch.ones(6), "weight_scale must be"),
        (2, torch.ones(6, 2), "weight_scale must be"),
        (3, torch.ones(6, 2, dtype=torch.int8), "weight_zero_point must be"),
        (3, torch.ones(6, 3), "weight_zero_point must be"),
        (5, 2**20 + 1, "in_features is too"),
        (6, 2 << 8 | 3 << 16, "group_size must be a multiple"),
    ],
)
def test_int4_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    call = int4_arguments()
    call[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitlab.packed_linear.default(*call)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, [torch.ones(1)], "equally long"),
        (3, [torch.ones(1, dtype=torch.int8)], "equally long"),
        (4, [torch.ones(6)], "equally long"),
        (4, [torch.ones(6), torch.ones(4)], "bias must be"),
        (1, [torch.zeros(6, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8)], "weight_packed must be"),
    ],
)
def test_group_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    call = group_arguments()
    call[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitlab.packed_linear_group.default(*call)


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
    assert "bitlab.packed_linear" in str(program.graph)
    assert torch.equal(program.module()(x), layer(x))


def test_kernel_in_another_process_is_the_same_after_pickle() -> None:
    import copy
    import pickle

    kernel = KernelRegistry.get_kernel_for_config(BitQuantConfig())
    for again in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        weight = PackedWeight.from_float(torch.randn(6, 10), BitQuantConfig())
        x = torch.randn(2, 10)
        assert torch.equal(again.linear(x, weight), kernel.linear(x, weight))
