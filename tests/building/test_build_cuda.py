"""Which architectures the CUDA kernels are built for, and what is said where they cannot be built."""

from pathlib import Path

import pytest

import build_cuda
from build_common import BuildError


def test_architectures_are_pytorchs_list_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert build_cuda.architectures() == list(build_cuda.ARCHITECTURES)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0; 9.0 8.6+PTX")
    assert build_cuda.architectures() == ["8.0", "9.0a", "8.6+PTX"]  # Hopper's own instructions need the a
    assert build_cuda.architecture_flags(["9.0a", "8.6+PTX"]) == [
        *("-gencode", "arch=compute_90a,code=sm_90a"),
        *("-gencode", "arch=compute_86,code=sm_86"),
        *("-gencode", "arch=compute_86,code=compute_86"),
    ]


@pytest.mark.parametrize("wrong", ["ampere", "90", "8.0+", "9.0a;x"])
def test_a_wrong_architecture_is_named(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wrong)
    with pytest.raises(BuildError, match=r"TORCH_CUDA_ARCH_LIST names '.*', expected numbers such as 9.0a or 8.0\+PTX"):
        build_cuda.architectures()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(BuildError, match=r"nvcc was not found \(NVCC is no-such-nvcc\); install the CUDA toolkit"):
        build_cuda.find_nvcc()


def test_the_report_says_why_nothing_was_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_cuda, "LIBRARY", tmp_path / "bitlab_cuda.so")
    monkeypatch.setenv("BUILD_CUDA_EXTENSIONS", "0")
    assert build_cuda.build("c++", print).failure == "BUILD_CUDA_EXTENSIONS=0 turned the build off"
    monkeypatch.delenv("BUILD_CUDA_EXTENSIONS")
    monkeypatch.setattr(build_cuda, "_torch_cuda", lambda: None)
    assert build_cuda.build("c++", print).failure == "this torch is built without CUDA"
