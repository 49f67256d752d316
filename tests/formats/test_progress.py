"""Programs can show how far reading and writing tensors is; nobody else sees anything."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bitmodels import AutoBitModel, export_gguf, export_hf
from bitmodels.formats import inspect_checkpoint
from bitmodels.progress import show_progress, tracked
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

PLAIN, TERNARY = 5, 7  # tensors of the model below


def test_every_tensor_that_is_read_or_written_counts(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def track(items: Collection[Any], what: str) -> Iterator[Any]:
        seen.append([])
        for item in items:
            seen[-1].append(what)
            yield item

    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    model = BitTransformerModel(BitTransformerConfig(**sizes)).deploy()
    with show_progress(track):
        model.save_pretrained(tmp_path / "ours")
        export_hf(model, tmp_path / "hf")
        export_gguf(model, tmp_path / "model.gguf", "Q2_0")
        AutoBitModel.from_pretrained(tmp_path / "hf")
        inspect_checkpoint(tmp_path / "model.gguf")
    with_scales = ["writing"] * (PLAIN + 2 * TERNARY)
    reading = ["reading"] * (PLAIN + TERNARY)
    assert seen == [with_scales, with_scales, ["writing"] * (PLAIN + TERNARY), reading, reading]
    AutoBitModel.from_pretrained(tmp_path / "hf")
    assert len(seen) == 5
    items = [1]
    assert tracked(items, "reading") is items
