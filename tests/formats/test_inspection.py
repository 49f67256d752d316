"""What is told of a checkpoint, and what memory reading one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from ternary_samples import packed, random_ternary

from bitcore import BitQuantConfig, CheckpointError
from bitmodels.formats import CheckpointReport, gguf_tensor, gguf_weight, inspect_checkpoint, write_gguf
from bitmodels.formats.bitnet import BITNET
from bitmodels.mlp import BitMLPConfig, BitMLPModel
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

ROOT = Path(__file__).parent.parent.parent
METADATA = {"general.architecture": "llama"}


def test_gguf(tmp_path: Path) -> None:
    ternary = random_ternary(6, 512)
    weight, config = packed(ternary, torch.tensor([0.25, 0.5, 0.25, 0.5, 1.0, 0.75]))
    tensors = gguf_weight("blk.0.attn_q.weight", weight, config, "TQ2_0", scale_tensor=False)
    write_gguf(tmp_path / "m.gguf", [*tensors, gguf_tensor("norm", torch.ones(5))], METADATA)
    report = inspect_checkpoint(tmp_path / "m.gguf")
    assert (report.container, report.architecture) == ("gguf", "llama")
    assert report.bytes_by_encoding == {"TQ2_0": 6 * 2 * 66, "float32": 20}
    assert report.nbytes == 6 * 2 * 66 + 20
    query, norm = report.tensors
    assert (query.shape, query.encoding, query.nbytes) == ((6, 512), "TQ2_0", 6 * 2 * 66)
    assert query.zeros == pytest.approx(float((ternary == 0).float().mean()))
    assert query.scale is not None
    assert query.scale.model_dump() == {"granularity": "per_channel", "count": 6, "smallest": 0.25, "largest": 1.0}
    assert (norm.encoding, norm.scale, norm.zeros) == ("float32", None, None)
    assert CheckpointReport.model_validate_json(report.model_dump_json()) == report


def test_hugging_face(tmp_path: Path) -> None:
    tensors = {"q.weight": BITNET.encode(random_ternary(8, 6)), "q.weight_scale": torch.tensor([2.0])}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "bitnet"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        report = inspect_checkpoint(path)
        assert (report.container, report.architecture) == ("safetensors", "LlamaForCausalLM")
        assert [(row.name, row.shape, row.encoding, row.nbytes) for row in report.tensors] == [
            ("q.weight", (8, 6), "bitnet", 12)
        ]
        assert report.tensors[0].scale is not None
        assert report.tensors[0].scale.smallest == 0.5
    tensors["q.weight"][0, 0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="code 3"):
        inspect_checkpoint(tmp_path)


def test_our_own(tmp_path: Path) -> None:
    BitMLPModel(BitMLPConfig(), BitQuantConfig(storage_format="base3")).deploy().save_pretrained(tmp_path)
    report = inspect_checkpoint(tmp_path)
    assert report.architecture == "mlp"
    packed_rows = [row for row in report.tensors if row.name.endswith("weight_packed")]
    assert {row.encoding for row in packed_rows} == {"base3"}
    assert report.bytes_by_encoding["base3"] == sum(row.nbytes for row in packed_rows)
    assert all(row.scale is not None and row.scale.granularity == "per_tensor" for row in packed_rows)


@pytest.mark.parametrize("head_dtype", ["int8", "int4", "ternary"])
def test_our_own_with_another_head(tmp_path: Path, head_dtype: str) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1}
    BitTransformerModel(BitTransformerConfig(**sizes, head_dtype=head_dtype)).deploy().save_pretrained(tmp_path)
    encodings = {row.name: row.encoding for row in inspect_checkpoint(tmp_path).tensors}
    assert encodings["lm_head.weight_packed"] == ("2bit" if head_dtype == "ternary" else head_dtype)
    assert encodings["model.layers.0.mlp.up_proj.weight_packed"] == "2bit"


READ = """
import sys, torch
from bitcore import BitQuantConfig
from bitmodels.formats import open_checkpoint

def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

checkpoint = open_checkpoint(sys.argv[1])
checkpoint.read("0.weight").pack(BitQuantConfig())
before = peak_bytes()
kept = [weight.pack(BitQuantConfig())[0] for _, weight in checkpoint]
print(peak_bytes() - before, sum(weight.packed.nbytes for weight in kept))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("container", ["gguf", "bitnet"])
def test_memory_for_the_packed_weights_and_one_tensor(tmp_path: Path, container: str) -> None:
    rows, columns, count = 2048, 4096, 40
    weight, config = packed(random_ternary(rows, columns), torch.ones(1))
    if container == "gguf":
        path = tmp_path / "model.gguf"
        tensors = [
            tensor
            for number in range(count)
            for tensor in gguf_weight(f"{number}.weight", weight, config, "TQ2_0", scale_tensor=False)
        ]
        write_gguf(path, tensors, METADATA)
    else:
        path = tmp_path
        data = BITNET.encode(weight.values(config))
        tensors = {f"{number}.weight": data.clone() for number in range(count)}
        scales = {f"{number}.weight_scale": torch.ones(1) for number in range(count)}
        save_file({**tensors, **scales}, path / "model.safetensors")
        (path / "config.json").write_text('{"quantization_config": {"quant_method": "bitnet"}}')
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    more, packed_bytes = map(int, result.stdout.split())
    assert packed_bytes == count * rows * columns // 4
    assert more < 1.2 * packed_bytes  # a tensor as int8 would be 0.1, all of them 4
