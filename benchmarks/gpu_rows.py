"""What a run of bench_gpu_linear.py leaves behind, and its JSON file. Needs no GPU and no PyTorch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

Shape = tuple[int, int]  # out_features, in_features

FLOOR = "read floor"
BF16, FP8, INT8 = "F.linear bf16", "fp8", "int_mm"
DENSE = "dense"  # the weights of rivals
TWO_BIT, WEIGHT_ONLY, BASE3 = "2bit", "weight-only", "base3"  # configs of BitLinear


@dataclass
class Row:
    """One measurement: `batch` tokens through weights of `shape`, by a kernel of ours, a rival or a plain read."""

    shape: Shape
    batch: int
    name: str  # a kernel's, a rival's or FLOOR
    layer: str  # TWO_BIT, WEIGHT_ONLY, BASE3 or DENSE
    part: int  # index of Run.parts: rows of one part were measured in one process
    microseconds: float | None = None  # of a call, the median; None where `note` says why there is none
    spread: float = 0.0  # (80 % quantile - 20 % quantile) / median
    nodes: int = 0  # calls in the graph, each with its own copy of the weights
    weight_bytes: int = 0
    checked: int = 0  # outputs compared bit for bit with the reference kernel's
    equal: int = 0
    error: float | None = None  # ||y - y64|| / ||y64||, y64 computed in float64 from the same operands
    repeatable: bool | None = None  # the replayed graph gave the bits of a call outside of it
    note: str = ""

    @property
    def key(self) -> tuple[Shape, int, str, str]:
        return self.shape, self.batch, self.name, self.layer

    @property
    def ops_per_s(self) -> float:
        """Two operations a weight and token; 0 where nothing was measured."""
        return 2e6 * self.batch * self.shape[0] * self.shape[1] / self.microseconds if self.microseconds else 0.0

    @property
    def is_wrong(self) -> bool:
        return self.equal < self.checked or self.repeatable is False


@dataclass
class EagerRow:
    """A call outside of a graph, on a layer so small that Python and the launch are all there is."""

    name: str
    part: int
    pipelined: float | None = None  # microseconds a call of an unsynchronized loop
    one_call: float | None = None  # microseconds of one call and the wait for it
    spread: float = 0.0  # (80 % quantile - 20 % quantile) / median, of `pipelined`
    note: str = ""


@dataclass
class Run:
    """All rows, and of each part of the run the machine's limits (gpu_limits.Limits as a dictionary)."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    eager: list[EagerRow] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The run in the JSON file `path`."""
        data = json.loads(path.read_text())
        rows = [Row(**{**row, "shape": tuple(row["shape"])}) for row in data["rows"]]
        return cls(data["parts"], rows, [EagerRow(**row) for row in data["eager"]])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def forget(self, names: list[str]) -> None:
        """Drops the rows of `names` and those without a measurement, so that they are measured again."""
        self.rows = [row for row in self.rows if row.microseconds is not None and row.name not in names]
        self.eager = [row for row in self.eager if row.pipelined is not None and row.name not in names]

    def find(self, shape: Shape, batch: int, name: str, layer: str) -> Row | None:
        """The row that was measured, or None."""
        for row in self.rows:
            if row.key == (shape, batch, name, layer) and row.microseconds is not None:
                return row
        return None

    @property
    def kernels(self) -> list[str]:
        """The kernels of ours that were asked for, in this order."""
        return list(dict.fromkeys(row.name for row in self.rows if row.layer != DENSE and row.name != FLOOR))


def size_of(shape: Shape) -> str:
    """As it is written: OUTxIN."""
    return f"{shape[0]}x{shape[1]}"
