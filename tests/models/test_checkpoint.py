"""Checkpoints on disk: round trips, damage, hostile files."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ModelNotFoundError
from bitmodels import AutoBitModel
from bitmodels.meta_device import on_meta_device
from bitmodels.mlp import BitMLPConfig, BitMLPModel

CONFIG = BitMLPConfig(n_layers=3, in_channels=20, hidden_dim=16, out_channels=3, full_precision_last=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    BitMLPModel(CONFIG).deploy().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(
    "quant_config", [BitQuantConfig(), BitQuantConfig(storage_format="base3"), BitQuantConfig.int4(8)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip(tmp_path: Path, deployed: bool, quant_config: BitQuantConfig, dtype: torch.dtype) -> None:
    model = BitMLPModel(CONFIG, quant_config).to(dtype).eval()
    x = torch.randn(5, 20, dtype=dtype)
    y = model(x)
    if deployed:
        model.deploy()
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = AutoBitModel.from_pretrained(tmp_path / "new" / "folder")
    assert isinstance(loaded, BitMLPModel)
    assert not loaded.training
    assert (loaded.is_deployed, loaded.config, loaded.quant_config) == (deployed, CONFIG, quant_config)
    assert torch.equal(loaded(x), y)
    if not deployed:
        loaded.train()(x).sum().backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_file_of_weights_is_no_model(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors is a file of BitLab's own, expected its folder"):
        AutoBitModel.from_pretrained(saved / "model.safetensors")


def test_layout_on_disk(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["deployed"]) == ("mlp", True)
    assert BitQuantConfig(**config["quant_config"]) == BitQuantConfig()
    tensors = load_file(saved / "model.safetensors")
    assert tensors["layers.0.weight_packed"].dtype == torch.uint8
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


@given(cut=st.integers(0, 3000))
def test_truncated_weights_are_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("cut")
    BitMLPModel(CONFIG).deploy().save_pretrained(directory)
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        AutoBitModel.from_pretrained(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "contents", [None, b"", b"\x00" * 64, b"\xff" * 64, b"{", b"[]", (2**63).to_bytes(8, "little") + b"{}"]
)
def test_missing_and_garbage_files_are_refused(saved: Path, file: str, contents: bytes | None) -> None:
    if contents is None:
        (saved / file).unlink()
    else:
        (saved / file).write_bytes(contents)
    with pytest.raises(CheckpointError, match=file):
        AutoBitModel.from_pretrained(saved)


def edit(saved: Path, **changes: object) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))


def test_damaged_packed_bytes_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["layers.0.weight_packed"][0, 0] = 255
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.0: packed is 255 at \[0, 0\], a code of 3"):
        AutoBitModel.from_pretrained(saved)


def test_missing_tensors_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["layers.0.bias"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.0.bias"):
        AutoBitModel.from_pretrained(saved)


def test_configs_that_do_not_fit_are_refused(saved: Path) -> None:
    edit(saved, model_type="no such model")
    with pytest.raises(ModelNotFoundError, match=r"no model is named 'no such model'; there are .*mlp"):
        AutoBitModel.from_pretrained(saved)
    edit(saved, model_type="mlp", config={"hidden_dims": 3})
    with pytest.raises(CheckpointError, match="hidden_dims"):
        AutoBitModel.from_pretrained(saved)
    edit(saved, config=CONFIG.model_dump(), deployed=False)
    with pytest.raises(CheckpointError, match="weight_packed is a deployed layer's state"):
        AutoBitModel.from_pretrained(saved)


def test_a_config_that_asks_for_terabytes_allocates_nothing(saved: Path) -> None:
    edit(saved, config={**CONFIG.model_dump(), "hidden_dim": 2**22, "in_channels": 2**22})
    with pytest.raises(CheckpointError, match=r"layers.0.weight_packed is of shape"):
        AutoBitModel.from_pretrained(saved)


def test_a_failed_save_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        BitMLPModel(CONFIG).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_directory_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="no/such/place: no such file or directory"):
        AutoBitModel.from_pretrained("no/such/place")
    with pytest.raises(CheckpointError, match=r"config.json is not a BitLab config: .*No such file"):
        BitMLPModel.from_pretrained("no/such/place")


def test_scales_of_a_number_that_no_granularity_has_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["layers.0.weight_scale"] = torch.ones(7)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.0.weight_scale is of shape \[7\], expected \[1\]"):
        AutoBitModel.from_pretrained(saved)


def test_building_on_the_meta_device_draws_nothing() -> None:
    state = torch.get_rng_state()
    with on_meta_device():
        model = BitMLPModel(BitMLPConfig())
        torch.nn.init.normal_(tensor=torch.empty(3), std=2.0)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.nn.init.normal_(torch.zeros(3)).any()
