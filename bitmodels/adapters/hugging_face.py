"""What the adapters of Hugging Face checkpoints share: config.json, its quantization, names of tensors."""

import re
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from bitcore.config import BitQuantConfig
from bitcore.exceptions import CheckpointError, ConfigError
from bitmodels.adapters.foreign_model import PROJECTIONS, ForeignModel
from bitmodels.formats import BitNetQuantization, HuggingFaceCheckpoint
from bitmodels.formats.bitnet import BITNET, BITNET_UNPACKED
from bitmodels.formats.safetensors_files import read_json
from bitmodels.rope import RopeConfig
from bitmodels.transformer_config import BitTransformerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GENERATION_FILE = "generation_config.json"
INVERSE_FREQUENCIES = ("model.rotary_emb.inv_freq", "model.layers.*.self_attn.rotary_emb.inv_freq")


class HuggingFaceConfig(BaseModel):
    """What config.json of a Llama-like model says. Fields that do not change what is computed are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    default_theta: ClassVar[float] = 10000.0
    sub_norm: ClassVar[bool] = False

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: str | None = None
    torch_dtype: str | None = Field(default=None, description="the older name of dtype")

    @property
    def rope(self) -> RopeConfig:
        """`rope_parameters`, or `rope_theta` and `rope_scaling` as older versions of transformers write them."""
        given = {**(self.rope_parameters or {}), **(self.rope_scaling or {})}
        given = {name: value for name, value in given.items() if value is not None}
        given.setdefault("rope_type", given.get("type", "default"))
        given.setdefault("rope_theta", self.default_theta if self.rope_theta is None else self.rope_theta)
        given.pop("type", None)
        if given.get("partial_rotary_factor") == 1:
            del given["partial_rotary_factor"]
        if given["rope_type"] in ("llama3", "yarn"):
            original = given.setdefault("original_max_position_embeddings", self.max_position_embeddings)
            given.setdefault("factor", self.max_position_embeddings / original)
        return RopeConfig(**given)

    def transformer_config(self, **fields: Any) -> BitTransformerConfig:
        """The same as BitTransformerConfig, with `fields` from elsewhere."""
        return BitTransformerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_length=self.max_position_embeddings,
            activation="silu" if self.hidden_act == "swish" else self.hidden_act,
            sub_norm=self.sub_norm,
            norm_eps=self.rms_norm_eps,
            rope=self.rope,
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            attention_dropout=self.attention_dropout,
            tie_embeddings=self.tie_word_embeddings,
            bos_token_id=self.bos_token_id,
            pad_token_id=self.pad_token_id,
            **fields,
        )


class GenerationConfig(BaseModel):
    """What is read of generation_config.json, which goes before config.json when transformers generates."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    eos_token_id: int | tuple[int, ...] | None = None


def read_hugging_face(checkpoint: HuggingFaceCheckpoint, config_class: type[HuggingFaceConfig]) -> ForeignModel:
    """The model of a Hugging Face checkpoint.

    Raises:
        CheckpointError: config.json lacks a field, has one that no BitTransformer can do, or contradicts the tensors;
            generation_config.json is damaged.
    """
    generation = _generation_config(checkpoint)
    try:
        config = config_class.model_validate(checkpoint.config)
        quantization = checkpoint.quantization
        transformer_config = config.transformer_config(
            linear_norm_eps=quantization.rms_norm_eps if quantization and quantization.use_rms_norm else None,
            head_dtype=_head_dtype(checkpoint, config, quantization),
            eos_token_id=config.eos_token_id if generation.eos_token_id is None else generation.eos_token_id,
        )
        unconverted = _unconverted(transformer_config.num_layers, quantization)
        transformer_config = transformer_config.model_copy(update={"full_precision": unconverted})
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{checkpoint.path}: config.json: {error}") from error
    return ForeignModel(
        config=transformer_config,
        # Ternary floats without a quantization_config are TriLM's, whose activations are not quantized.
        quant_config=BitQuantConfig() if quantization is not None else BitQuantConfig.weight_only(),
        dtype=_dtype(checkpoint, config),
        floats="ternary" if quantization is None else "master" if quantization.is_online else "none",
        foreign_name=foreign_name,
        ignored=(*INVERSE_FREQUENCIES, HEAD) if config.tie_word_embeddings else INVERSE_FREQUENCIES,
    )


def is_converted(module: str, quantization: BitNetQuantization) -> bool:
    """Whether transformers makes a BitLinear of `module`: none of modules_to_not_convert begins or ends its name.

    Raises:
        CheckpointError: an entry is a regular expression, which a file is not trusted with.
    """
    if quantization.modules_to_not_convert is None:
        return module != "lm_head"
    for entry in quantization.modules_to_not_convert:
        if re.fullmatch(r"[\w.-]+", entry) is None:
            raise CheckpointError(f"modules_to_not_convert has {entry!r}, expected plain names")
        if module.endswith(entry) or f"{module}.".startswith(f"{entry.removesuffix('.')}."):
            return False
    return True


def foreign_name(name: str) -> str:
    """The name that transformers has for a tensor of a BitTransformerModel."""
    return name.replace("_proj.norm.weight", "_proj.rms_norm.weight").replace("lm_head.norm.", "lm_head.rms_norm.")


def _generation_config(checkpoint: HuggingFaceCheckpoint) -> GenerationConfig:
    path = (checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent) / GENERATION_FILE
    try:
        return GenerationConfig.model_validate(read_json(path) if path.exists() else {})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _unconverted(num_layers: int, quantization: BitNetQuantization | None) -> tuple[str, ...]:
    if quantization is None or not quantization.modules_to_not_convert:
        return ()
    names = (f"model.layers.{layer}.{projection}" for layer in range(num_layers) for projection in PROJECTIONS)
    return tuple(name for name in names if not is_converted(name, quantization))


def _head_dtype(
    checkpoint: HuggingFaceCheckpoint, config: HuggingFaceConfig, quantization: BitNetQuantization | None
) -> str:
    """Ternary where transformers would convert the head, too; a head in floating point is left as it is."""
    if config.tie_word_embeddings or quantization is None or HEAD not in checkpoint.entries:
        return "float"
    if quantization.is_online:
        return "ternary" if is_converted("lm_head", quantization) else "float"
    return "ternary" if checkpoint.entries[HEAD].encoding in (BITNET.name, BITNET_UNPACKED.name) else "float"


def _dtype(checkpoint: HuggingFaceCheckpoint, config: HuggingFaceConfig) -> torch.dtype:
    name = config.dtype or config.torch_dtype
    if name is None:
        entry = checkpoint.entries.get(EMBEDDINGS)
        name = "float32" if entry is None else entry.encoding  # where it is missing, that is what will be reported
    if name not in DTYPES:
        raise CheckpointError(f"{checkpoint.path}: the dtype is {name}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]
