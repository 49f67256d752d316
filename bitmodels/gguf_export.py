"""export_gguf: a language model as llama.cpp reads it."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitcore.exceptions import ArgumentError
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLayer
from bitmodels.adapters.gguf_end_tokens import TOKENS, end_token_metadata
from bitmodels.adapters.gguf_names import ROPE_FREQUENCIES, gguf_name, interleaved
from bitmodels.export_weights import dense_weight, packed_weight
from bitmodels.formats import gguf_tensor, gguf_weight, write_gguf
from bitmodels.formats.gguf_types import TERNARY_FORMATS, TYPE_OF_DTYPE
from bitmodels.formats.gguf_writer import OutgoingGgufTensor
from bitmodels.gguf_tokenizer import tokenizer_metadata
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerModel
from bitmodels.transformer_config import BitTransformerConfig

GgufType = Literal["TQ2_0", "TQ1_0", "Q2_0", "I2_S"]


def export_gguf(
    model: nn.Module,
    file: str | Path,
    type: GgufType = "TQ2_0",
    tokenizer: Any = None,
    tokenizer_pre: str | None = None,
) -> None:
    """Writes a GGUF file.

    architecture    models                                  scales
    llama           SwiGLU, no sub-norms                    fp16 in the blocks, rounded to 1 part in 2048; I2_S: exact
    bitnet          SwiGLU, sub-norms, tied embeddings      exact: a float32 tensor beside each weight; I2_S: in it
    bitnet-b1.58    relu², sub-norms; I2_S alone            exact; for Microsoft's fork, mainline has no such graph

    The model, which may be in training, is left as it is; int8 and int4 tables become floats of its dtype.

    Args:
        model: a BitTransformerModel.
        file: to write, whole or not at all.
        type: of the ternary weights: "TQ2_0", "TQ1_0", "Q2_0" or "I2_S".
        tokenizer: a fast byte-level BPE tokenizer of `transformers`; the file names its special tokens beside those of
            the config. None: the file has no vocabulary.
        tokenizer_pre: llama.cpp's name of the pre-tokenizer, such as "llama-bpe"; needed with a tokenizer.

    Raises:
        ArgumentError: llama.cpp has no architecture that computes what the model does; or the tokenizer cannot be used;
            or there are more end-of-sequence tokens than a file can name.
        ShapeError: the type cannot hold a layer's shape (the message says which can) or its scales.
        QuantizationError: fp16 cannot hold a scale, or a master weight is NaN or infinite.
        DependencyError: the `gguf` package is not installed.
        FileNotFoundError, IsADirectoryError: the folder of `file` does not exist, or `file` is one.
    """
    if not isinstance(model, BitTransformerModel):
        raise ArgumentError("model", f"a {model.__class__.__name__}", "a BitTransformerModel")
    if type not in TERNARY_FORMATS:
        raise ArgumentError("type", repr(type), f"one of {', '.join(TERNARY_FORMATS)}")
    architecture = _architecture(model.config, type)
    tensors = _tensors(model, architecture, type)
    vocabulary = tokenizer_metadata(tokenizer, tokenizer_pre, model.config.vocab_size)
    end_tokens = end_token_metadata(model.config.end_tokens(tokenizer), vocabulary.get(TOKENS, ()))
    # What the config names counts, not what the tokenizer does.
    write_gguf(Path(file), tensors, {**vocabulary, **_metadata(model.config, architecture, type), **end_tokens})


def _architecture(config: BitTransformerConfig, type: str) -> str:
    """The architecture that computes what the config says. Raises ArgumentError where there is none."""
    for field, wanted in (("linear_norm_eps", None), ("sliding_window", None), ("full_precision", ())):
        if getattr(config, field) != wanted:
            raise ArgumentError(f"config.{field}", getattr(config, field), f"{wanted}: llama.cpp has no such model")
    if config.activation not in (("silu", "relu2") if config.sub_norm else ("silu",)):
        expected = "silu, or relu2 with sub-norms: llama.cpp has no such model"
        raise ArgumentError("config.activation", config.activation, expected)
    if not config.sub_norm:
        return "llama"
    if config.attention_bias or config.mlp_bias:
        raise ArgumentError("config", "with biases and sub-norms", "one of them: llama.cpp has no such model")
    if config.activation == "relu2":
        if type != "I2_S":
            expected = "I2_S, for Microsoft's fork: mainline llama.cpp has no BitNet with relu², and would compute SiLU"
            raise ArgumentError("type", repr(type), expected)
        return "bitnet-b1.58"
    if not config.tie_embeddings:
        raise ArgumentError("config.tie_embeddings", False, "True: llama.cpp's bitnet has no head of its own")
    return "bitnet"


def _metadata(config: BitTransformerConfig, architecture: str, type: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_length,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope.rope_theta,
        **{f"rope.scaling.{key}": value for key, value in _rope_scaling(config.rope, architecture).items()},
    }
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.quantization_version": 2,
        "general.file_type": TERNARY_FORMATS[type].file_type,
        **{f"{architecture}.{key}": value for key, value in values.items()},
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.padding_token_id": config.pad_token_id,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _rope_scaling(rope: RopeConfig, architecture: str) -> dict[str, Any]:
    if rope.rope_type == "linear":
        return {"type": "linear", "factor": rope.factor}
    if rope.rope_type == "yarn":
        if rope.attention_factor is not None or rope.mscale or rope.mscale_all_dim or not rope.truncate:
            raise ArgumentError("config.rope", rope, "yarn without attention_factor, mscale and truncate=False")
        return {
            "type": "yarn",
            "factor": rope.factor,
            "original_context_length": rope.original_max_position_embeddings,
            "yarn_beta_fast": rope.beta_fast,
            "yarn_beta_slow": rope.beta_slow,
        }
    if rope.rope_type != "default" and architecture != "llama":
        raise ArgumentError("config.rope.rope_type", rope.rope_type, f"default, linear or yarn for {architecture}")
    return {"type": "linear", "factor": 1.0} if architecture == "bitnet" else {}


def _tensors(model: BitTransformerModel, architecture: str, type: str) -> list[OutgoingGgufTensor]:
    config = model.config
    heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads} if architecture == "llama" else {}
    scale_tensor = architecture == "bitnet" and type != "I2_S"
    tensors: list[OutgoingGgufTensor] = []
    if config.rope.rope_type in ("llama3", "factors"):
        plain = RopeConfig(rope_theta=config.rope.rope_theta).frequencies(config.head_size)
        tensors.append(gguf_tensor(ROPE_FREQUENCIES, plain / config.rope.frequencies(config.head_size)))
    for name, module in model.named_modules():
        order = None
        if name.rpartition(".")[2] in heads:
            order = interleaved(heads[name.rpartition(".")[2]], config.head_size)
        parameters = dict(module.named_parameters(recurse=False))
        if isinstance(module, BitLayer):
            parameters.pop("weight", None)
            tensors += _weight(name, module, order, type, scale_tensor, model.model.norm.weight.dtype)
        for leaf, parameter in parameters.items():
            # Vectors are float32 in every GGUF file: llama.cpp's operators take no other.
            tensor = parameter.detach().float() if parameter.dim() == 1 else parameter.detach()
            tensors.append(gguf_tensor(gguf_name(f"{name}.{leaf}"), tensor if order is None else tensor[order]))
    return tensors


def _weight(
    name: str, layer: BitLayer, order: Tensor | None, type: str, scale_tensor: bool, dtype: torch.dtype
) -> list[OutgoingGgufTensor]:
    weight, name = packed_weight(layer), gguf_name(f"{name}.weight")
    if layer.quant_config.weight_dtype != "ternary":
        make = partial(dense_weight, weight, layer, dtype)
        return [OutgoingGgufTensor(name, layer.matrix_shape, TYPE_OF_DTYPE[dtype], make)]
    if order is not None:
        scale = weight.scale if weight.scale.shape[0] == 1 else weight.scale[order]
        weight = PackedWeight(weight.packed[order], scale, None, weight.in_features)
    return gguf_weight(name, weight, layer.quant_config, type, scale_tensor=scale_tensor)
