"""What the CPU kernels are asked for, and what a run came to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from linear_rows import LARGE, Row
from machine_limits import Limits

Case = tuple[int, tuple[int, int]]  # threads, shape
Find = Callable[..., Row | None]


@dataclass
class Goal:
    """One figure that should be at least `asked`."""

    what: str
    asked: float
    measured: float
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.measured:.0%}" if self.unit == "%" else f"{self.measured:.2f}x"

    @property
    def asked_text(self) -> str:
        return f"{self.asked:.0%}" if self.unit == "%" else f"{self.asked:.2f}x"


def goals(rows: list[Row], limits: dict[int, Limits], avx2_rows: list[Row]) -> Iterator[Goal]:
    """Every goal, in the order of the report; not a number where a row is missing."""
    threads = sorted(limits)
    cases = [(n, shape) for n in threads for shape in LARGE]
    yield from batch_1(finder(rows), cases)
    yield from from_memory(finder(rows), [(threads[-1], shape) for shape in LARGE])
    yield from batches(finder(rows), cases, limits)
    find = finder(rows)
    for shape, asked in (((256, 256), 1.0), ((512, 512), 1.0), ((768, 768), 3.0)):
        for n in threads:
            rival, ours = find(n, shape, 1, "nn.Linear fp32"), find(n, shape, 1, "BitLinear")
            yield ratio(f"batch 1 against nn.Linear fp32, {where(n, shape)}", asked, rival, ours)
    find_avx2 = finder(avx2_rows)
    for n, shape in cases:
        rival, ours = find_avx2(n, shape, 1, "dynamic int8"), find_avx2(n, shape, 1, "BitLinear")
        yield ratio(f"AVX2 alone, batch 1 against dynamic int8, {where(n, shape)}", 1.0, rival, ours)
    one, two = (find(n, (4096, 4096), 1, "BitLinear") for n in (1, 2))
    yield ratio("2 threads against 1, batch 1, 4096x4096", 1.8, one, two)


def batch_1(find: Find, cases: list[Case]) -> Iterator[Goal]:
    for n, shape in cases:
        ours = find(n, shape, 1, "BitLinear")
        for rival, asked in (("dynamic int8", 2.2), ("nn.Linear bf16", 12.0), ("nn.Linear fp32", 25.0)):
            yield ratio(f"batch 1 against {rival}, {where(n, shape)}", asked, find(n, shape, 1, rival), ours)
        bf16, weight_only = find(n, shape, 1, "nn.Linear bf16"), find(n, shape, 1, "BitLinear weight-only bf16")
        yield ratio(f"weight-only, batch 1 against nn.Linear bf16, {where(n, shape)}", 6.0, bf16, weight_only)


def from_memory(find: Find, cases: list[Case]) -> Iterator[Goal]:
    for n, shape in cases:
        two_bit, base3 = (find(n, shape, 1, name, "cold") for name in ("BitLinear", "BitLinear base3"))
        if two_bit and two_bit.read_bytes_per_s:
            share = two_bit.weight_bytes / two_bit.seconds / two_bit.read_bytes_per_s
            read = f"{two_bit.read_bytes_per_s * 1e-9:.1f} GB/s"
            yield Goal(f"weights from DRAM, share of a plain read ({read}), {where(n, shape)}", 0.85, share, "%")
        yield ratio(f"weights from DRAM, base3 against 2bit, {where(n, shape)}", 1.12, two_bit, base3)


def batches(find: Find, cases: list[Case], limits: dict[int, Limits]) -> Iterator[Goal]:
    for batch, asked in ((4, 1.5), (16, 1.2), (64, 1.0), (128, 1.0), (512, 1.0)):
        for n, shape in cases:
            rival, ours = find(n, shape, batch, "dynamic int8"), find(n, shape, batch, "BitLinear")
            yield ratio(f"batch {batch} against dynamic int8, {where(n, shape)}", asked, rival, ours)
            peak = limits[n].dot_ops_per_s
            if ours and peak and batch >= 64:
                yield Goal(f"batch {batch}, share of the dot peak, {where(n, shape)}", 0.8, ours.ops_per_s / peak, "%")


def where(threads: int, shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}, {threads} thread{'s' if threads > 1 else ''}"


def finder(rows: list[Row]) -> Find:
    table = {(row.threads, row.shape, row.batch, row.layer, row.weights): row for row in rows}

    def find(threads: int, shape: tuple[int, int], batch: int, layer: str, weights: str = "hot") -> Row | None:
        return table.get((threads, shape, batch, layer, weights))

    return find


def ratio(what: str, asked: float, rival: Row | None, ours: Row | None) -> Goal:
    """How many times faster `ours` is; not a number where one was not measured."""
    return Goal(what, asked, rival.seconds / ours.seconds if rival and ours else float("nan"))
