"""Checkpoints of transformers' own models with random ternary weights, for the tests that read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig

from bitcore import BitQuantConfig
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize
from bitmodels.formats import BitNetQuantization, OutgoingTensor, bitnet_layer, write_safetensors

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
CLASSES = {
    "bitlinear": BitNetQuantization(),
    "autobitlinear": BitNetQuantization(linear_class="autobitlinear"),
    "online": BitNetQuantization(linear_class="autobitlinear", quantization_mode="online"),
}


def random_model(architecture: str, dtype: torch.dtype, **config: Any) -> nn.Module:
    """A `llama` or `bitnet` of transformers; also what begins as ones or zeros is random."""
    kind = {"llama": LlamaConfig, "bitnet": BitNetConfig}[architecture]
    model = AutoModelForCausalLM.from_config(kind(**{**SIZES, **config})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_()
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def write_checkpoint(
    directory: Path,
    model: nn.Module,
    quantization: BitNetQuantization | None,
    packed: tuple[str, ...] = ("proj.weight",),
) -> Path:
    """The checkpoint of `model`: packed, of master weights, or without a quantization of ternary floats (TriLM)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: list[OutgoingTensor] = []
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if not name.endswith(packed) or (quantization is not None and quantization.is_online):
            tensors.append(outgoing(name, tensor))
            continue
        config = BitQuantConfig()
        weight = PackedWeight.from_float(tensor, config)
        if quantization is None:
            tensors.append(outgoing(name, dequantize(weight.values(config), weight.scale.half().float()).half()))
        else:
            tensors += bitnet_layer(name.removesuffix(".weight"), weight, None, config, quantization)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    dtype = torch.float16 if quantization is None else next(model.parameters()).dtype
    content = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": str(dtype)[6:]}
    if quantization is not None:
        content["quantization_config"] = quantization.model_dump()
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Lets `change` change the tensors of a checkpoint."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def outgoing(name: str, tensor: Tensor) -> OutgoingTensor:
    return OutgoingTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)
