"""A language model of the shape of BitNet b1.58 2B4T, with random weights, on a GPU: tokens one by one, and a prompt.

    python benchmarks/bench_gpu_decoder.py [--layers 30] [--no-rival] [--output docs/benchmarks]

The rival is transformers' own model in bfloat16 with dense weights, a static cache and torch.compile with CUDA graphs.
Writes decoder_gpu.json and decoder_gpu.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_limits import read_bandwidth

from bitcore.packed_weight import PackedWeight
from bitlayers import BitLayer
from bitmodels.decoding_graph import DecodingGraph
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

SIZES = {"vocab_size": 128256, "hidden_size": 2560, "intermediate_size": 6912}
PROMPT = 2048


def our_model(layers: int, context: int, head_dtype: str = "float") -> BitTransformerModel:
    """Random ternary weights, deployed."""
    config = BitTransformerConfig(
        num_layers=layers,
        num_heads=20,
        num_kv_heads=5,
        activation="relu2",
        sub_norm=True,
        max_length=context,
        tie_embeddings=True,
        head_dtype=head_dtype,
        **SIZES,
    )
    with torch.device("meta"):
        model = BitTransformerModel(config).eval()
    for layer in list(model.modules()):
        if isinstance(layer, BitLayer):
            rows, columns = layer.matrix_shape
            weight = torch.randn(rows, columns, device="cuda") / columns**0.5
            layer.deploy_packed(PackedWeight.from_float(weight, layer.quant_config), layer.quant_config)
    model = model.to(torch.bfloat16)
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            module, _, attribute = name.rpartition(".")
            value = torch.randn(tensor.shape, device="cuda") * 0.02 + (1 if tensor.dim() == 1 else 0)
            parameter = torch.nn.Parameter(value.to(torch.bfloat16), requires_grad=False)
            setattr(model.get_submodule(module), attribute, parameter)
    return model


def rival_model(layers: int, context: int) -> torch.nn.Module:
    from transformers import BitNetConfig, BitNetForCausalLM  # noqa: PLC0415 - only for the rival

    config = BitNetConfig(
        num_hidden_layers=layers,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **SIZES,
    )
    with torch.device("cuda"):
        return BitNetForCausalLM(config).to(torch.bfloat16).eval()


def milliseconds(call: Callable[[], object], repeats: int = 30) -> tuple[float, float]:
    """Median and spread, (largest - smallest) / median, of calls between two events, after three others."""
    times = []
    for repeat in range(3 + repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def graph_milliseconds(model: BitTransformerModel, prompt: torch.Tensor, token: torch.Tensor) -> tuple[float, float]:
    cache = model.new_cache(1, 2 * prompt.shape[1])
    model.next_logits(prompt, None, cache)
    graph = DecodingGraph(model, cache)
    return milliseconds(lambda: graph(token))


def ours(layers: int, context: int, figures: dict[str, tuple[float, float]]) -> int:
    """Adds our figures; returns the bytes that a token reads."""
    model = our_model(layers, PROMPT + 64)
    prompt = torch.randint(SIZES["vocab_size"], (1, context), device="cuda")
    token = torch.randint(SIZES["vocab_size"], (1, 1), device="cuda")
    long_prompt = torch.randint(SIZES["vocab_size"], (1, PROMPT), device="cuda")
    figures["BitLab, graph"] = graph_milliseconds(model, prompt, token)
    cache = model.new_cache(1, 2 * context)
    model.next_logits(prompt, None, cache)
    figures["BitLab, eager"] = milliseconds(lambda: model.next_logits(token, None, cache))
    figures["BitLab, prompt"] = milliseconds(lambda: model.next_logits(long_prompt, None, None), 10)
    int8_head = our_model(layers, PROMPT + 64, "int8")
    figures["BitLab, graph, int8 head"] = graph_milliseconds(int8_head, prompt, token)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def theirs(layers: int, context: int, figures: dict[str, tuple[float, float]]) -> None:
    """Adds transformers' figures: a step as its own generate runs it, static cache and compiled forward."""
    from transformers import StaticCache  # noqa: PLC0415 - only for the rival

    model = rival_model(layers, PROMPT + 64)
    prompt = torch.randint(SIZES["vocab_size"], (1, context), device="cuda")
    long_prompt = torch.randint(SIZES["vocab_size"], (1, PROMPT), device="cuda")
    figures["transformers bf16, prompt"] = milliseconds(lambda: model(long_prompt, logits_to_keep=1), 10)
    cache = StaticCache(config=model.config, max_cache_len=2 * context)
    model(prompt, past_key_values=cache, logits_to_keep=1)
    token = torch.randint(SIZES["vocab_size"], (1, 1), device="cuda")
    position = torch.tensor([[context]], device="cuda")
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def compiled() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return step(token, past_key_values=cache, position_ids=position, use_cache=True)

    figures["transformers bf16, static cache, compiled"] = milliseconds(compiled)
    compiled_prompt = torch.compile(model.forward, fullgraph=True)
    figures["transformers bf16, prompt, compiled"] = milliseconds(
        lambda: compiled_prompt(long_prompt, logits_to_keep=1, use_cache=False), 10
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--no-rival", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    figures: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        bandwidth = read_bandwidth()
        read_bytes = ours(arguments.layers, arguments.context, figures)
        if not arguments.no_rival:
            torch._dynamo.reset()
            theirs(arguments.layers, arguments.context, figures)
    floor = read_bytes / bandwidth * 1e3
    lines = [
        f"# Decoder on {torch.cuda.get_device_name()}",
        "",
        f"{arguments.layers} layers of BitNet b1.58 2B4T's shape, batch 1, bfloat16, context {arguments.context};",
        f"prompts of {PROMPT} tokens. torch {torch.__version__}. Medians. Reading all weights of BitLab's model takes",
        f"{floor:.3f} ms at the {bandwidth * 1e-12:.2f} TB/s of a plain read.",
        "",
        "| | ms | spread |",
        "|---|---|---|",
        *(f"| {name} | {ms:.3f} | {spread:.0%} |" for name, (ms, spread) in figures.items()),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "decoder_gpu.md").write_text("\n".join(lines) + "\n")
    record = {"layers": arguments.layers, "torch": torch.__version__, "floor_ms": floor, "figures": figures}
    (arguments.output / "decoder_gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
