"""bitcore.ops.bitlinear, the functional form."""

import pytest
import torch

from bitcore import BitQuantConfig, QuantizationError
from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitcore.ops import bitlinear
from bitcore.packing import pack_ternary
from bitlayers import BitLinear

CONFIG = BitQuantConfig()


def test_equals_the_layer_in_training_and_inference() -> None:
    layer = BitLinear(20, 6)
    x, w, b = torch.randn(3, 20), layer.weight, layer.bias
    assert torch.equal(bitlinear.forward(x, weight=w, bias=b, quant_config=CONFIG, training=True), layer(x))
    scale, qweight = bitlinear.prepare_weights(w, CONFIG)
    assert (qweight.dtype, qweight.shape) == (torch.int8, (6, 20))
    expected = layer.eval()(x)
    for q in (qweight, pack_ternary(qweight)):
        y = bitlinear.forward(x, qweight=q, qweight_scale=scale, bias=b, quant_config=CONFIG, training=False)
        assert torch.equal(y, expected)
    assert torch.equal(bitlinear.forward(x, weight=w, bias=b, training=False), expected)


def test_is_autograd_aware() -> None:
    x, w, b = (
        torch.randn(3, 20, requires_grad=True),
        torch.randn(6, 20, requires_grad=True),
        torch.randn(6, requires_grad=True),
    )
    gradients = []
    for training in (True, False):
        y = bitlinear.forward(x, weight=w, bias=b, quant_config=CONFIG, training=training)
        gradients.append(torch.autograd.grad(y.square().sum(), (x, w, b)))
    for trained, evaluated in zip(*gradients, strict=True):
        torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)


def test_int4_with_zero_point() -> None:
    config = BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_channel")
    layer = BitLinear(20, 6, quant_config=config).eval()
    x = torch.randn(3, 20)
    packed = layer._packed_weight()
    y = bitlinear.forward(
        x,
        qweight=layer.qweight,
        qweight_scale=layer.qweight_scale,
        qweight_zero_point=packed.zero_point,
        bias=layer.bias,
        quant_config=config,
        training=False,
    )
    assert torch.equal(y, layer(x))
    with pytest.raises(ArgumentError, match="weight_quantizer is minmax"):
        bitlinear.prepare_weights(layer.weight, config)


def test_wrong_arguments_are_named() -> None:
    x, w = torch.randn(3, 20), torch.randn(6, 20)
    scale, q = bitlinear.prepare_weights(w)
    with pytest.raises(ArgumentError, match="weight is None"):
        bitlinear.forward(x)
    with pytest.raises(ArgumentError, match="qweight is None"):
        bitlinear.forward(x, training=False)
    with pytest.raises(ArgumentError, match="qweight_scale is None"):
        bitlinear.forward(x, qweight=q, training=False)
    with pytest.raises(DtypeError, match=r"qweight is torch.float32"):
        bitlinear.forward(x, qweight=q.float(), qweight_scale=scale, training=False)
    with pytest.raises(ShapeError, match=r"qweight is of shape \[6, 4\]"):
        bitlinear.forward(x, qweight=pack_ternary(q)[:, :4], qweight_scale=scale, training=False)
    with pytest.raises(ShapeError, match=r"x is of shape \[3, 19\]"):
        bitlinear.forward(x[:, :19], qweight=q, qweight_scale=scale, training=False)
    with pytest.raises(QuantizationError, match=r"w_ternary is from -2 to 2"):
        bitlinear.forward(x, qweight=q * 2, qweight_scale=scale, training=False)
    with pytest.raises(QuantizationError, match="weight is nan"):
        bitlinear.prepare_weights(w * float("nan"))
    with pytest.raises(ShapeError, match=r"weight is of shape \[20\], expected \[out_features, in_features\]"):
        bitlinear.forward(x, weight=w[0])
    with pytest.raises(DtypeError, match=r"bias is torch.int64, expected a floating-point dtype"):
        bitlinear.forward(x, weight=w, bias=torch.ones(6, dtype=torch.int64), training=False)
    for wrong in ("ternary", {"weight_dtype": "ternary"}):
        with pytest.raises(ArgumentError, match=r"quant_config is .*ternary.*, expected a BitQuantConfig"):
            bitlinear.forward(x, weight=w, quant_config=wrong, training=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_scales_that_do_not_fit_are_refused(packed: bool) -> None:
    x, values = torch.randn(3, 20), torch.ones(6, 20, dtype=torch.int8)
    q = pack_ternary(values) if packed else values
    for config, shape in ((CONFIG, (6,)), (CONFIG, ()), (BitQuantConfig(weight_granularity="per_channel"), (1,))):
        with pytest.raises(ShapeError, match=rf"qweight_scale is of shape .* for {config.weight_granularity} weights"):
            bitlinear.forward(x, qweight=q, qweight_scale=torch.ones(shape), quant_config=config, training=False)
    if not packed:
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(QuantizationError, match=r"qweight_scale is .* at \[0\], expected positive and finite"):
                bitlinear.forward(x, qweight=q, qweight_scale=torch.tensor([bad]), training=False)
