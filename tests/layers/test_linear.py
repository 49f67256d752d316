"""BitLinear: train, eval, deploy, gradients, memory, wrong input."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bitcore import BitQuantConfig, QuantizationError
from bitcore.exceptions import ArgumentError, DeviceError, DtypeError, LayerStateError, ShapeError
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import quantize_activations, quantizer_for
from bitlayers import BitLinear, memory_report

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", weight_quantizer="absmedian"),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig.weight_only(),
    BitQuantConfig.int4(16),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_channel"),
    BitQuantConfig(weight_quantizer="threshold", weight_granularity="per_group", group_size=16),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


@every_config
@pytest.mark.parametrize("norm", [False, True])
def test_train_eval_and_deploy_compute_one_function(config: BitQuantConfig, norm: bool) -> None:
    layer = BitLinear(67, 13, quant_config=config, norm=norm)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 67)
    trained = layer.train()(x)
    evaluated = layer.eval()(x)
    torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)
    assert layer.deploy() is layer
    assert layer.is_deployed
    assert torch.equal(layer(x), evaluated)


@every_config
def test_eval_is_the_reference_on_the_quantized_master(config: BitQuantConfig) -> None:
    layer = BitLinear(67, 13, quant_config=config).eval()
    x = torch.randn(4, 67)
    weight = PackedWeight.from_float(layer.weight, config)
    expected = ReferenceKernel(config).linear(x, weight, layer.bias)
    if config.activation_dtype == "int8":
        assert torch.equal(layer(x), expected)
    else:
        torch.testing.assert_close(layer(x), expected)


@every_config
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_the_ste(config: BitQuantConfig, training: bool) -> None:
    """y = q(x) @ q(w).T + b with quantization taken for the identity, in float64."""
    layer = BitLinear(40, 7, quant_config=config).train(training)
    x = torch.randn(3, 5, 40, requires_grad=True)
    upstream = torch.randn(3, 5, 7)
    layer(x).backward(upstream)
    quantizer = quantizer_for(config)
    w_q = quantizer.dequantize(*quantizer.quantize_weight(layer.weight.detach())).double()
    rows, g = x.detach().reshape(-1, 40), upstream.double().reshape(-1, 7)
    if config.activation_dtype == "int8":
        q, scale = quantize_activations(rows, config.activation_granularity)
        rows = q * scale
    torch.testing.assert_close(x.grad.double().reshape(-1, 40), g @ w_q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad.double(), g.T @ rows.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad.double(), g.sum(0), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_x_through_a_deployed_layer() -> None:
    layer = BitLinear(40, 7).deploy()
    x = torch.randn(2, 40, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (layer.qweight * layer.qweight_scale).sum(0).expand(2, 40))
    assert layer.bias.grad is None


def test_a_step_of_training_learns() -> None:
    layer = BitLinear(32, 1)
    x = torch.randn(256, 32)
    target = x @ torch.randn(32).sign()[:, None]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "change", ["optimizer", "no_grad copy", "load_state_dict", "new Parameter", "data swap", "eval() after .data"]
)
def test_eval_notices_that_the_master_changed(change: str) -> None:
    layer = BitLinear(20, 6).eval()
    x = torch.randn(3, 20)
    before = layer(x)
    other = torch.randn(6, 20)
    if change == "optimizer":
        layer.weight.grad = layer.weight.detach() - other
        torch.optim.SGD([layer.weight], lr=1.0).step()
    elif change == "no_grad copy":
        with torch.no_grad():
            layer.weight.copy_(other)
    elif change == "load_state_dict":
        layer.load_state_dict({"weight": other, "bias": layer.bias.detach()})
    elif change == "new Parameter":
        layer.weight = nn.Parameter(other)
    elif change == "data swap":
        layer.weight.data = other
    else:
        layer.weight.data.copy_(other)
        layer.eval()
    expected = BitLinear.from_linear(layer).eval()
    assert torch.equal(layer(x), expected(x))
    assert not torch.equal(layer(x), before)


def test_eval_packs_once() -> None:
    layer = BitLinear(20, 6).eval()
    layer(torch.randn(1, 20))
    packed = layer._packed_weight()
    layer(torch.randn(1, 20))
    assert layer._packed_weight() is packed
    layer.train()
    assert layer._packed_master is None


def test_is_an_nn_linear() -> None:
    layer = BitLinear(12, 5, device="cpu", dtype=torch.bfloat16)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (12, 5)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "per_token" in repr(layer)
    assert BitLinear(12, 5, bias=False).bias is None


def test_from_linear_copies_or_shares() -> None:
    dense = nn.Linear(12, 5)
    copied, shared = BitLinear.from_linear(dense), BitLinear.from_linear(dense, copy=False)
    assert torch.equal(copied.weight, dense.weight)
    assert copied.weight is not dense.weight
    assert shared.weight is dense.weight
    assert shared.bias is dense.bias
    config = BitQuantConfig.weight_only()
    assert BitLinear.from_linear(dense, quant_config=config).quant_config is config


def test_only_an_nn_linear_becomes_one() -> None:
    with pytest.raises(ArgumentError, match=r"linear is a Conv2d, expected an nn.Linear"):
        BitLinear.from_linear(nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["ternary", {"weight_dtype": "ternary"}], ids=str)
def test_what_is_no_config_is_refused(wrong: object) -> None:
    for make in (
        lambda config: BitLinear(4, 4, quant_config=config),
        lambda c: BitLinear.from_linear(nn.Linear(4, 4), c),
    ):
        with pytest.raises(ArgumentError, match=r"quant_config is .*ternary.*, expected a BitQuantConfig"):
            make(wrong)


def test_scales_that_were_packed_elsewhere_are_checked() -> None:
    packed = BitLinear(20, 6).eval()._packed_weight()
    for scale, message in ((torch.ones(6), r"\[6\], expected \[1\]"), (torch.zeros(1), "0.0"), (-packed.scale, "-")):
        layer = BitLinear(20, 6)
        with pytest.raises(ArgumentError, match=f"weight_scale is .*{message}"):
            layer.deploy_packed(packed._replace(scale=scale), BitQuantConfig())
        assert not layer.is_deployed


@every_config
def test_quantized_weight_before_and_after_deploy(config: BitQuantConfig) -> None:
    layer = BitLinear(20, 6, quant_config=config)
    values, scale = layer.get_quantized_weight()
    assert (values.dtype, values.shape, scale.dtype) == (torch.int8, (6, 20), torch.float32)
    layer.eval()
    assert torch.equal(layer.qweight, values)
    layer.deploy()
    assert torch.equal(layer.qweight, values)
    assert torch.equal(layer.qweight_scale, scale)
    assert layer.weight is None


@pytest.mark.parametrize(("storage_format", "share"), [("2bit", 0.063), ("base3", 0.051)])
def test_deployed_memory_is_measured(storage_format: str, share: float) -> None:
    layer = BitLinear(4096, 4096, quant_config=BitQuantConfig(storage_format=storage_format))
    dense = sum(tensor.nbytes for tensor in layer.state_dict().values())
    expected = memory_report(layer).deployed
    layer.deploy()
    report = memory_report(layer)
    held = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
    assert held == report.now == report.deployed == expected
    assert report.float32 == dense
    assert held / dense <= share


def test_deploying_twice_and_training_afterwards_are_refused() -> None:
    layer = BitLinear(20, 6).deploy()
    x = torch.randn(2, 20)
    y = layer(x)
    with pytest.raises(LayerStateError, match="BitLinear is deployed already"):
        layer.deploy()
    with pytest.raises(LayerStateError, match="no master weight to train"):
        layer.train()
    assert not layer.training
    assert torch.equal(layer.eval()(x), y)


def test_a_frozen_deployed_layer_stays_as_it_is_while_others_are_trained() -> None:
    model = nn.Sequential(BitLinear(20, 20).deploy(), BitLinear(20, 6))
    model[0].frozen = True
    x = torch.randn(2, 20)
    y = model[0](x)
    model.train()
    assert [module.training for module in model] == [False, True]
    assert torch.equal(model[0](x), y)
    model(x).sum().backward()
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_weight_is_never_packed(bad: float) -> None:
    layer = BitLinear(20, 6)
    with torch.no_grad():
        layer.weight[2, 3] = bad
    with pytest.raises(QuantizationError, match=r"weight is (nan|inf) at \[2, 3\], expected finite"):
        layer.deploy()
    assert not layer.is_deployed
    with torch.no_grad():
        layer.weight[2, 3] = 0.0
    assert layer.deploy()(torch.randn(1, 20)).isfinite().all()


@pytest.mark.parametrize("state", ["train", "eval", "deployed"])
@pytest.mark.parametrize("config", [BitQuantConfig(), BitQuantConfig.weight_only()], ids=str)
@pytest.mark.parametrize("norm", [False, True])
def test_wrong_input_is_named_and_leaves_the_layer_usable(state: str, config: BitQuantConfig, norm: bool) -> None:
    layer = BitLinear(20, 6, norm=norm, quant_config=config).train(state == "train")
    if state == "deployed":
        layer.deploy()
    cases = [
        (torch.randn(2, 21), ShapeError, r"x is of shape \[2, 21\], expected \[..., 20\]"),
        (torch.randn(()), ShapeError, r"x is of shape \[\]"),
        (torch.ones(2, 20, dtype=torch.int64), DtypeError, "x is torch.int64, expected a floating-point dtype"),
        (torch.randn(2, 20, device="meta"), DeviceError, "x is on meta, expected on cpu"),
    ]
    for x, error, message in cases:
        with pytest.raises(error, match=message):
            layer(x)
    assert layer(torch.randn(2, 20)).shape == (2, 6)
    assert layer(torch.randn(0, 20)).shape == (0, 6)
    assert layer(torch.randn(20)).shape == (6,)


def test_in_features_is_checked_where_packed_rows_are_as_long() -> None:
    layer = BitLinear(63, 4).deploy()
    with pytest.raises(ShapeError, match=r"expected \[..., 63\]"):
        layer(torch.randn(1, 64))


def test_training_wants_one_dtype() -> None:
    with pytest.raises(DtypeError, match=r"x is torch.float64, expected torch.float32, the weight's dtype"):
        BitLinear(20, 6)(torch.randn(2, 20, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features is 0, expected 1 to 8388608"),
        ({"in_features": 2**23 + 1}, "in_features is 8388609"),
        ({"out_features": -1}, "out_features is -1"),
        ({"init_method": "zeros"}, "init_method is 'zeros', expected one of xavier_uniform"),
    ],
)
def test_wrong_sizes_and_names_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BitLinear(**{"in_features": 4, "out_features": 4, "device": "meta", **arguments})  # type: ignore[arg-type]


def test_casts_keep_the_scale_and_the_integers() -> None:
    layer = BitLinear(40, 6).deploy()
    scale, x = layer.qweight_scale.clone(), torch.randn(3, 40)
    exact = layer(x)
    for cast in ("half", "bfloat16", "double", "float"):
        getattr(layer, cast)()
        assert layer.weight_scale.dtype == torch.float32
        assert torch.equal(layer.qweight_scale, scale)
    torch.testing.assert_close(layer(x), exact, rtol=1e-2, atol=1e-2)  # the bias went through float16
    assert layer.half()(x.half()).dtype == torch.float16


def test_float64_inputs_are_served() -> None:
    layer = BitLinear(40, 6).double().eval()
    x = torch.randn(3, 40, dtype=torch.float64)
    assert layer(x).dtype == torch.float64
    assert layer.kernel.name == "reference"


def test_autocast() -> None:
    layer = BitLinear(40, 6)
    x = torch.randn(3, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.train()(x).dtype == torch.bfloat16
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        evaluated = layer.eval()(x)
    assert torch.equal(evaluated, layer(x))


@pytest.mark.parametrize("state", ["train", "eval", "deployed"])
def test_copies_are_independent_and_equal(state: str) -> None:
    layer = BitLinear(20, 6).train(state == "train")
    x = torch.randn(3, 20)
    layer(x)
    if state == "deployed":
        layer.deploy()
    y = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), y)
        if state != "deployed":
            with torch.no_grad():
                again.weight.mul_(-1)
            assert not torch.equal(again(x), y)
            assert torch.equal(layer(x), y)


def test_a_stale_copy_is_packed_again() -> None:
    layer = BitLinear(20, 6).eval()
    x = torch.randn(3, 20)
    layer(x)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 20))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_functional_call_sees_its_own_tensors() -> None:
    layer, other = BitLinear(20, 6).deploy(), BitLinear(20, 6).deploy()
    nn.init.normal_(other.bias)
    x = torch.randn(3, 20)
    layer(x)
    assert torch.equal(torch.func.functional_call(layer, other.state_dict(), (x,)), other(x))


def test_inference_mode_and_meta() -> None:
    with torch.inference_mode():
        layer = BitLinear(20, 6).eval()
        x = torch.randn(3, 20)
        before = layer(x)
        layer.weight.mul_(-1)
        assert not torch.equal(layer(x), before)
    meta = BitLinear(20, 6, device="meta")
    assert meta(torch.randn(2, 20, device="meta")).shape == (2, 6)
    assert meta.deploy()(torch.randn(2, 20, device="meta")).shape == (2, 6)


@every_config
def test_weights_that_are_packed_already_are_taken(config: BitQuantConfig) -> None:
    other = BitLinear(67, 13, quant_config=config)
    x = torch.randn(3, 67)
    packed = PackedWeight.from_float(other.weight, config)
    with torch.device("meta"):
        layer = BitLinear(67, 13, bias=False)
    assert layer.deploy_packed(packed, config) is layer
    assert torch.equal(layer(x), other.deploy()(x))  # a new layer's bias is 0
    assert not layer.training
    with pytest.raises(LayerStateError, match="deployed already"):
        layer.deploy_packed(packed, config)
    with pytest.raises(ShapeError, match=r"packed is of shape \[13, 67\], expected \[13, 66\]"):
        BitLinear(66, 13).deploy_packed(packed, config)
