"""Where commands write: nothing is lost, nothing is left half-written."""

from pathlib import Path

import pytest

from bitcli.destination import check_new_file, new_directory
from bitcore.exceptions import ArgumentError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def model(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("old")
    (path / "old.safetensors").write_text("old")
    return path


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "new", overwrite=False) as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "new").exists()
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_failed(tmp_path: Path, error: type[BaseException]) -> None:
    old = model(tmp_path / "old")
    for path, overwrite in ((tmp_path / "new", False), (old, True)):
        with pytest.raises(error), new_directory(path, overwrite) as directory:
            (directory / "file").write_text("x")
            raise error
    assert names(tmp_path) == ["old"]
    assert names(old) == ["config.json", "old.safetensors"]


def test_overwriting_replaces_a_model_whole(tmp_path: Path) -> None:
    old = model(tmp_path / "old")
    link = tmp_path / "link"
    link.symlink_to(old)
    with new_directory(link, overwrite=True) as directory:
        (directory / "config.json").write_text("new")
    assert names(tmp_path) == ["link", "old"]
    assert names(old) == ["config.json"]
    assert (link / "config.json").read_text() == "new"


def test_what_is_refused_stays(tmp_path: Path) -> None:
    old = model(tmp_path / "old")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    nested = model(tmp_path / "nested")
    (nested / "more").mkdir()
    file = tmp_path / "file"
    file.write_text("x")
    for path, overwrite, message in (
        (old, False, "which exists, expected a new path, or --overwrite"),
        (file, False, "which exists"),
        (file, True, "a file, expected a folder"),
        (other, True, "a folder of something else"),
        (nested, True, "a folder of something else"),
        (tmp_path / "no" / "such", False, "make .*/no first"),
    ):
        with pytest.raises(ArgumentError, match=message), new_directory(path, overwrite):
            pytest.fail("entered")
    for path, overwrite, message in (
        (file, False, "which exists"),
        (old, True, "a folder, expected a file"),
        (tmp_path / "no" / "such", True, "make .*/no first"),
    ):
        with pytest.raises(ArgumentError, match=message):
            check_new_file(path, overwrite)
    check_new_file(file, overwrite=True)
    check_new_file(tmp_path / "new", overwrite=False)
    assert names(tmp_path) == ["file", "nested", "old", "other"]
