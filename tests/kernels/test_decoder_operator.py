"""The operators of a decoder's step refuse what does not fit, so that no call reads outside its tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig, extensions
from bitcore.kernels import KernelRegistry
from bitcore.kernels.cpu import CompiledCpuKernel

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))

HIDDEN, MIDDLE, KV_HEADS, HEAD_DIM, LAYERS, ROOM, TOKENS, BATCH = 16, 24, 2, 4, 2, 5, 9, 2
SHAPES = [(16, 16), (8, 16), (8, 16), (16, 16), (24, 16), (24, 16), (16, 24)]  # [rows, columns] of a layer's weights
NORMS = [HIDDEN, 16, HIDDEN, MIDDLE]


def mode_of(config: BitQuantConfig) -> int:
    kernel = KernelRegistry.get_kernel_for_config(config)
    assert isinstance(kernel, CompiledCpuKernel)
    return kernel.mode


def arguments() -> dict[str, Any]:
    none = torch.empty(0)
    caches = [torch.zeros(BATCH, KV_HEADS, ROOM, HEAD_DIM) for _ in range(2 * LAYERS)]
    rows = torch.randint(256, (TOKENS, HIDDEN), dtype=torch.uint8)
    int8 = BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel", activation_dtype="float32")
    return {
        "weight_packed": [torch.full((n, k // 4), 0x55, dtype=torch.uint8) for n, k in SHAPES * LAYERS],
        "weight_scale": [torch.ones(1) for _ in SHAPES * LAYERS],
        "weight_zero_point": [none for _ in SHAPES * LAYERS],
        "bias": [none for _ in SHAPES * LAYERS],
        "norm": [torch.ones(n) for n in NORMS * LAYERS + [HIDDEN]],
        "eps": torch.full((4 * LAYERS + 1,), 1e-5, dtype=torch.float64),
        "keys": caches[:LAYERS],
        "values": caches[LAYERS:],
        "embedding": [rows, torch.ones(TOKENS)],
        "head": [rows, torch.ones(TOKENS)],
        "frequencies": torch.ones(HEAD_DIM // 2),
        "attention_scale": 1.0,
        "mode": mode_of(BitQuantConfig()),
        "head_mode": mode_of(int8),
        "activation": 0,
    }


def replaced(name: str, index: int, value: Tensor) -> Callable[[dict[str, Any]], None]:
    def replace(given: dict[str, Any]) -> None:
        given[name][index] = value

    return replace


def given_as(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update({name: value})


WRONG = {
    "no layers": lambda given: given.update(keys=[], values=[]),
    "a weight too few": lambda given: given["weight_packed"].pop(),
    "a scale too few": lambda given: given["weight_scale"].pop(),
    "a norm too few": lambda given: given["norm"].pop(),
    "a cache too few": lambda given: given["values"].pop(),
    "other rows": replaced("weight_packed", 8, torch.zeros(16, 4, dtype=torch.uint8)),
    "other columns": replaced("weight_packed", 13, torch.zeros(16, 5, dtype=torch.uint8)),
    "no matrix": replaced("weight_packed", 0, torch.zeros(16, dtype=torch.uint8)),
    "weights apart": replaced("weight_packed", 3, torch.zeros(16, 8, dtype=torch.uint8)[:, ::2]),
    "weights in int8": replaced("weight_packed", 3, torch.zeros(16, 4, dtype=torch.int8)),
    "scales of other rows": replaced("weight_scale", 9, torch.ones(7)),
    "bias of other rows": replaced("bias", 9, torch.ones(7)),
    "zero point of other rows": replaced("weight_zero_point", 9, torch.ones(7, dtype=torch.int8)),
    "norm of another size": replaced("norm", 3, torch.ones(HIDDEN)),
    "norm in another dtype": replaced("norm", 0, torch.ones(HIDDEN).half()),
    "no input norm": replaced("norm", 4, torch.empty(0)),
    "no last norm": replaced("norm", 8, torch.empty(0)),
    "keys of another room": replaced("keys", 1, torch.zeros(BATCH, KV_HEADS, ROOM - 1, HEAD_DIM)),
    "values of another batch": replaced("values", 0, torch.zeros(1, KV_HEADS, ROOM, HEAD_DIM)),
    "values apart": replaced("values", 0, torch.zeros(BATCH, ROOM, KV_HEADS, HEAD_DIM).transpose(1, 2)),
    "keys of float64": replaced("keys", 0, torch.zeros(BATCH, KV_HEADS, ROOM, HEAD_DIM).double()),
    "an odd head": lambda given: [replaced(name, 0, torch.zeros(2, 2, 5, 3))(given) for name in ("keys", "values")],
    "eps in float32": given_as("eps", torch.ones(9)),
    "eps too few": given_as("eps", torch.ones(8, dtype=torch.float64)),
    "frequencies too few": given_as("frequencies", torch.ones(1)),
    "embedding of another width": given_as("embedding", [torch.zeros(9, 15, dtype=torch.uint8), torch.ones(9)]),
    "embedding without a scale": given_as("embedding", [torch.zeros(9, 16, dtype=torch.uint8)]),
    "head of another width": given_as("head", [torch.zeros(9, 15, dtype=torch.uint8), torch.ones(9)]),
    "head with more": given_as("head", [torch.ones(1)] * 4),
    "an unknown kernel": given_as("mode", 255),
    "an unknown activation": given_as("activation", 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    given = arguments()
    torch.ops.bitlab.decoder_close(torch.ops.bitlab.decoder_open(**given))
    WRONG[name](given)
    with pytest.raises(RuntimeError, match=r"must|in_features|names"):
        torch.ops.bitlab.decoder_open(**given)


def test_a_step_checks_its_arguments_and_its_tensors() -> None:
    given = arguments()
    decoder = torch.ops.bitlab.decoder_open(**given)
    tokens, y = torch.tensor([3, 8]), torch.empty(BATCH, TOKENS)
    torch.ops.bitlab.decoder_step(tokens, y, decoder, ROOM - 1)
    for wrong in (
        (tokens + 1, y, decoder, 0),
        (tokens - 4, y, decoder, 0),
        (tokens[:1], y, decoder, 0),
        (tokens.int(), y, decoder, 0),
        (torch.zeros(BATCH, HIDDEN), y, decoder, 0),
        (tokens, y[:1], decoder, 0),
        (tokens, y.half(), decoder, 0),
        (tokens, y.t().contiguous().t(), decoder, 0),
        (tokens, y, decoder, ROOM),
        (tokens, y, decoder, -1),
        (tokens, y, decoder + 1000, 0),
    ):
        with pytest.raises(RuntimeError, match="must"):
            torch.ops.bitlab.decoder_step(*wrong)
    given["weight_scale"][5].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="must be what"):
        torch.ops.bitlab.decoder_step(tokens, y, decoder, 0)
    for _ in range(2):
        torch.ops.bitlab.decoder_close(decoder)
    with pytest.raises(RuntimeError, match="must be open"):
        torch.ops.bitlab.decoder_step(tokens, y, decoder, 0)
