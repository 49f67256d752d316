"""convert on language models of transformers: trained, deployed, generating, saved and loaded by the plug-in."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from language_models import KINDS, SIZES, language_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, UnconvertedWarning
from bitlayers import BitEmbedding, BitLayer, BitLinear, TernaryLinear, assert_deploy_equal, convert, deploy
from bitmodels.plugins.transformers import BitFalconLinear, BitLabQuantConfig, attach_quantizer

CONVERTED = {  # Bit layers of each kind: 7 or 4 a layer, and the embedding where it is not tied
    "llama": 15,
    "tied llama": 14,
    "qwen2": 15,
    "qwen3": 15,
    "gemma": 14,
    "mistral": 15,
    "gpt2": 1,
    "falcon": 8,
    "mixtral": 9,
}
UNCONVERTED = {
    "gpt2": r"transformer\.h\.\*\.attn\.c_attn\.weight \[64, 192\] \(Conv1D\), .*mlp\.c_proj\.weight \[256, 64\]",
    "mixtral": r"experts\.gate_up_proj \[4, 192, 64\] \(MixtralExperts\), .*experts\.down_proj \[4, 64, 96\]",
}


def ids() -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, 9))


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits


def converted(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvertedWarning)
        return convert(language_model(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_converts_trains_deploys_generates_and_comes_back(kind: str, tmp_path: Path) -> None:
    model, tokens = converted(kind), ids()
    assert sum(isinstance(layer, BitLayer) for layer in model.modules()) == CONVERTED[kind]
    assert not isinstance(model.get_output_embeddings(), BitLayer)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (not isinstance(model.get_input_embeddings(), BitEmbedding))

    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    masters = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, BitLayer)]
    assert not any(torch.equal(model.get_parameter(name), before[name]) for name in masters)

    expected = logits_of(attach_quantizer(model.eval()), tokens)
    model.save_pretrained(tmp_path / "training")
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "training"), tokens), expected)
    assert torch.equal(logits_of(deploy(model), tokens), expected)
    generated = model.generate(tokens, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > tokens.shape[1]
    model.save_pretrained(tmp_path / "deployed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "deployed")
    assert torch.equal(logits_of(loaded, tokens), expected)
    assert torch.equal(loaded.generate(tokens, max_new_tokens=5, do_sample=False), generated)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_layer_replaces_is_named(kind: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnconvertedWarning)
        convert(language_model(kind))
    messages = [str(warning.message) for warning in caught if warning.category is UnconvertedWarning]
    assert len(messages) == (kind in UNCONVERTED)
    if messages:
        assert re.search(UNCONVERTED[kind], messages[0])


def test_what_no_layer_replaces_is_named_at_loading(tmp_path: Path) -> None:
    language_model("mixtral").save_pretrained(tmp_path / "mixtral")
    with pytest.warns(UnconvertedWarning, match=UNCONVERTED["mixtral"]):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "mixtral", quantization_config=BitLabQuantConfig())
    assert sum(isinstance(layer, BitLinear) for layer in model.modules()) == 8
    language_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ArgumentError, match=UNCONVERTED["gpt2"]):
        AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", quantization_config=BitLabQuantConfig())
    quiet = BitLabQuantConfig(modules_to_not_convert=["lm_head", "experts", "gate"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnconvertedWarning)
        AutoModelForCausalLM.from_pretrained(tmp_path / "mixtral", quantization_config=quiet)


def test_nothing_but_conv1d_is_an_error_that_names_it() -> None:
    expected = r"no Bit layer replaces transformer\.h\.\*\.attn\.c_attn\.weight \[64, 192\] \(Conv1D\)"
    with pytest.raises(ArgumentError, match=expected):
        convert(language_model("gpt2"), exclude=("lm_head", "wpe"))


def test_a_tied_embedding_is_not_converted_apart() -> None:
    model = language_model("tied llama")
    with pytest.raises(ArgumentError, match=r"model\.embed_tokens \(tied to lm_head\), which is left, expected tied"):
        convert(model, include="embed_tokens")
    assert not any(isinstance(module, BitLayer) for module in model.modules())


def test_falcon_s_own_linear_is_converted() -> None:
    model, tokens = converted("falcon"), ids()
    layer = model.transformer.h[0].mlp.dense_h_to_4h
    assert type(layer) is BitFalconLinear
    x = torch.randn(3, 64)
    linear = nn.Linear(64, 256)
    linear.weight, linear.bias = layer.weight, layer.bias
    assert torch.equal(layer(x), BitLinear.from_linear(linear).eval()(x))
    assert logits_of(model, tokens).isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "tied llama"])
def test_both_ends_converted(kind: str, tmp_path: Path) -> None:
    """A tied head and embedding quantize the same master."""
    model, tokens = language_model(kind), ids()
    convert(model, BitQuantConfig(weight_granularity="per_channel"), exclude=None)
    assert isinstance(model.lm_head, BitLinear)
    assert isinstance(model.model.embed_tokens, BitEmbedding)
    attach_quantizer(model)
    expected = logits_of(model, tokens)
    model.save_pretrained(tmp_path / "training")
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "training"), tokens), expected)
    deploy(model).save_pretrained(tmp_path / "deployed")
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "deployed"), tokens), expected)


def test_kinds_of_layers_in_one_model_are_kept(tmp_path: Path) -> None:
    model, tokens = language_model("llama"), ids()
    convert(model, BitQuantConfig.int4(group_size=16), include="mlp")
    convert(model, BitQuantConfig(storage_format="base3"), include="self_attn")
    convert(model, BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"), include="embed_tokens")
    attach_quantizer(deploy(model)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(loaded.config.quantization_config.layers) == 3
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, tokens = converted("llama").train(), ids()
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("deployed", [False, True])
def test_compiles_in_one_graph(deployed: bool) -> None:
    model, tokens = converted("llama"), ids()
    model = deploy(model) if deployed else model
    expected = logits_of(model, tokens)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, tokens), expected, rtol=0, atol=0.05)


def test_assert_deploy_equal_knows_models_of_transformers() -> None:
    assert_deploy_equal(converted("qwen3"), {"input_ids": ids(), "use_cache": False})


def test_what_an_architecture_s_own_conversion_gives_is_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = language_model("llama"), ids()
    model.save_pretrained(tmp_path / "dense")
    get_checkpoint_conversion_mapping("llama")
    weights = model.state_dict()
    turned = {name: weight.T.contiguous() if "up_proj" in name else weight for name, weight in weights.items()}
    from transformers import conversion_mapping

    transpose = [WeightConverter("up_proj.weight", "up_proj.weight", [Transpose()])]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", transpose)
    from safetensors.torch import save_file

    save_file(turned, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=BitLabQuantConfig())
    deploy(convert(model, exclude=("lm_head", "embed_tokens")))
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))
    loaded.save_pretrained(tmp_path / "bitlab")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab")
    assert torch.equal(logits_of(again, tokens), logits_of(model, tokens))


def test_attach_quantizer_refuses_what_it_cannot_record() -> None:
    with pytest.raises(ArgumentError, match="model is a Linear, expected a PreTrainedModel"):
        attach_quantizer(nn.Linear(2, 2))
    model = language_model("llama")
    with pytest.raises(
        ArgumentError, match="model is a LlamaForCausalLM without Bit layers, expected one that convert"
    ):
        attach_quantizer(model)
    model.model.layers[0].mlp.up_proj = TernaryLinear(64, 96)
    with pytest.raises(ArgumentError, match=r"with a TernaryLinear at model\.layers\.0\.mlp\.up_proj"):
        attach_quantizer(model)
    model.hf_quantizer = object()
    with pytest.raises(ArgumentError, match="model is quantized by object"):
        attach_quantizer(model)
