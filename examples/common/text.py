"""Text as UTF-8 bytes, 256 classes: of any file, of TinyShakespeare, of Python's own standard library."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from common.data import Data
from common.data_files import DataFileError, download, read_bytes

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
BLOCK = 8192  # bytes
HELD_OUT = 10  # one of so many blocks or files is for validation
VALIDATION_WINDOWS = 128
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}  # codec tables are much alike


class Windows(Dataset[tuple[Tensor, ...]]):
    """Windows of `length` bytes of `text` (uint8), half of one apart, each with the bytes that follow its bytes."""

    def __init__(self, text: Tensor, length: int) -> None:
        self.text = text
        self.length = length
        self.stride = max(length // 2, 1)

    def __len__(self) -> int:
        return max((len(self.text) - self.length - 1) // self.stride + 1, 0)

    def __getitem__(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        starts = torch.tensor(index).unsqueeze(-1) * self.stride
        windows = self.text[starts + torch.arange(self.length + 1)].long()
        return windows[:, :-1], windows[:, 1:]


def file_text(path: Path, length: int) -> Data:
    """Windows of `length` bytes of a text file. It is cut in blocks, and every tenth is for validation.

    Raises:
        DataFileError: the file is missing, is no text, or is too short.
    """
    content = _read_text(path)
    enough = HELD_OUT * 4 * (length + 1)
    if len(content) < enough:
        raise DataFileError(path, f"has {len(content)} bytes", f"at least {enough} for windows of {length}")
    size = min(BLOCK, len(content) // HELD_OUT)
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    return text_data(f"{path}, in blocks of {size} bytes", blocks, length)


def download_shakespeare(path: Path) -> None:
    """Fetches TinyShakespeare, 1.1 MB, to `path` unless it is there."""
    download(SHAKESPEARE_URL, SHAKESPEARE_SHA256, path)


def standard_library(length: int) -> Data:
    """Windows of the .py files of Python's own standard library. Every tenth file is for validation."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.rglob("*.py") if not LEFT_OUT & set(path.relative_to(folder).parts))
    texts = dict.fromkeys(_read_text(path) for path in paths if path.stat().st_size > 0)  # files may be copies
    if len(texts) < HELD_OUT:
        raise DataFileError(folder, f"holds {len(texts)} .py files", "the standard library; --text gives other text")
    return text_data(f"the standard library of this Python, {len(texts)} .py files", list(texts), length)


def text_data(description: str, documents: Sequence[bytes], length: int) -> Data:
    """Data of documents, each as a whole for training or, every tenth, for validation."""
    held_out = b"".join(documents[HELD_OUT - 1 :: HELD_OUT])
    kept = b"".join(document for index, document in enumerate(documents, 1) if index % HELD_OUT != 0)
    windows = Windows(_tensor(held_out), length)
    step = max(len(windows) // VALIDATION_WINDOWS, 2)  # windows two strides apart do not overlap
    validation = TensorDataset(*windows[range(0, len(windows), step)])
    description += f": {len(kept):,} bytes to train, every tenth to test ({len(validation)} windows of {length} bytes)"
    return Data(description, Windows(_tensor(kept), length), validation)


def _read_text(path: Path) -> bytes:
    content = read_bytes(path, "a text file in UTF-8")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataFileError(path, f"is of another kind ({error})", "a text file in UTF-8") from error
    if b"\0" in content:
        raise DataFileError(path, f"is of another kind (a zero byte at {content.index(0)})", "a text file in UTF-8")
    return content


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
