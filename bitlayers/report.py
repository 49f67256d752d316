"""memory_report: measured bytes by layer."""

from dataclasses import dataclass

from torch import Tensor, nn

from bitlayers.base import BitLayer


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer's weights and bias."""

    name: str
    kind: str
    float32: int  # as the dense layer in float32
    now: int  # of the tensors that it holds
    deployed: int  # after deploy()


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of a model, one row a layer that has parameters or buffers of its own. `print` shows a table."""

    layers: tuple[LayerMemory, ...]

    @property
    def float32(self) -> int:
        """Bytes of the dense model in float32."""
        return sum(layer.float32 for layer in self.layers)

    @property
    def now(self) -> int:
        """Bytes of the tensors that the model holds."""
        return sum(layer.now for layer in self.layers)

    @property
    def deployed(self) -> int:
        """Bytes after deploy()."""
        return sum(layer.deployed for layer in self.layers)

    def __str__(self) -> str:
        total = LayerMemory("total", "", self.float32, self.now, self.deployed)
        header = ("layer", "kind", "float32", "now", "deployed", "of float32")
        rows = [
            (
                row.name,
                row.kind,
                f"{row.float32:,}",
                f"{row.now:,}",
                f"{row.deployed:,}",
                f"{row.deployed / max(row.float32, 1):.1%}",
            )
            for row in (*self.layers, total)
        ]
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = []
        for row in (header, *rows):
            cells = [
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def memory_report(model: nn.Module) -> MemoryReport:
    """Measures the bytes of every layer of `model`. Tensors that several layers share count once, for the first."""
    counted: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        own = [
            tensor
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if id(tensor) not in counted
        ]
        counted.update(id(tensor) for tensor in own)
        if not own:
            continue
        now = sum(tensor.nbytes for tensor in own)
        if isinstance(module, BitLayer) and module.quantize:
            bias: Tensor | None = module.bias
            bias_bytes = 0 if bias is None else bias.nbytes
            dense = 4 * (module._rows * module._columns + (0 if bias is None else bias.numel()))
            layers.append(LayerMemory(name, type(module).__name__, dense, now, module.packed_bytes() + bias_bytes))
        else:
            layers.append(LayerMemory(name, type(module).__name__, sum(4 * tensor.numel() for tensor in own), now, now))
    return MemoryReport(tuple(layers))
