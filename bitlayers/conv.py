"""BitConv2d: nn.Conv2d with quantized weights and activations, as a product of patches and weights (im2col)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import DtypeError, ShapeError
from bitcore.ops import bitlinear
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import quantizer_for
from bitlayers.base import BitLayer
from bitlayers.registry import register_layer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@register_layer("BitConv2d")
class BitConv2d(BitLayer, nn.Conv2d):
    """A convolution whose patches are BitLinear's tokens: per_token is one activation scale for each output position.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            nn.Conv2d.
        quant_config: what is computed; BitNet b1.58 if None. per_tensor is one weight scale for all groups.

    x is [B, C, H, W] or [C, H, W]. Training, eval and deployed layers compute the same function.

    Raises:
        ShapeError, DtypeError, DeviceError: x does not fit.
    """

    dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._init_quantization(quant_config)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, quant_config: BitQuantConfig | None = None, *, copy: bool = True) -> Self:
        """A BitConv2d with the weights of `dense`: copied, or with copy=False the same Parameters."""
        with torch.device("meta"):
            layer = cls(
                dense.in_channels,
                dense.out_channels,
                dense.kernel_size,  # type: ignore[arg-type]
                dense.stride,  # type: ignore[arg-type]
                dense.padding,  # type: ignore[arg-type]
                dense.dilation,  # type: ignore[arg-type]
                dense.groups,
                dense.bias is not None,
                dense.padding_mode,
                quant_config,
            )
        layer.weight = nn.Parameter(dense.weight.detach().clone(), dense.weight.requires_grad) if copy else dense.weight
        if dense.bias is not None:
            layer.bias = nn.Parameter(dense.bias.detach().clone(), dense.bias.requires_grad) if copy else dense.bias
        return layer.train(dense.training)

    @property
    def _columns(self) -> int:
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ShapeError("x", f"of shape {list(x.shape)}", f"[batch, {self.in_channels}, height, width]")
        if not x.is_floating_point():
            raise DtypeError("x", x.dtype, "a floating-point dtype")
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        patches, height, width = self._patches(batch)
        multiply = self._multiply_training if self.training else self._multiply_packed
        y = multiply(patches.chunk(self.groups, dim=-1))
        y = y.transpose(1, 2).reshape(batch.shape[0], self.out_channels, height, width)
        return y if x.dim() == 4 else y.squeeze(0)

    def _patches(self, x: Tensor) -> tuple[Tensor, int, int]:
        """[B, positions, C * kernel height * kernel width], and the output's height and width."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        left, right, top, bottom = self._reversed_padding_repeated_twice
        x = F.pad(x, (left, right, top, bottom), mode=mode)
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                x.shape[2:], self.dilation, self.kernel_size, self.stride, strict=True
            )
        ]
        if min(sizes) < 1:
            raise ShapeError(
                "x", f"{list(x.shape[2:])} after padding", f"at least the kernel's extent {self.kernel_size}"
            )
        columns: Tensor = F.unfold(x, self.kernel_size, self.dilation, 0, self.stride)
        return columns.transpose(1, 2), sizes[0], sizes[1]

    def _multiply_training(self, patches: tuple[Tensor, ...]) -> Tensor:
        master = self._master_matrix()
        bitlinear.check_training_input(patches[0], master)
        weights = quantizer_for(self.quant_config).fake_quantize(master).chunk(self.groups)
        parts = [
            bitlinear.multiply_quantized(x, w, None, self.quant_config) for x, w in zip(patches, weights, strict=True)
        ]
        y = torch.cat(parts, dim=-1)
        return y if self.bias is None else y + self.bias

    def _multiply_packed(self, patches: tuple[Tensor, ...]) -> Tensor:
        packed, scale, zero_point, columns = self._packed_weight()
        kernel = self._kernel_for(patches[0].dtype)
        outputs = []
        for group, x in enumerate(patches):
            rows = slice(group * self.out_channels // self.groups, (group + 1) * self.out_channels // self.groups)
            one_scale = scale.numel() == 1
            weight = PackedWeight(
                packed[rows],
                scale if one_scale else scale[rows],
                zero_point if one_scale or zero_point is None else zero_point[rows],
                columns,
            )
            bias = None if self.bias is None else self.bias[rows]
            master = None if self.weight is None else self._master_matrix()[rows]
            outputs.append(bitlinear.forward_packed(kernel, x, weight, bias, master))
        return torch.cat(outputs, dim=-1)
