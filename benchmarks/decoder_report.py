"""The run of bench_decoder.py as Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench_decoder import Run

ASKED_DECODE = {"transformers bf16": 5.0, "llama.cpp TQ2_0": 1.6}
ASKED_PROMPT = {("transformers bf16", 512): 3.0, ("llama.cpp TQ2_0", 128): 5.0}
ASKED_OVER_FLOOR, ASKED_LOAD_SECONDS, ASKED_MEMORY, ASKED_OTHER_SECONDS = 1.25, 3.0, 1.3, 3e-3


def report(run: Run) -> str:
    return f"""# CPU: a language model of 2 billion weights

Written by `python benchmarks/bench_decoder.py` on {run.cpu}, torch {run.torch}, kernel {run.kernel},
{run.threads} threads. The shape of BitNet b1.58 2B4T with {run.layers} layers, random weights, {run.head_dtype} head,
bfloat16 in between, {run.context} positions of context. The floor and the figures asked for are those of weights in
{run.storage_format}. Medians of rounds in which the engines and a plain read of memory take turns.

{_floor(run)}

## Asked for

| figure | asked | measured |
|---|---|---|
{_lines(_asked(run))}

## Measured

| engine | decoding, ms a token (spread) | tokens/s | {_columns(run)} |
|---|---|---|{"---|" * len(_lengths(run))}
{_lines(_engines(run))}

transformers: BitNetForCausalLM, dense bfloat16 weights. llama.cpp: its llama architecture (SwiGLU, no sub-norms) with a
Q8_0 head. Spread: of the rounds. A token beside its products: less all of them, each width in one call.
"""


def _floor(run: Run) -> str:
    seconds = statistics.median(run.read_seconds)
    speed = f"{run.weight_bytes / seconds * 1e-9:.1f} GB/s (spread {_spread(run.read_seconds)})"
    return f"""A plain read of memory: {speed}.
A token reads {run.weight_bytes * 1e-6:.0f} MB of weights, so its floor is {seconds * 1e3:.1f} ms."""


def _ours(run: Run) -> str:
    return f"BitLab {run.storage_format}"


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _lengths(run: Run) -> list[int]:
    return sorted(run.prompt_seconds.get(_ours(run), {}))


def _columns(run: Run) -> str:
    return " | ".join(f"prompt of {length}, tokens/s (spread)" for length in _lengths(run))


def _engines(run: Run) -> list[str]:
    lines = []
    for name, times in run.token_seconds.items():
        seconds = statistics.median(times)
        cells = [name, f"{seconds * 1e3:.1f} ({_spread(times)})", f"{1 / seconds:.1f}"]
        for length in _lengths(run):
            prompt = run.prompt_seconds[name][length]
            cells.append(f"{length / statistics.median(prompt):.0f} ({_spread(prompt)})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _asked(run: Run) -> list[str]:
    ours = run.token_seconds[_ours(run)]
    lines = []
    for name, asked in ASKED_DECODE.items():
        if name in run.token_seconds:
            ratio = _ratio(run.token_seconds[name], ours)
            lines.append(_line(f"decoding against {name}", f"{asked}x", f"{ratio:.2f}x", ratio >= asked))
    over = _ratio(ours, run.read_seconds)
    lines.append(_line("a token over the memory's floor", f"at most {ASKED_OVER_FLOOR}x", f"{over:.2f}x", over <= 1.25))
    for (name, length), asked in ASKED_PROMPT.items():
        if length in run.prompt_seconds.get(name, {}):
            ratio = _ratio(run.prompt_seconds[name][length], run.prompt_seconds[_ours(run)][length])
            lines.append(_line(f"prompt of {length} against {name}", f"{asked}x", f"{ratio:.2f}x", ratio >= asked))
    other = statistics.median(run.other_seconds)
    what = "a token beside its matrix products (norms, attention, Python)"
    lines.append(_line(what, "under 3 ms", f"{other * 1e3:.1f} ms", other < ASKED_OTHER_SECONDS))
    for name, load in run.load.items():
        seconds, share = load["seconds"], load["peak_bytes"] / load["file_bytes"]
        reached = seconds < ASKED_LOAD_SECONDS
        lines.append(_line(f"from disk to the first token, {name}", "under 3 s", f"{seconds:.2f} s", reached))
        peak = f"{share:.2f}x of {load['file_bytes'] * 1e-6:.0f} MB"
        lines.append(_line(f"peak memory of that process, {name}", "under 1.3x the file", peak, share < ASKED_MEMORY))
    return lines


def _line(what: str, asked: str, measured: str, reached: bool) -> str:
    return f"| {what} | {asked} | {measured}{'' if reached else ' (not reached)'} |"


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _spread(times: list[float]) -> str:
    return f"{(max(times) - min(times)) / statistics.median(times):.0%}"
