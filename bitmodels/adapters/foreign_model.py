"""ForeignModel: what an adapter says of a checkpoint, so that it can be read into a BitTransformerModel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitmodels.transformer_config import BitTransformerConfig

PROJECTIONS = tuple(
    f"{block}.{projection}_proj"
    for block, projections in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
    for projection in projections
)


def unpermuted(name: str) -> Tensor | None:
    """Rows lie in the file as in the model: ForeignModel.row_order of most checkpoints."""
    return None


@dataclass(frozen=True)
class ForeignModel:
    """The model that a foreign checkpoint holds."""

    config: BitTransformerConfig
    quant_config: BitQuantConfig  # of its ternary layers; the granularity is the file's own
    dtype: torch.dtype  # of everything else
    floats: Literal["master", "ternary", "none"]  # what floating-point weights of ternary layers are
    foreign_name: Callable[[str], str]  # of a tensor, by its name in the model
    ignored: tuple[str, ...]  # names, as globs, of tensors that say nothing the config does not say
    row_order: Callable[[str], Tensor | None] = unpermuted  # by name in the model: the file's row of each row
