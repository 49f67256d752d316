"""Patches of images, for convolution as a matrix product (im2col), a block of bounded size at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_BLOCK_BYTES = 2**25  # 16 to 32 MiB are the fastest on two cores: larger blocks leave the cache


@dataclass(frozen=True)
class Window:
    """What slides over a padded image [B, C, height, width]. All fields are (vertical, horizontal)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the image that one patch spans."""
        tall, wide = (step * (size - 1) + 1 for step, size in zip(self.dilation, self.kernel_size, strict=True))
        return tall, wide

    def output_size(self, image: Tensor) -> tuple[int, int]:
        """Patches along the height and the width of `image`; below 1 where it is smaller than the window."""
        return (
            (image.shape[2] - self.extent[0]) // self.stride[0] + 1,
            (image.shape[3] - self.extent[1]) // self.stride[1] + 1,
        )

    def blocks(self, image: Tensor) -> list[list[Tensor]]:
        """Views of `image` whose patches take at most MAX_BLOCK_BYTES, or are those of one row of one image.

        Results go together by concatenating the inner lists along the height, then the outer one along the batch.
        """
        height, width = self.output_size(image)
        row_bytes = width * image.shape[1] * self.kernel_size[0] * self.kernel_size[1] * image.element_size()
        rows = max(1, min(height, MAX_BLOCK_BYTES // row_bytes))
        images = max(1, MAX_BLOCK_BYTES // (row_bytes * height))
        stride, extent = self.stride[0], self.extent[0]
        return [
            [
                part[:, :, top * stride : (min(top + rows, height) - 1) * stride + extent]
                for top in range(0, height, rows)
            ]
            for part in torch.split(image, images)
        ]

    def patches(self, block: Tensor, groups: int) -> tuple[Tensor, ...]:
        """For each group of channels [B, positions, C / groups * kernel height * kernel width]."""
        columns: Tensor = F.unfold(block, self.kernel_size, self.dilation, 0, self.stride)
        return columns.transpose(1, 2).chunk(groups, dim=-1)
