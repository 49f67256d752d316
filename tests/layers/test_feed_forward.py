import itertools
import warnings

import pytest
import torch
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, PrecisionWarning
from bitlayers import BitFeedForward, BitLinear, assert_deploy_equal, relu_squared

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu2": lambda x: x.clamp(min=0) ** 2}
every_kind = pytest.mark.parametrize(
    ("activation", "gated", "sub_norm"), list(itertools.product(ACTIVATIONS, [True, False], [True, False]))
)


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_is_its_definition(activation: str, gated: bool, sub_norm: bool, training: bool) -> None:
    config = BitQuantConfig.weight_only()
    block = BitFeedForward(12, 20, activation, gated=gated, sub_norm=sub_norm, quant_config=config).train(training)
    x = torch.randn(2, 5, 12)
    act = ACTIVATIONS[activation]
    hidden = act(block.gate_proj(x)) * block.up_proj(x) if gated else act(block.up_proj(x))
    if sub_norm:
        hidden = F.rms_norm(hidden, (20,), block.ffn_sub_norm.weight, 1e-5)
    torch.testing.assert_close(block(x), block.down_proj(hidden), rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("bias", [True, False])
def test_deploys_to_the_same_bits_and_trains(activation: str, gated: bool, sub_norm: bool, bias: bool) -> None:
    block = BitFeedForward(12, 20, activation, gated=gated, sub_norm=sub_norm, bias=bias)
    x = torch.randn(2, 5, 12)
    assert_deploy_equal(block, x)
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert (block.gate_proj is not None) == gated
    assert all((layer.bias is not None) == bias for layer in block.modules() if isinstance(layer, BitLinear))


def test_relu_squared_in_float16_warns() -> None:
    block = BitFeedForward(12, 20, "relu2", dtype=torch.float16)
    x = torch.randn(1, 12)
    for training in (True, False):
        with pytest.warns(PrecisionWarning, match="overflows in float16 where x is 256 or more: use bfloat16"):
            block.train(training)(x.half())
    assert relu_squared(torch.tensor([256.0])).isfinite().all()
    with pytest.warns(PrecisionWarning):
        assert relu_squared(torch.tensor([256.0]).half()).isinf().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block.bfloat16()(x.bfloat16())
        relu_squared(x)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ArgumentError, match="activation is 'swish', expected one of silu, relu2, gelu"):
        BitFeedForward(12, 20, "swish")  # type: ignore[arg-type]
