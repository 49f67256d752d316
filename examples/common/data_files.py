"""Data files: read whole, fetched with a checksum, and named when something is wrong with them."""

import gzip
import zlib
from pathlib import Path
from urllib.error import URLError

import torch


class DataFileError(Exception):
    """A data file is missing, damaged or of another kind; the sentence says which, and what was expected."""

    def __init__(self, path: Path, was: str, expected: str) -> None:
        super().__init__(f"{path} {was}, expected {expected}")


def read_bytes(path: Path, expected: str) -> bytes:
    """The contents of `path`, unpacked if its name ends in .gz. `expected` says what the file should be."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(path, f"cannot be read ({error.strerror})", expected) from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(path, f"is no whole gzip file ({error})", expected) from error


def download(url: str, sha256: str, path: Path) -> None:
    """Fetches `url` to `path` unless it is there: whole and with this checksum, or not at all."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (URLError, OSError) as error:
        raise DataFileError(path, f"cannot be fetched from {url} ({error})", "a connection to it") from error
    except RuntimeError as error:  # the checksum differs
        raise DataFileError(path, f"is not what {url} should hold ({error})", f"SHA-256 {sha256}") from error
