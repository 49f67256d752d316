"""The vLLM plug-in, on vLLM's own layers where it is installed, else on stand-ins with its signatures."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm_stand_in
from language_models import language_model
from safetensors.torch import load_file
from torch import nn

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError
from bitlayers import BitLinear, convert, deploy
from bitmodels.layer_groups import LayerGroup
from bitmodels.plugins.transformers import attach_quantizer
from bitmodels.plugins.vllm import register

LINEAR = "vllm.model_executor.layers.linear"
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
CONFIGS = {
    "default": BitQuantConfig(),
    "base3": BitQuantConfig(storage_format="base3"),
    "per_channel": BitQuantConfig(weight_granularity="per_channel"),
    "weight only": BitQuantConfig.weight_only(),
    "int4": BitQuantConfig.int4(group_size=16),
}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's layers and the plug-in's config, for one GPU; `ranks` makes the layers those of a group of GPUs."""
    if find_spec("vllm") is None:
        for name, module in vllm_stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("bitmodels.plugins.vllm.")]:
        monkeypatch.delitem(sys.modules, name)

    def ranks(rank: int, size: int) -> None:
        for module in (import_module(LINEAR), import_module("vllm.model_executor.parameter"), vllm_stand_in):
            monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
            monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)

    ranks(0, 1)
    register()
    register()
    quantization = import_module("vllm.model_executor.layers.quantization")
    yield SimpleNamespace(
        **vars(import_module(LINEAR)), ranks=ranks, config=quantization.get_quantization_config("bitlab")
    )
    for name in [name for name in sys.modules if name.startswith("bitmodels.plugins.vllm.")]:
        del sys.modules[name]


def config_of(vllm: Any, names: list[str], quant_config: BitQuantConfig, **changes: Any) -> Any:
    group = LayerGroup(**{"quant_config": quant_config, "deployed": True, "modules": tuple(names), **changes})
    config = vllm.config.from_config({"quant_method": "bitlab", "layers": [group.model_dump(mode="json")]})
    config.packed_modules_mapping = FUSED
    return config


def load(layer: Any, part: BitLinear, shard_id: int | str | None = None) -> None:
    """Hands the tensors of `part` over, as vLLM's models do."""
    for name, tensor in part.state_dict().items():
        parameter = layer.get_parameter(name)
        parameter.weight_loader(parameter, tensor, *(() if shard_id is None else (shard_id,)))


def parts(sizes: list[int], quant_config: BitQuantConfig, bias: bool = False) -> list[BitLinear]:
    return [BitLinear(64, size, bias=bias, quant_config=quant_config).deploy() for size in sizes]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fused_layers_give_what_their_parts_give(kind: str, dtype: torch.dtype, vllm: Any) -> None:
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    config = config_of(vllm, names, CONFIGS[kind])
    prefix = "model.layers.0.self_attn.qkv_proj"
    layer = vllm.QKVParallelLinear(64, 16, 4, 2, bias=False, quant_config=config, prefix=prefix, params_dtype=dtype)
    own = parts([64, 32, 32], CONFIGS[kind])
    for part, shard_id in zip(own, "qkv", strict=True):
        load(layer, part, shard_id)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, 64).to(dtype)
    assert torch.equal(layer(x)[0], torch.cat([part(x) for part in own], -1))
    assert set(dict(layer.named_parameters())) == {"weight_packed", "weight_scale"}


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_gate_and_up_and_plain_layers(kind: str, vllm: Any) -> None:
    names = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    config = config_of(vllm, names, CONFIGS[kind])
    options = {"quant_config": config, "params_dtype": torch.float32}
    gate_up = vllm.MergedColumnParallelLinear(64, [48, 48], bias=True, prefix="mlp.gate_up_proj", **options)
    gate, up = parts([48, 48], CONFIGS[kind])
    for index, part in enumerate((gate, up)):
        load(gate_up, part, index)
    nn.init.normal_(gate_up.bias)
    x = torch.randn(2, 3, 64)
    gate_up.quant_method.process_weights_after_loading(gate_up)
    for got, part, bias in zip(gate_up(x)[0].chunk(2, -1), (gate, up), gate_up.bias.chunk(2), strict=True):
        part.bias = nn.Parameter(bias.detach().clone())
        assert torch.equal(got, part(x))
    for layer_class in (vllm.RowParallelLinear, vllm.ReplicatedLinear, vllm.ColumnParallelLinear):
        layer = layer_class(64, 24, bias=False, prefix="mlp.down_proj", **options)
        (part,) = parts([24], CONFIGS[kind])
        load(layer, part)
        layer.quant_method.process_weights_after_loading(layer)
        assert torch.equal(layer(x)[0], part(x))


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_rows_are_split_over_gpus(kind: str, vllm: Any) -> None:
    config = config_of(vllm, ["mlp.gate_proj", "mlp.up_proj"], CONFIGS[kind])
    own, x, outputs = parts([48, 48], CONFIGS[kind]), torch.randn(5, 64), []
    for rank in range(2):
        vllm.ranks(rank, 2)
        layer = vllm.MergedColumnParallelLinear(
            64, [48, 48], bias=False, quant_config=config, prefix="mlp.gate_up_proj", params_dtype=torch.float32
        )
        for index, part in enumerate(own):
            load(layer, part, index)
        layer.quant_method.process_weights_after_loading(layer)
        outputs.append(layer(x)[0].unflatten(-1, (2, 24)))
    together = torch.cat(outputs, -1).flatten(-2)
    assert torch.equal(together, torch.cat([part(x) for part in own], -1))


@pytest.mark.parametrize("kind", ["weight only", "int4"])
@torch.no_grad()
def test_inputs_are_split_over_gpus_without_activation_scales(kind: str, vllm: Any) -> None:
    config = config_of(vllm, ["o_proj"], CONFIGS[kind])
    (own,), x, total = parts([24], CONFIGS[kind]), torch.randn(5, 64), torch.zeros(5, 24)
    for rank in range(2):
        vllm.ranks(rank, 2)
        layer = vllm.RowParallelLinear(
            64, 24, bias=False, quant_config=config, prefix="o_proj", params_dtype=torch.float32
        )
        load(layer, own)
        layer.quant_method.process_weights_after_loading(layer)
        total += layer.quant_method.apply(layer, x[:, 32 * rank : 32 * rank + 32])
    torch.testing.assert_close(total, own(x))


@torch.no_grad()
def test_layers_compile_in_one_graph(vllm: Any) -> None:
    config = config_of(vllm, ["o_proj"], BitQuantConfig())
    layer = vllm.RowParallelLinear(64, 24, bias=False, quant_config=config, prefix="o_proj", params_dtype=torch.float32)
    (own,) = parts([24], BitQuantConfig())
    load(layer, own)
    layer.quant_method.process_weights_after_loading(layer)
    compiled = torch.compile(lambda x: layer.quant_method.apply(layer, x), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 64)
    assert torch.equal(compiled(x), own(x))


@torch.no_grad()
def test_a_checkpoint_of_the_transformers_plug_in(vllm: Any, tmp_path: Path) -> None:
    model = attach_quantizer(deploy(convert(language_model("tied llama"))))
    model.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    config = vllm.config.from_config(found)
    config.packed_modules_mapping = FUSED
    own = model.model.layers[0]
    prefix, options = "model.layers.0.", {"quant_config": config, "params_dtype": torch.float32}
    layers = {
        "self_attn.qkv_proj": vllm.QKVParallelLinear(
            64, 16, 4, 2, bias=False, prefix=f"{prefix}self_attn.qkv_proj", **options
        ),
        "mlp.down_proj": vllm.RowParallelLinear(96, 64, bias=False, prefix=f"{prefix}mlp.down_proj", **options),
    }
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors[f"{prefix}self_attn.q_proj.weight"].numel() == 0
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{prefix}(self_attn|mlp)\.(?:([qkv])|(down))_proj\.(\w+)", name)
        if match:
            layer = layers["mlp.down_proj" if match[3] else "self_attn.qkv_proj"]
            parameter = layer.get_parameter(match[4])
            parameter.weight_loader(parameter, tensor, *([match[2]] if match[2] else []))
    x = torch.randn(3, 96)
    for layer in layers.values():
        layer.quant_method.process_weights_after_loading(layer)
    assert torch.equal(layers["mlp.down_proj"](x)[0], own.mlp.down_proj(x))
    qkv = [getattr(own.self_attn, f"{part}_proj")(x[:, :64]) for part in "qkv"]
    assert torch.equal(layers["self_attn.qkv_proj"](x[:, :64])[0], torch.cat(qkv, -1))


def test_layers_that_are_not_in_the_checkpoint_stay_dense(vllm: Any) -> None:
    config = config_of(vllm, ["a.q_proj", "a.k_proj", "a.v_proj", "fused.qkv_proj"], BitQuantConfig())
    layer = vllm.ReplicatedLinear.__new__(vllm.ReplicatedLinear)
    nn.Module.__init__(layer)
    assert type(config.get_quant_method(layer, "b.qkv_proj")) is vllm.UnquantizedLinearMethod
    assert type(config.get_quant_method(layer, "a.o_proj")) is vllm.UnquantizedLinearMethod
    for prefix in ("a.qkv_proj", "fused.qkv_proj"):
        assert type(config.get_quant_method(layer, prefix)).__name__ == "BitLabLinearMethod"
    assert config.get_quant_method(nn.Embedding(2, 2), "lm_head") is None


def test_names_follow_vllm_s_mapper(vllm: Any) -> None:
    config = config_of(vllm, ["model.a", "model.b"], BitQuantConfig())
    renamed = {"model.a": "language_model.a", "model.b": "language_model.b"}
    config.apply_vllm_mapper(SimpleNamespace(apply_dict=lambda d: {renamed[name]: value for name, value in d.items()}))
    assert set(config.quant_configs) == set(renamed.values())


def test_what_vllm_is_told_of_the_config(vllm: Any) -> None:
    config = config_of(vllm, ["a"], BitQuantConfig())
    assert config.get_name() == "bitlab"
    assert config.get_min_capability() == 75
    assert config.get_config_filenames() == []
    assert torch.bfloat16 in config.get_supported_act_dtypes()
    assert repr(config) == "BitLabConfig(1 layers)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part, layer: part.pop("weight_scale"), "mlp.x: weight_scale is missing, or NaN"),
        (lambda part, layer: part["weight_packed"].fill_(255), "mlp.x: packed is 255 at"),
        (lambda part, layer: part["weight_scale"].fill_(torch.inf), "mlp.x: weight_scale is inf at"),
    ],
)
def test_damage_is_named(change: Callable[..., object], message: str, vllm: Any) -> None:
    config = config_of(vllm, ["mlp.x"], BitQuantConfig())
    layer = vllm.ColumnParallelLinear(
        64, 24, bias=False, quant_config=config, prefix="mlp.x", params_dtype=torch.float32
    )
    tensors = parts([24], BitQuantConfig())[0].state_dict()
    change(tensors, layer)
    for name, tensor in tensors.items():
        layer.get_parameter(name).weight_loader(layer.get_parameter(name), tensor)
    with pytest.raises(CheckpointError, match=message):
        layer.quant_method.process_weights_after_loading(layer)


def test_what_cannot_be_served_is_refused(vllm: Any) -> None:
    default = BitQuantConfig()
    with pytest.raises(CheckpointError, match="has no layers: save the model by save_pretrained"):
        vllm.config.from_config({"quant_method": "bitlab", "quant_config": None, "layers": None})
    with pytest.raises(CheckpointError, match=r"a, \.\.\. hold master weights: deploy\(\) the model"):
        config_of(vllm, ["a"], default, deployed=False)
    with pytest.raises(CheckpointError, match=r"a, \.\.\. have a norm inside"):
        config_of(vllm, ["a"], default, norm_eps=1e-5)
    config = config_of(vllm, ["a.q_proj", "a.k_proj", "lm_head"], default)
    options = {"bias": False, "quant_config": config, "params_dtype": torch.float32}
    with pytest.raises(ArgumentError, match=r"a\.v_proj: not packed, expected parts of one kind"):
        vllm.QKVParallelLinear(64, 16, 4, 2, prefix="a.qkv_proj", **options)
    with pytest.raises(ArgumentError, match="lm_head is packed, and a Embedding, expected in floating point"):
        config.get_quant_method(nn.Embedding(2, 2), "lm_head")
    with pytest.raises(ArgumentError, match=r"a\.q_proj has a float weight|weight_quantizer is minmax"):
        minmax = BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", activation_dtype="float32")
        vllm.ColumnParallelLinear(64, 16, prefix="a", **{**options, "quant_config": config_of(vllm, ["a"], minmax)})
    layer = vllm.ColumnParallelLinear(64, 16, prefix="a.q_proj", **options)
    with pytest.raises(
        CheckpointError, match=r"a\.q_proj has a float weight of shape \[16, 64\], expected a weight_pac"
    ):
        layer.weight.weight_loader(layer.weight, torch.randn(16, 64))
    vllm.ranks(0, 2)
    with pytest.raises(ArgumentError, match=r"tensor_parallel_size of a\.q_proj is more than 1, expected 1 \(or pipe"):
        vllm.RowParallelLinear(64, 16, prefix="a.q_proj", **options)
    for quant_config, size, message in (
        (BitQuantConfig.weight_only(), 68, "in_features of a GPU is 34, expected a multiple of 4"),
        (BitQuantConfig.int4(group_size=32), 96, "in_features of a GPU is 48, expected a multiple of 32"),
    ):
        options["quant_config"] = config_of(vllm, ["a"], quant_config)
        with pytest.raises(ArgumentError, match=message):
            vllm.RowParallelLinear(size, 16, prefix="a", **options)


def test_the_entry_point_names_the_function() -> None:
    text = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text()
    assert '[project.entry-points."vllm.general_plugins"]\nbitlab = "bitmodels.plugins.vllm:register"\n' in text
