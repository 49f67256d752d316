"""BitEmbedding: nn.Embedding with quantized rows, gathered packed and unpacked afterwards."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError
from bitcore.ops import bitlinear
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize, quantizer_for
from bitlayers.base import BitLayer
from bitlayers.registry import register_layer


@register_layer("BitEmbedding")
class BitEmbedding(BitLayer, nn.Embedding):
    """A table [num_embeddings, embedding_dim] of quantized rows. There are no activations to quantize.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as nn.Embedding.
        quant_config: what is computed; BitNet b1.58 weights if None. per_channel is one scale a row, which ternary,
            int4 and int8 rows can have.

    indices [...] integer -> [..., embedding_dim] in the dtype of the table, also after it has been deployed.

    Raises:
        DtypeError: the indices are not integers.
        IndexError: an index is not in 0..num_embeddings - 1 (on a GPU: PyTorch's device-side assertion).
    """

    dense_type = nn.Embedding
    bias = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self._init_quantization(quant_config)
        self._dtype = self.weight.dtype

    @classmethod
    def from_dense(cls, dense: nn.Embedding, quant_config: BitQuantConfig | None = None, *, copy: bool = True) -> Self:
        """A BitEmbedding with the table of `dense`: copied, or with copy=False the same Parameter.

        Raises:
            ArgumentError: `dense` has an option that has no meaning for quantized rows.
        """
        for option, unset in (("max_norm", None), ("scale_grad_by_freq", False), ("sparse", False)):
            if getattr(dense, option) != unset:
                raise ArgumentError(f"nn.Embedding.{option}", getattr(dense, option), str(unset))
        with torch.device("meta"):
            layer = cls(dense.num_embeddings, dense.embedding_dim, dense.padding_idx, quant_config)
        layer.weight = nn.Parameter(dense.weight.detach().clone(), dense.weight.requires_grad) if copy else dense.weight
        layer._dtype = dense.weight.dtype
        return layer.train(dense.training)

    @property
    def _columns(self) -> int:
        return self.embedding_dim

    def forward(self, indices: Tensor) -> Tensor:
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise DtypeError("indices", indices.dtype, "an integer dtype")
        if self.weight is not None and (self.training or (torch.is_grad_enabled() and self.weight.requires_grad)):
            return self._fake_quantized_rows(indices)
        packed, scale, zero_point, columns = self._packed_weight()
        flat = indices.flatten()
        one_scale = scale.numel() == 1
        rows = PackedWeight(
            F.embedding(flat, packed),
            scale if one_scale else scale[flat],
            zero_point if one_scale or zero_point is None else zero_point[flat],
            columns,
        )
        values = dequantize(rows.values(self.quant_config), rows.scale, rows.zero_point, self.quant_config)
        dtype = self._dtype if self.weight is None else self.weight.dtype
        return values.to(dtype).reshape(*indices.shape, self.embedding_dim)

    def logits(self, x: Tensor) -> Tensor:
        """Maps x [..., embedding_dim] to x @ table.T [..., num_embeddings]: the tied head of a language model.

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        if self.training:
            return bitlinear.forward_training(x, self.weight, None, self.quant_config, self.quantization_lambda)
        return bitlinear.forward_packed(self._kernel_for(x.dtype), x, self._packed_weight(), None, self.weight)

    def _fake_quantized_rows(self, indices: Tensor) -> Tensor:
        quantizer = quantizer_for(self.quant_config)
        strength = self.quantization_lambda if self.training else 1.0
        if self.quant_config.weight_granularity == "per_tensor":  # the scale needs the whole table
            return F.embedding(indices, quantizer.fake_quantize(self.weight, strength), self.padding_idx)
        rows = F.embedding(indices.flatten(), self.weight, self.padding_idx)
        return quantizer.fake_quantize(rows, strength).reshape(*indices.shape, self.embedding_dim)
