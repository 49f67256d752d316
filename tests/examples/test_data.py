"""What the examples train on: no validation data in training, and files that are wrong are named."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from common import data_files
from common.data_files import DataFileError, download
from common.images import cifar10, digits, flat, mnist, photograph_patches
from common.text import file_text, standard_library, text_data
from common.training import Recipe, batches

CIFAR_NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def items(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_in_two_blocks() -> None:
    data = digits()
    training, labels = data.training.tensors
    validation, validation_labels = data.validation.tensors
    assert (len(training), len(validation)) == (1347, 450)
    assert training.shape[1:] == (1, 8, 8)
    assert not items(training) & items(validation)
    assert labels.unique().tolist() == validation_labels.unique().tolist() == list(range(10))
    torch.testing.assert_close(training.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert torch.equal(flat(data).training.tensors[0], training.reshape(-1, 64))


def test_photographs_share_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.arange(2 * 427 * 640 * 3).reshape(2, 427, 640, 3)  # each pixel is a number that says where it is from

    class Photographs:
        images: ClassVar = list(numbers)

    monkeypatch.setattr("common.images.load_sample_images", Photographs)
    monkeypatch.setattr("common.images.image_data", lambda description, *parts: parts)
    (training, labels), (validation, validation_labels) = photograph_patches()
    seen = np.zeros(numbers.size, bool)
    seen[training] = True
    assert not seen[validation].any()
    assert len(training) > 3 * len(validation) > 0
    assert set(labels) == set(validation_labels) == set(range(6))
    for images, classes in ((training, labels), (validation, validation_labels)):
        photograph, row = np.divmod(images[:, 0, 0, 0] // (640 * 3), 427)
        assert np.array_equal(classes, 3 * photograph + row // (2 * 64))
        assert images.shape[1:] == (3, 32, 32)


def test_the_standard_library_is_split_by_file() -> None:
    data = standard_library(length=128)
    training = bytes(data.training.text.tolist())
    inputs, targets = data.validation.tensors
    assert 100 <= len(inputs) <= 200
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    found = [bytes(window.tolist()) for window in inputs if bytes(window.tolist()) in training]
    assert len(found) < len(inputs) / 20, found  # a phrase here and there; in one file with them all would be found


def test_a_file_is_split_by_block(tmp_path: Path) -> None:
    text = "".join(f"{number:07} " for number in range(20_000))  # each number is in one place
    (tmp_path / "numbers.txt").write_text(text)
    data = file_text(tmp_path / "numbers.txt", length=48)
    training = bytes(data.training.text.tolist()).decode()
    kept = set(training.split())
    held_out = {number for window in data.validation.tensors[0] for number in bytes(window.tolist()).decode().split()}
    whole = {number for number in held_out if len(number) == 7}
    assert len(whole) > 300
    assert not kept & whole
    assert 0.85 * len(text) < len(training) < 0.95 * len(text)


def test_windows_are_the_text_and_what_follows() -> None:
    documents = [bytes([65 + index]) * 40 for index in range(20)]
    data = text_data("", documents, length=16)
    assert len(data.training) == (18 * 40 - 17) // 8 + 1
    inputs, targets = data.training[[0, 4, len(data.training) - 1]]
    assert inputs.shape == targets.shape == (3, 16)
    assert bytes(inputs[1].tolist()) == b"A" * 8 + b"B" * 8
    assert bytes(targets[1].tolist()) == b"A" * 7 + b"B" * 9
    assert set(data.validation.tensors[0].flatten().tolist()) == {65 + 9, 65 + 19}


def test_batches_show_every_item_once_before_one_again() -> None:
    data = text_data("", [bytes(range(256))] * 20, length=2)
    size = len(data.training)
    seen = torch.cat([x for x, _ in batches(data.training, Recipe(2 * size // 16, 16, 0.1), seed=1)])
    again = torch.cat([x for x, _ in batches(data.training, Recipe(2 * size // 16, 16, 0.1), seed=1)])
    other = torch.cat([x for x, _ in batches(data.training, Recipe(2 * size // 16, 16, 0.1), seed=2)])
    assert torch.equal(seen, again)
    assert not torch.equal(seen, other)
    everything, _ = data.training[range(size)]
    assert sorted(seen[:size].tolist()) == sorted(everything.tolist())


# MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "") -> dict[str, np.ndarray]:
    random = np.random.default_rng(int(torch.randint(2**31, ())))
    written = {}
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 30), ("t10k", 20)):
        written[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28))
        written[f"{prefix}-labels-idx1-ubyte"] = random.integers(0, 10, count)
    for name, values in written.items():
        write_idx(folder / f"{name}{suffix}", values)
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
def test_mnist_is_read(tmp_path: Path, suffix: str, place: str) -> None:
    written = write_mnist(tmp_path / place, suffix)
    data = mnist(tmp_path)
    for part, prefix in ((data.training, "train"), (data.validation, "t10k")):
        images, labels = part.tensors
        expected = torch.from_numpy(written[f"{prefix}-images-idx3-ubyte"]).float().unsqueeze(1)
        deviation = torch.from_numpy(written["train-images-idx3-ubyte"]).float().std()
        torch.testing.assert_close(images - images.mean(), (expected - expected.mean()) / deviation)
        assert labels.tolist() == written[f"{prefix}-labels-idx1-ubyte"].tolist()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def swap(path: Path) -> None:
    other = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    path.write_bytes(other.read_bytes())


DAMAGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("", "t10k-images-idx3-ubyte", Path.unlink, r"cannot be read \(No such file or directory\), expected an idx file"),
    ("", "train-images-idx3-ubyte", cut, r"is damaged \(23515 bytes after its header\), expected 30 items"),
    ("", "train-labels-idx1-ubyte", lambda path: path.write_bytes(b""), "begins with nothing"),
    ("", "train-labels-idx1-ubyte", lambda path: path.write_bytes(b"\0\0\x08\x01\0\0"), "is of another kind"),
    ("", "train-images-idx3-ubyte", swap, r"is of another kind \(it begins with 00 00 08 01\)"),
    ("", "train-images-idx3-ubyte", lambda path: write_idx(path, np.zeros((30, 27, 28))), r"holds \[30, 27, 28\]"),
    ("", "t10k-images-idx3-ubyte", lambda path: write_idx(path, np.zeros((0, 28, 28))), r"holds \[0, 28, 28\]"),
    (
        "",
        "t10k-labels-idx1-ubyte",
        lambda path: write_idx(path, np.full(20, 10)),
        r"label 10\), expected labels",
    ),
    ("", "t10k-labels-idx1-ubyte", lambda path: write_idx(path, np.zeros(19)), "20 t10k images and 19 labels"),
    (".gz", "t10k-images-idx3-ubyte.gz", cut, "is no whole gzip file"),
    (".gz", "t10k-images-idx3-ubyte.gz", lambda path: path.write_bytes(b"\x1f\x8bno"), "is no whole gzip file"),
    (".gz", "t10k-images-idx3-ubyte.gz", lambda path: path.write_bytes(b"plain"), "is no whole gzip file"),
]


@pytest.mark.parametrize(("suffix", "name", "damage", "message"), DAMAGES)
def test_wrong_mnist_files_are_named(
    tmp_path: Path, suffix: str, name: str, damage: Callable[[Path], object], message: str
) -> None:
    write_mnist(tmp_path, suffix)
    damage(tmp_path / name)
    with pytest.raises(DataFileError, match=message) as raised:
        mnist(tmp_path)
    assert str(tmp_path) in str(raised.value)


# CIFAR-10


def write_cifar(folder: Path) -> dict[str, np.ndarray]:
    random = np.random.default_rng(int(torch.randint(2**31, ())))
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in CIFAR_NAMES:
        records = random.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = random.integers(0, 10, 4)
        records.tofile(folder / name)
        written[name] = records
    return written


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_cifar10_is_read(tmp_path: Path, place: str) -> None:
    written = write_cifar(tmp_path / place)
    data = cifar10(tmp_path)
    assert (len(data.training), len(data.validation)) == (20, 4)
    images, labels = data.training.tensors
    assert labels[4:8].tolist() == written["data_batch_2.bin"][:, 0].tolist()
    everything = torch.from_numpy(np.concatenate([written[name] for name in CIFAR_NAMES[:5]])[:, 1:]).float()
    expected = (everything - everything.mean()) / everything.std()
    torch.testing.assert_close(images, expected.reshape(20, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("data_batch_3.bin", Path.unlink, "cannot be read"),
        ("test_batch.bin", cut, r"has 12287 bytes, expected records of 3073 bytes"),
        ("test_batch.bin", lambda path: path.write_bytes(b""), "has 0 bytes"),
        ("data_batch_1.bin", lambda path: path.write_bytes(b"\x0b" * 3073), "label 11"),
    ],
)
def test_wrong_cifar10_files_are_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    write_cifar(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DataFileError, match=message) as raised:
        cifar10(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


# Text and downloads


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "has 0 bytes, expected at least"),
        (b"short", "has 5 bytes, expected at least"),
        (b"caf\xe9 " * 1000, "is of another kind.*expected a text file in UTF-8"),
        (b"text, then \0" * 1000, "a zero byte at 11"),
    ],
)
def test_wrong_text_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as raised:
        file_text(path, length=32)
    assert str(path) in str(raised.value)


def test_a_python_without_its_standard_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataFileError, match=r"holds 0 \.py files"):
        standard_library(32)


def test_downloads_are_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"abc")
    url, path = (tmp_path / "source").as_uri(), tmp_path / "new" / "file"
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataFileError, match=f"expected SHA-256 {'0' * 64}"):
        download(url, "0" * 64, path)
    with pytest.raises(DataFileError, match="cannot be fetched"):
        download(url + "nothing", sha256, path)
    assert not path.exists()
    download(url, sha256, path)
    assert path.read_bytes() == b"abc"
    data_files.download("http://nowhere.invalid", sha256, path)  # is there
