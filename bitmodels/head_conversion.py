"""convert_head: the embeddings and the head of a language model in another dtype, some rows at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError
from bitcore.packed_weight import PackedWeight
from bitcore.packing import packed_columns
from bitlayers import BitLayer
from bitmodels.export_weights import PART_ROWS, dense_parts, packed_weight
from bitmodels.meta_device import on_meta_device
from bitmodels.transformer import BitTransformerModel
from bitmodels.transformer_config import BitTransformerConfig

HEAD_DTYPES = ("float", "int8", "int4")
QUANTIZED_ROWS = 256  # quantized together: their float32 copy stays in a core's cache

Parts = Iterable[tuple[slice, Tensor]]  # rows, and what is in them


def convert_head(model: BitTransformerModel, head_dtype: str, dtype: torch.dtype | None = None) -> None:
    """Makes embeddings and head of `model`, deployed or in training, what `head_dtype` of its config says.

    Int8 and int4 quantize what the model computes with now. Floats are the numbers that packed rows stand for; what
    quantizing them took does not come back.

    Args:
        model: whose head is not ternary.
        head_dtype: "float", "int8" or "int4".
        dtype: of the floats that packed rows become; None: the model's.

    Raises:
        ArgumentError: there is no such `head_dtype`, or the head is ternary. The model stays as it was.
        DtypeError: `dtype` cannot hold the floats without rounding. The model stays as it was.
        QuantizationError: a weight is NaN or infinite. The model stays as it was.
    """
    if head_dtype not in HEAD_DTYPES:
        raise ArgumentError("head_dtype", repr(head_dtype), "float, int8 or int4")
    if model.config.head_dtype == head_dtype:
        return
    if model.config.head_dtype == "ternary":
        raise ArgumentError("head_dtype", repr(head_dtype), "None: the head is ternary, and quantizes activations")
    config = model.config.model_copy(update={"head_dtype": head_dtype})
    target = model.model.norm.weight.dtype if dtype is None else dtype
    tables = _empty_tables(config)
    for name, table in tables.items():
        _fill(table, model.get_submodule(name), model.is_deployed, target)
    for name, table in tables.items():
        model.set_submodule(name, table.train(model.training))
    model.config = model.model.config = config


def pack_rows(
    parts: Parts, shape: tuple[int, int], config: BitQuantConfig, device: torch.device | None = None
) -> PackedWeight:
    """A table of `shape`, whose rows have scales of their own, quantized and packed part by part."""
    rows, columns = shape
    packed = torch.empty(rows, packed_columns(columns, config.packed_format), dtype=torch.uint8, device=device)
    scales = []
    for part, values in parts:
        quantized = [PackedWeight.from_float(some, config) for some in torch.split(values, QUANTIZED_ROWS)]
        torch.cat([some.packed for some in quantized], out=packed[part])
        scales += [some.scale for some in quantized]
    return PackedWeight(packed, torch.cat(scales), None, columns)


def _empty_tables(config: BitTransformerConfig) -> dict[str, nn.Module]:
    """The embeddings of a model and its head, if it has one of its own, without memory."""
    with on_meta_device():
        model = BitTransformerModel(config.model_copy(update={"num_layers": 1, "full_precision": ()}))
    head = {} if model.lm_head is None else {"lm_head": model.lm_head}
    return {"model.embed_tokens": model.model.embed_tokens, **head}


def _fill(new: Any, old: Any, deploy: bool, dtype: torch.dtype) -> None:
    """Gives `new`, a table or a head, the weight of `old`."""
    to_pack = deploy and isinstance(new, BitLayer)
    if old.weight is not None and not to_pack:
        new.weight = old.weight
        return
    packed = packed_weight(old) if old.weight is None else None
    parts = _rows_of(old.weight.detach()) if packed is None else dense_parts(packed, old)
    device = old.weight.device if packed is None else packed.packed.device
    if to_pack:
        new.deploy_packed(pack_rows(parts, new.matrix_shape, new.quant_config, device), new.quant_config)
    else:
        new.weight = nn.Parameter(_exactly(parts, new.weight.shape, dtype, device))


def _rows_of(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for begin in range(0, weight.shape[0], PART_ROWS):
        part = slice(begin, begin + PART_ROWS)
        yield part, weight[part]


def _exactly(parts: Parts, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """float32 parts as one tensor in `dtype`. Raises DtypeError where it would round."""
    whole = torch.empty(shape, dtype=dtype, device=device)
    for part, values in parts:
        whole[part] = values
        if not torch.equal(whole[part].float(), values):
            expected = "torch.float32: another would round the values of embeddings and head, which are in few bits"
            raise DtypeError("dtype", dtype, expected)
    return whole
