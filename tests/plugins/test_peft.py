"""LoRA of PEFT on Bit layers, in training and deployed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from language_models import SIZES, language_model
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import validate_quantization_for_training

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, LayerStateError
from bitlayers import BitConv2d, BitEmbedding, BitLayer, BitLinear, convert, deploy
from bitmodels import AutoBitModel
from bitmodels.plugins.peft import LoraBitConv2d, LoraBitEmbedding, LoraBitLinear, prepare_model_for_lora
from bitmodels.plugins.transformers import attach_quantizer
from bitmodels.transformer import BitTransformerConfig

TARGETS = ["q_proj", "v_proj", "down_proj"]


def ids() -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, 9))


def bit_model(deployed: bool) -> PreTrainedModel:
    model = convert(language_model("tied llama"))
    assert isinstance(model, PreTrainedModel)
    return attach_quantizer(deploy(model) if deployed else model)


def with_lora(model: nn.Module, **options: object) -> PeftModel:
    """Adapters that change what the model gives: PEFT begins with B = 0."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options})
    peft_model = get_peft_model(prepare_model_for_lora(model, config), config)
    with torch.no_grad():
        for _, adapter in adapters(peft_model):
            nn.init.normal_(adapter.lora_B["default"].weight, std=0.1)
    return peft_model.eval()


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraBitLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraBitLinear))


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("deployed", [False, True])
def test_a_step_trains_the_adapters_alone(deployed: bool) -> None:
    base, tokens = bit_model(deployed), ids()
    plain = logits_of(base, tokens)
    model = with_lora(base)
    assert len(list(adapters(model))) == 2 * len(TARGETS)
    validate_quantization_for_training(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.5)
    model.train()
    assert all(layer.training != deployed for layer in model.modules() if isinstance(layer, BitLayer))
    losses = []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    model.eval()
    assert not torch.equal(logits_of(model, tokens), plain)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, tokens), plain)


@pytest.mark.parametrize("deployed", [False, True])
def test_an_adapter_adds_to_its_layer_and_has_its_gradients(deployed: bool) -> None:
    layer = BitLinear(64, 32)
    dense = layer.get_quantized_weight()
    model = with_lora(nn.Sequential(deploy(layer) if deployed else layer.eval()), target_modules=["0"])
    (_, adapter), *_ = adapters(model)
    x = torch.randn(5, 64, requires_grad=True)
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    y = model(x)
    torch.testing.assert_close(y, layer(x) + 2.0 * x @ a.T @ b.T)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    master = dense[0] * dense[1]
    torch.testing.assert_close(x.grad, gradient @ master + 2.0 * gradient @ b @ a)
    torch.testing.assert_close(b.grad, 2.0 * gradient.T @ (x @ a.T))


@pytest.mark.parametrize("deployed", [False, True])
def test_adapters_are_saved_and_loaded(deployed: bool, tmp_path: Path) -> None:
    base, tokens = bit_model(deployed), ids()
    base.save_pretrained(tmp_path / "base")
    model = with_lora(base)
    expected = logits_of(model, tokens)
    model.save_pretrained(tmp_path / "adapter")
    fresh = type(base).from_pretrained(tmp_path / "base")
    config = LoraConfig.from_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(prepare_model_for_lora(fresh, config), tmp_path / "adapter", config=config)
    assert torch.equal(logits_of(loaded, tokens), expected)
    assert len(list(adapters(loaded.train()))) == 2 * len(TARGETS)
    assert torch.equal(
        model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False),
        loaded.eval().generate(input_ids=tokens, max_new_tokens=4, do_sample=False),
    )


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_merging_quantizes_the_masters_again(safe: bool, training: bool) -> None:
    layer = BitLinear(64, 32).train(training)
    x = torch.randn(5, 64)
    with torch.no_grad():
        before, master = layer(x), layer.weight.detach().clone()
    model = with_lora(nn.Sequential(layer), target_modules=["0"]).train(training)
    (_, adapter), *_ = adapters(model)
    merged = master + 2.0 * adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
    with torch.no_grad():
        model(x)
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(layer.weight, merged)
        fresh = BitLinear(64, 32).train(training)
        fresh.weight, fresh.bias = layer.weight, layer.bias
        assert torch.equal(model(x), fresh(x))
        assert not torch.equal(model(x), before)
        model.unmerge_adapter()
        torch.testing.assert_close(layer.weight, master)
        model.merge_and_unload(safe_merge=safe)
        assert torch.equal(deploy(layer)(x), fresh.eval()(x))


def test_a_deployed_layer_takes_no_merge() -> None:
    base, tokens = bit_model(deployed=True), ids()
    model = with_lora(base)
    expected = logits_of(model, tokens)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(LayerStateError, match=r"no master weight to merge an adapter into\. Merge before"):
            merge()
    assert torch.equal(logits_of(model, tokens), expected)


def test_a_deployed_model_without_adapters_is_not_trained() -> None:
    with pytest.raises(LayerStateError, match="no master weight to train"):
        bit_model(deployed=True).train()


@pytest.mark.parametrize(("kind", "deployed"), [("embedding", False), ("embedding", True), ("conv", False)])
def test_embeddings_and_convolutions(kind: str, deployed: bool) -> None:
    config = BitQuantConfig.weight_only()
    layer = BitEmbedding(9, 16, quant_config=config) if kind == "embedding" else BitConv2d(3, 8, 3)
    x = torch.arange(9) if kind == "embedding" else torch.randn(2, 3, 6, 6)
    model = nn.Sequential(deploy(layer) if deployed else layer.eval(), nn.RMSNorm(16))
    lora_config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    get_peft_model(prepare_model_for_lora(model, lora_config), lora_config)
    adapter = model[0]
    assert isinstance(adapter, LoraBitEmbedding if kind == "embedding" else LoraBitConv2d)
    y = adapter(x)
    assert y.requires_grad
    assert not torch.equal(y, layer(x))
    if deployed:
        with pytest.raises(LayerStateError, match="no master weight to merge"):
            adapter.merge()
        return
    adapter.merge()
    merged = layer(x)
    assert torch.equal(layer.train().eval()(x), merged)


def test_a_deployed_convolution_takes_no_adapter() -> None:
    model = deploy(nn.Sequential(BitConv2d(3, 8, 3)))
    config = LoraConfig(r=2, target_modules=["0"])
    with pytest.raises(LayerStateError, match="Add the adapter before deploy"):
        get_peft_model(prepare_model_for_lora(model, config), config)


def test_our_own_models_take_adapters() -> None:
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}
    model = AutoBitModel.from_config(BitTransformerConfig(**sizes)).deploy()
    tokens = torch.randint(40, (2, 7))
    before = model(tokens)
    peft_model = with_lora(model).train()
    logits = peft_model(input_ids=tokens)
    logits.sum().backward()
    assert not torch.equal(logits, before)
    assert all(adapter.lora_A["default"].weight.grad is not None for _, adapter in adapters(peft_model))


def test_what_cannot_be_prepared_is_refused() -> None:
    model = bit_model(deployed=True)
    with pytest.raises(ArgumentError, match="config is a IA3Config, expected a LoraConfig"):
        prepare_model_for_lora(model, IA3Config())
    with pytest.raises(ArgumentError, match="model is a Linear without Bit layers"):
        prepare_model_for_lora(nn.Linear(2, 2), LoraConfig())
    with pytest.raises(ArgumentError, match=r"config\.use_dora is True, expected False: deployed layers have no float"):
        prepare_model_for_lora(model, LoraConfig(use_dora=True))
    with pytest.raises(ArgumentError, match=r"init_lora_weights is pissa, expected one of True, False, gaussian"):
        prepare_model_for_lora(model, LoraConfig(init_lora_weights="pissa"))
    prepare_model_for_lora(bit_model(deployed=False), LoraConfig(use_dora=True))
