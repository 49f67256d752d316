"""Image sets, scaled by their training part: scikit-learn's digits and photographs, MNIST, CIFAR-10."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images
from torch.utils.data import TensorDataset

from common.data import Data
from common.data_files import DataFileError, download, read_bytes

Bytes = NDArray[np.uint8]

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"  # the mirror of torchvision
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue planes (cs.toronto.edu/~kriz/cifar.html)
PHOTO_BLOCK, PATCH, PATCH_STRIDE = 64, 32, 8  # pixels
THIRDS = 3
HELD_OUT = 5  # one of so many blocks is for validation


def image_data(description: str, training: tuple[Bytes, Bytes], validation: tuple[Bytes, Bytes]) -> Data:
    """Data of (images, labels); images become float32 of mean 0 and deviation 1 by the training images."""
    images = torch.from_numpy(training[0]).float()
    mean, deviation = images.mean(), images.std().clamp(min=1e-5)
    parts = [
        TensorDataset((torch.from_numpy(part).float() - mean) / deviation, torch.from_numpy(labels).long())
        for part, labels in (training, validation)
    ]
    return Data(description, *parts)


def flat(data: Data) -> Data:
    """The same images as vectors [channels * height * width], for networks without convolutions."""
    assert isinstance(data.training, TensorDataset)
    parts = [TensorDataset(part.tensors[0].flatten(1), part.tensors[1]) for part in (data.training, data.validation)]
    return Data(data.description, *parts)


def digits() -> Data:
    """scikit-learn's handwritten digits, [1, 8, 8]. The last quarter, a block of other writers, is for validation."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    split = len(images) * 3 // 4
    training, validation = (images[:split], labels[:split]), (images[split:], labels[split:])
    description = f"scikit-learn's digits, 8 x 8 pixels: the first {split} to train, {len(images) - split} to test"
    return image_data(description, training, validation)


def mnist(folder: Path) -> Data:
    """MNIST, [1, 28, 28], from the four idx files in `folder`, packed by gzip or not.

    Raises:
        DataFileError: a file is missing, damaged or of another kind.
    """
    parts = []
    for prefix in ("train", "t10k"):
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", (28, 28))
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", ())
        if len(images) != len(labels):
            counts = f"holds {len(images)} {prefix} images and {len(labels)} labels"
            raise DataFileError(folder, counts, "as many of both")
        parts.append((images[:, None], labels))
    description = f"MNIST from {folder}: {len(parts[0][1])} images to train, {len(parts[1][1])} to test"
    return image_data(description, *parts)


def download_mnist(folder: Path) -> None:
    """Fetches what is missing of MNIST's four files into `folder`."""
    for name, sha256 in MNIST_SHA256.items():
        download(f"{MNIST_URL}/{name}", sha256, folder / name)


def _read_idx(folder: Path, name: str, item: tuple[int, ...]) -> Bytes:
    """Images or, where an item is a single byte, labels of an idx file (yann.lecun.com/exdb/mnist): [N, *item]."""
    expected = f"an idx file of unsigned bytes [N{''.join(f', {size}' for size in item)}], packed by gzip or not"
    candidates = [place / file for place in (folder, folder / "MNIST" / "raw") for file in (name, f"{name}.gz")]
    path = next((candidate for candidate in candidates if candidate.exists()), folder / name)
    content = read_bytes(path, expected)
    dimensions = 1 + len(item)
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        raise DataFileError(path, f"is of another kind (it begins with {content[:4].hex(' ') or 'nothing'})", expected)
    count, *sizes = (int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if tuple(sizes) != item or count == 0:
        raise DataFileError(path, f"holds {[count, *sizes]}", expected)
    if len(content) - header != count * int(np.prod(item, dtype=int)):
        raise DataFileError(path, f"is damaged ({len(content) - header} bytes after its header)", f"{count} items")
    values = np.frombuffer(content, np.uint8, offset=header).reshape(count, *item).copy()
    if not item:
        _check_labels(path, values)
    return values


def cifar10(folder: Path) -> Data:
    """CIFAR-10, [3, 32, 32], from the six files of its binary version in `folder`.

    Raises:
        DataFileError: a file is missing, damaged or of another kind.
    """
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    batches = [_read_cifar(folder / name) for name in CIFAR_FILES]
    images, labels = (np.concatenate(parts) for parts in zip(*batches[:-1], strict=True))
    description = f"CIFAR-10 from {folder}: {len(labels)} images to train, {len(batches[-1][1])} to test"
    return image_data(description, (images, labels), batches[-1])


def _read_cifar(path: Path) -> tuple[Bytes, Bytes]:
    expected = f"records of {CIFAR_RECORD} bytes, as in CIFAR-10's binary version (pickles are not read)"
    content = read_bytes(path, expected)
    if len(content) == 0 or len(content) % CIFAR_RECORD != 0:
        raise DataFileError(path, f"has {len(content)} bytes", expected)
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    labels = records[:, 0].copy()
    _check_labels(path, labels)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), labels


def _check_labels(path: Path, labels: Bytes) -> None:
    if labels.max() > 9:
        raise DataFileError(path, f"is damaged or of another kind (label {labels.max()})", "labels from 0 to 9")


def photograph_patches() -> Data:
    """Patches [3, 32, 32] of scikit-learn's two photographs; the label says which third of which one: 6 classes.

    The photographs are cut in blocks of 64 x 64 pixels, patches overlap within a block alone, and every fifth block is
    for validation: no pixel is in both parts.
    """
    blocks = [
        (block, THIRDS * number + third)
        for number, photograph in enumerate(load_sample_images().images)
        for block, third in _blocks(photograph)
    ]
    training = _patches([block for index, block in enumerate(blocks) if index % HELD_OUT != 2])
    validation = _patches(blocks[2::HELD_OUT])
    description = (
        f"scikit-learn's two photographs, cut in patches of {PATCH} x {PATCH} pixels: {len(training[1])} to train, "
        f"{len(validation[1])} from other blocks to test; which third of which photograph is it?"
    )
    return image_data(description, training, validation)


def _blocks(photograph: Bytes) -> Iterator[tuple[Bytes, int]]:
    """Blocks [64, 64, 3] of a photograph, and the third of it, from above, that each is in."""
    rows, columns = (size // PHOTO_BLOCK for size in photograph.shape[:2])
    for row in range(rows):
        for column in range(columns):
            top, left = row * PHOTO_BLOCK, column * PHOTO_BLOCK
            yield photograph[top : top + PHOTO_BLOCK, left : left + PHOTO_BLOCK], THIRDS * row // rows


def _patches(blocks: list[tuple[Bytes, int]]) -> tuple[Bytes, Bytes]:
    """All patches [N, 3, 32, 32] of the blocks, and their labels."""
    places = range(0, PHOTO_BLOCK - PATCH + 1, PATCH_STRIDE)
    patches = [
        (block[top : top + PATCH, left : left + PATCH].transpose(2, 0, 1), label)
        for block, label in blocks
        for top in places
        for left in places
    ]
    images, labels = zip(*patches, strict=True)
    return np.stack(images), np.array(labels, np.uint8)
