"""Train a ternary decoder on text, byte by byte; deploy it, measure it beside its fp32 twin, let it write.

    python examples/char_lm.py --compare                  Python's own standard library, which needs no download
    python examples/char_lm.py --compare --text FILE      a text file of yours
    python examples/char_lm.py --compare --download       TinyShakespeare, fetched into outputs
    python examples/char_lm.py --compare --width 256 --layers 6 --learning-rate 4e-3 --dense-learning-rate 2e-3

The last one has 5 M parameters; the default, 0.9 M, is what two cores train in two minutes.
Embedding and head stay in floating point; attention and MLP are ternary, with BitNet b1.58's sub-norms.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import Field
from torch import Tensor, nn

from bitcore import BitQuantConfig
from bitlayers import BitAttention, BitFeedForward, KeyValueCache
from bitmodels import BitModelBase, BitModelConfig, register_model
from common.deployment import deploy_and_reload, through_folder
from common.experiment import Experiment
from common.program import BatchSize, Compare, DenseLearningRate, Device, LearningRate, Out, Seed, Steps, program
from common.text import download_shakespeare, file_text, standard_library
from common.training import Recipe
from common.twin import dense_twin

HEAD_DIM = 32
SHAKESPEARE = Path("outputs/tinyshakespeare.txt")


class CharLMConfig(BitModelConfig):
    """Sizes of a CharLM."""

    width: int = Field(default=128, ge=HEAD_DIM, multiple_of=HEAD_DIM)
    layers: int = Field(default=4, ge=1)


class DecoderLayer(nn.Module):
    """Attention and MLP, each with a norm in front and a sub-norm within."""

    def __init__(self, width: int, quant_config: BitQuantConfig) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.self_attn = BitAttention(width, width // HEAD_DIM, causal=True, sub_norm=True, quant_config=quant_config)
        self.mlp = BitFeedForward(width, 3 * width, "relu2", sub_norm=True, quant_config=quant_config)

    def forward(self, x: Tensor, cache: KeyValueCache | None) -> Tensor:
        past = 0 if cache is None else cache.length
        x = x + self.self_attn(self.input_layernorm(x), lambda q, k: (rotate(q, past), rotate(k, past)), cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def rotate(states: Tensor, past: int) -> Tensor:
    """Rotary positions (arXiv 2104.09864), from `past` on, put into `states` [batch, heads, length, HEAD_DIM]."""
    half = HEAD_DIM // 2
    frequencies = 10_000 ** (-torch.arange(half, device=states.device) / half)
    angles = (past + torch.arange(states.shape[2], device=states.device)).unsqueeze(1) * frequencies
    first, second = states.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


@register_model("char_lm")
class CharLM(BitModelBase):
    """Bytes [batch, length] -> logits of the bytes that follow each, [batch, length, 256]."""

    config_class = CharLMConfig

    def __init__(self, config: CharLMConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        self.embedding = nn.Embedding(256, config.width)
        self.layers = nn.ModuleList([DecoderLayer(config.width, self.quant_config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(config.width)
        self.lm_head = nn.Linear(config.width, 256, bias=False)

    def forward(self, tokens: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        x = self.embedding(tokens)
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            x = layer(x, cache)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits

    @torch.inference_mode()
    def write(self, prompt: Tensor, length: int, temperature: float = 0.7) -> str:
        """`prompt` [its length] and bytes drawn one by one after it, `length` in all, as text."""
        heads = self.config.width // HEAD_DIM
        device = self.embedding.weight.device
        caches = [KeyValueCache(1, heads, length, HEAD_DIM, device) for _ in self.layers]
        text = new = prompt.to(device)
        while len(text) < length:
            logits = self(new.unsqueeze(0), caches)[0, -1]
            new = torch.multinomial((logits / temperature).softmax(-1), 1)
            text = torch.cat([text, new])
        return bytes(text.tolist()).decode(errors="replace")


def main(
    text: Annotated[Path | None, typer.Option(help="A text file in UTF-8; else the standard library.")] = None,
    download: Annotated[bool, typer.Option("--download", help=f"Fetch TinyShakespeare to {SHAKESPEARE}.")] = False,
    compare: Compare = False,
    seed: Seed = 0,
    steps: Steps = 400,
    batch_size: BatchSize = 8,
    learning_rate: LearningRate = 8e-3,
    dense_learning_rate: DenseLearningRate = 4e-3,
    width: Annotated[int, typer.Option(min=HEAD_DIM, help=f"Of the residual stream, a multiple of {HEAD_DIM}.")] = 128,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    context: Annotated[int, typer.Option(min=8, help="Bytes that the model reads at once.")] = 256,
    device: Device = "cpu",
    out: Out = Path("outputs/char_lm"),
) -> None:
    """Train a ternary decoder on text, deploy it, load it again, let it write."""
    if width % HEAD_DIM != 0:
        raise typer.BadParameter(f"{width} is not a multiple of {HEAD_DIM}", param_hint="--width")
    if download:
        download_shakespeare(text := text or SHAKESPEARE)
    data = standard_library(context) if text is None else file_text(text, context)
    experiment = Experiment("char_lm", data, out, latency_batches=(1,))
    recipe = Recipe(steps, batch_size, learning_rate)
    torch.manual_seed(seed)
    model = CharLM(CharLMConfig(width=width, layers=layers)).to(device)
    experiment.console.print(f"model: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    if compare:
        experiment.train("fp32", dense_twin(model), replace(recipe, learning_rate=dense_learning_rate), seed)
    experiment.train("ternary", model, recipe, seed)
    windows = data.validation.tensors[0]
    deployed = deploy_and_reload(model, windows[:16], through_folder(out))
    experiment.measure("deployed", deployed)
    experiment.report()
    experiment.console.rule("the deployed model writes")
    experiment.console.print(deployed.write(windows[0, : context // 8], context), markup=False, highlight=False)


app = program(main)

if __name__ == "__main__":
    app()
