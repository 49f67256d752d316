"""export_hf: a language model as transformers' AutoModelForCausalLM loads it."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitcore.exceptions import ArgumentError
from bitlayers import BitLayer
from bitmodels.adapters.hugging_face import foreign_name
from bitmodels.export_weights import dense_weight, dtype_of_ternary_floats, packed_weight
from bitmodels.formats import BitNetQuantization, OutgoingTensor, bitnet_layer, write_safetensors
from bitmodels.formats.safetensors_files import check_no_shards
from bitmodels.replace_file import replace_file
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerModel


class SavedTokenizer(Protocol):
    """A tokenizer of `transformers`."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Writes its files."""


def export_hf(model: nn.Module, directory: str | Path, tokenizer: SavedTokenizer | None = None) -> None:
    """Writes config.json and model.safetensors for transformers: LlamaForCausalLM, or with sub-norms BitNetForCausalLM.

    Layers with int8 activations are packed as `bitnet`: with sub-norms autobitlinear, as BitNet b1.58 2B4T, else
    bitlinear, as Falcon-E. Layers with floating-point activations become floats, as TriLM's. Scales are written so that
    reading gives them back bit for bit; int8 and int4 tables become floats of the model's dtype. The model, which may
    be in training, is left as it is.

    Args:
        model: a BitTransformerModel.
        directory: made if missing.
        tokenizer: a tokenizer of `transformers` to save beside the model.

    Raises:
        ArgumentError, ShapeError: transformers has no class that computes what the model does, or no layout for a
            shape; or `directory` has the index of another model's shards; or `tokenizer` is none. Nothing has been
            written.
        QuantizationError: a master weight is NaN or infinite.
    """
    if not isinstance(model, BitTransformerModel):
        raise ArgumentError("model", f"a {type(model).__name__}", "a BitTransformerModel")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ArgumentError("tokenizer", repr(tokenizer), "a tokenizer of transformers, which has save_pretrained")
    directory = Path(directory)
    quantization = _quantization(model)
    config = _config_json(model, quantization)
    tensors = _tensors(model, quantization)
    check_no_shards(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    with replace_file(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def ternary_layers(model: BitTransformerModel) -> dict[str, BitLayer]:
    """The layers with ternary weights, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BitLayer) and module.quant_config.weight_dtype == "ternary"
    }


def _quantization(model: BitTransformerModel) -> BitNetQuantization | None:
    """How transformers is to compute the model; None: in floating point."""
    layers = ternary_layers(model)
    activations = {layer.quant_config.activation_dtype for layer in layers.values()}
    if len(activations) > 1:
        raise ArgumentError("model", "with int8 and floating-point activations", "one of them")
    for name, layer in layers.items():
        if layer.quant_config.activation_dtype == "int8" and layer.quant_config.activation_granularity == "per_tensor":
            raise ArgumentError(f"{name}.quant_config.activation_granularity", "per_tensor", "per_token")
    config = model.config
    if activations != {"int8"}:
        if config.linear_norm_eps is not None:
            raise ArgumentError(
                "config.linear_norm_eps", config.linear_norm_eps, "None with floating-point activations"
            )
        return None
    has_bias = any(layer.bias is not None for layer in layers.values())
    unconverted = [] if "lm_head" in layers else ["lm_head"]
    return BitNetQuantization(
        linear_class="autobitlinear" if config.sub_norm and not has_bias else "bitlinear",
        modules_to_not_convert=[*unconverted, *config.full_precision],
        use_rms_norm=config.linear_norm_eps is not None,
        rms_norm_eps=config.linear_norm_eps or 1e-6,
    )


def _config_json(model: BitTransformerModel, quantization: BitNetQuantization | None) -> dict[str, Any]:
    config = model.config
    if config.sliding_window is not None:
        raise ArgumentError("config.sliding_window", config.sliding_window, "None: transformers' Llama has no window")
    if config.sub_norm and config.mlp_bias:
        raise ArgumentError("config.mlp_bias", True, "False: transformers' BitNet has none")
    if config.sub_norm and config.num_heads * config.head_size != config.hidden_size:
        expected = f"{config.hidden_size} / {config.num_heads}: transformers' BitNet has no other"
        raise ArgumentError("config.head_dim", config.head_size, expected)
    theta, scaling = _rope(config.rope)
    content: dict[str, Any] = {
        "architectures": ["BitNetForCausalLM" if config.sub_norm else "LlamaForCausalLM"],
        "model_type": "bitnet" if config.sub_norm else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": theta,  # as versions before 5 read it, and later ones, too
        "rope_scaling": scaling,
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": str(model.model.norm.weight.dtype).removeprefix("torch."),
    }
    if quantization is not None:
        content["quantization_config"] = quantization.model_dump()
    return content


def _rope(rope: RopeConfig) -> tuple[float, dict[str, Any] | None]:
    if rope.rope_type == "factors":
        raise ArgumentError("config.rope.rope_type", "factors", "a scaling that transformers has")
    given = rope.model_dump(exclude_defaults=True)
    given.pop("rope_theta", None)
    if not given:
        return rope.rope_theta, None
    if rope.rope_type in ("linear", "llama3", "yarn"):
        given["factor"] = rope.factor
    if rope.rope_type == "llama3":
        given |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    return rope.rope_theta, given


def _tensors(model: BitTransformerModel, quantization: BitNetQuantization | None) -> list[OutgoingTensor]:
    dtype = model.model.norm.weight.dtype
    tensors: list[OutgoingTensor] = []
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if isinstance(module, BitLayer):
            tensors += _layer_tensors(name, module, quantization, dtype)
            parameters = {}
        tensors += [_outgoing(foreign_name(f"{name}.{leaf}"), parameter) for leaf, parameter in parameters.items()]
    return tensors


def _layer_tensors(
    name: str, layer: BitLayer, quantization: BitNetQuantization | None, dtype: torch.dtype
) -> list[OutgoingTensor]:
    weight = packed_weight(layer)
    is_ternary = layer.quant_config.weight_dtype == "ternary"
    if is_ternary and quantization is not None:
        return bitnet_layer(name, weight, layer.bias, layer.quant_config, quantization)
    if is_ternary:
        dtype = dtype_of_ternary_floats(weight.scale, dtype)
    dense = OutgoingTensor(f"{name}.weight", layer.matrix_shape, dtype, partial(dense_weight, weight, layer, dtype))
    return [dense] if layer.bias is None else [dense, _outgoing(f"{name}.bias", layer.bias)]


def _outgoing(name: str, tensor: Tensor) -> OutgoingTensor:
    return OutgoingTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach)
