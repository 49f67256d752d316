"""BitConv2d: nn.Conv2d with quantized weights and activations, as a product of patches and weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import DeviceError, DtypeError, ShapeError
from bitcore.ops import bitlinear
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import fake_quantize_activations, quantizer_for
from bitlayers.base import BitLayer
from bitlayers.patches import Window
from bitlayers.registry import register_layer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@register_layer("BitConv2d")
class BitConv2d(BitLayer, nn.Conv2d):
    """A convolution whose patches are BitLinear's tokens.

    per_token is one activation scale for each output position (and group), per_tensor one for the whole input. Patches
    are made and multiplied in blocks (bitlayers.patches), so that their memory is bounded; where there is more than one
    block, the backward pass of training makes them again.

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

    @property
    def _window(self) -> Window:
        return Window(self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(batch, tuple(self._reversed_padding_repeated_twice), mode=mode)
        if min(self._window.output_size(padded)) < 1:
            expected = f"at least the kernel's extent {list(self._window.extent)}"
            raise ShapeError("x", f"{list(padded.shape[2:])} after padding", expected)
        y = self._forward_training(padded) if self.training else self._forward_packed(padded)
        return y if x.dim() == 4 else y.squeeze(0)

    def _check(self, x: Tensor) -> None:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ShapeError("x", f"of shape {list(x.shape)}", f"[batch, {self.in_channels}, height, width]")
        if not x.is_floating_point():
            raise DtypeError("x", x.dtype, "a floating-point dtype")
        weight = self._buffers["weight_packed"] if self.weight is None else self.weight
        assert weight is not None
        if x.device != weight.device:
            raise DeviceError("x", f"on {x.device}", f"on {weight.device}, where the weight is")
        if self.training:
            bitlinear.check_training_dtype(x, weight)

    def _forward_training(self, padded: Tensor) -> Tensor:
        config, strength = self.quant_config, self.quantization_lambda
        weight = quantizer_for(config).fake_quantize(self._master_matrix(), strength)
        if config.activation_dtype == "int8" and config.activation_granularity == "per_token":
            weights, biases = weight.chunk(self.groups), self._bias_of_groups()

            def product(x: Tensor, group: int) -> Tensor:
                return F.linear(fake_quantize_activations(x, "per_token", strength), weights[group], biases[group])

            return self._by_blocks(padded, product, again=torch.is_grad_enabled())
        if config.activation_dtype == "int8":
            padded = fake_quantize_activations(padded, "per_tensor", strength)
        return F.conv2d(padded, weight.view_as(self.weight), self.bias, self.stride, 0, self.dilation, self.groups)

    def _forward_packed(self, padded: Tensor) -> Tensor:
        kernel = self._kernel_for(padded.dtype)
        weights, biases = self._packed_weight_of_groups(), self._bias_of_groups()
        masters = [None] * self.groups if self.weight is None else self._master_matrix().chunk(self.groups)
        config = self.quant_config
        per_tensor = config.activation_dtype == "int8" and config.activation_granularity == "per_tensor"
        largest = padded.detach().abs().amax() if per_tensor and padded.numel() > 0 else None

        def product(x: Tensor, group: int) -> Tensor:
            tokens = x if largest is None else _with_largest(x.flatten(0, 1), largest)
            y = bitlinear.forward_packed(kernel, tokens, weights[group], biases[group], masters[group])
            return y if largest is None else y[:-1].reshape(*x.shape[:2], -1)

        return self._by_blocks(padded, product)

    def _by_blocks(self, padded: Tensor, product: Callable[[Tensor, int], Tensor], again: bool = False) -> Tensor:
        """`product` of the patches [B, positions, K] of each group, as images.

        Args:
            padded: [B, C, height, width].
            product: (patches, index of the group) -> [B, positions, out_channels / groups].
            again: keep nothing but the image for the backward pass, if there is more than one block.
        """
        window = self._window

        def multiply(block: Tensor) -> Tensor:
            parts = [product(x, group) for group, x in enumerate(window.patches(block, self.groups))]
            y = torch.cat(parts, dim=-1).transpose(1, 2)
            return y.reshape(block.shape[0], self.out_channels, *window.output_size(block))

        blocks = window.blocks(padded)
        if len(blocks) == len(blocks[0]) == 1:
            return multiply(padded)
        if again:
            multiply = partial(checkpoint, multiply, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([torch.cat([multiply(block) for block in rows], dim=2) for rows in blocks])

    def _packed_weight_of_groups(self) -> list[PackedWeight]:
        packed, scale, zero_point, columns = self._packed_weight()
        rows = packed.chunk(self.groups)

        def of_groups(tensor: Tensor) -> Sequence[Tensor]:
            return [tensor] * self.groups if tensor.numel() == 1 else tensor.chunk(self.groups)

        zero_points = [None] * self.groups if zero_point is None else of_groups(zero_point)
        return [PackedWeight(*parts, columns) for parts in zip(rows, of_groups(scale), zero_points, strict=True)]

    def _bias_of_groups(self) -> Sequence[Tensor | None]:
        return [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)


def _with_largest(tokens: Tensor, largest: Tensor) -> Tensor:
    """`tokens` [N, K] and one more that holds `largest`, so that every block of an image gets the image's scale."""
    extra = F.pad(largest.reshape(1, 1), (0, tokens.shape[1] - 1))
    return torch.cat([tokens, extra])
