"""All pieces in one loop: it learns, by the seed alone, resumes at the same next step, and deploys to the same bits."""

import io
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitcore import BitQuantConfig
from bitcore.config import QUANTIZERS_OF
from bitlayers import BitAttention, BitConv2d, BitEmbedding, BitFeedForward, BitLinear, assert_deploy_equal, convert
from bitlayers.training import QuantizationWarmup, TwoStageSchedule, detect_non_finite, parameter_groups, stem_and_head

STEPS = 60


class Decoder(nn.Module):
    """Tokens [batch, length] -> logits [batch, length, 11]."""

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__()
        self.embedding = BitEmbedding(11, 16, quant_config=config)
        self.norms = nn.ModuleList([nn.RMSNorm(16) for _ in range(3)])
        self.attention = BitAttention(16, 2, causal=True, sub_norm=True, quant_config=config)
        self.mlp = BitFeedForward(16, 32, "relu2", sub_norm=True, quant_config=config)
        self.lm_head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.lm_head(self.norms[2](x))


class Images(nn.Module):
    """Images [batch, 3, 8, 8] -> logits [batch, 5]."""

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            BitConv2d(8, 8, 3, padding=1, groups=2, quant_config=config),
            nn.ReLU(),
            BitConv2d(8, 8, 2, stride=2, quant_config=config),
            nn.Flatten(),
            BitLinear(72, 5, norm=True, quant_config=config),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def configs() -> Iterator[BitQuantConfig]:
    """Every combination of what layers compute."""
    activations = [("int8", "per_token"), ("int8", "per_tensor"), ("float32", "per_token")]
    for weight_dtype, rules in QUANTIZERS_OF.items():
        formats = ("2bit", "base3") if weight_dtype == "ternary" else ("2bit",)
        for rule, granularity, (activation, tokens), storage_format, scale in itertools.product(
            rules, ("per_tensor", "per_channel", "per_group"), activations, formats, ("float32", "float16")
        ):
            yield BitQuantConfig(
                weight_dtype=weight_dtype,
                weight_quantizer=rule,
                weight_granularity=granularity,
                group_size=8,
                activation_dtype=activation,
                activation_granularity=tokens,
                storage_format=storage_format,
                weight_scale_dtype=scale,
            )


@pytest.mark.parametrize("config", list(configs()), ids=str)
def test_every_config_deploys_to_the_same_bits(config: BitQuantConfig) -> None:
    decoder = Decoder(config)
    tokens = torch.randint(0, 11, (2, 6))
    torch.testing.assert_close(decoder(tokens).shape, (2, 6, 11))
    assert_deploy_equal(decoder, tokens)
    images = Images(config)
    images(torch.randn(4, 3, 8, 8))  # moves the statistics of the BatchNorm
    assert_deploy_equal(images, torch.randn(2, 3, 8, 8))


class Run:
    """A model in training to say the token before the last one, with all that a checkpoint must hold."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Decoder(BitQuantConfig(ste="clipped", weight_scale_dtype="bfloat16"))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=0.02, fused=True)
        self.schedule = TwoStageSchedule(self.optimizer, STEPS, warmup_steps=5)
        self.warmup = QuantizationWarmup(self.model, STEPS // 2, shape="sigmoid")
        self.data = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []

    @property
    def parts(self) -> list:
        return [self.model, self.optimizer, self.schedule, self.warmup]

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            tokens = torch.randint(0, 11, (32, 8), generator=self.data)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(tokens)[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.warmup.step()
            self.losses.append(loss.item())


def test_learns_by_the_seed_alone_and_deploys() -> None:
    first, second, other = Run(1), Run(1), Run(2)
    with detect_non_finite(first.model):  # looks, and changes nothing
        first.advance(STEPS)
    second.advance(STEPS)
    other.advance(3)
    assert first.losses == second.losses
    assert first.losses[:3] != other.losses
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
    # It comes to 0.64; without gradients through the quantizers the layers in floating point alone come to 0.82.
    assert sum(first.losses[-5:]) / 5 < 0.72 * first.losses[0]
    assert_deploy_equal(first.model, torch.randint(0, 11, (2, 8)))


@pytest.mark.parametrize("stop", [7, STEPS // 2, 40])
def test_resumes_from_a_checkpoint_with_the_same_next_steps(stop: int) -> None:
    run = Run(3)
    run.advance(stop)
    file = io.BytesIO()
    torch.save([*(part.state_dict() for part in run.parts), run.data.get_state()], file)
    run.advance(8)
    file.seek(0)
    *states, data = torch.load(file, weights_only=True)
    resumed = Run(4)
    for part, state in zip(resumed.parts, states, strict=True):
        part.load_state_dict(state)
    resumed.data.set_state(data)
    resumed.advance(8)
    assert resumed.losses == run.losses[stop:]


def test_gradient_accumulation_and_gradient_checkpointing_are_the_same_step() -> None:
    torch.manual_seed(0)
    layers = [BitLinear(12, 12, norm=True) for _ in range(2)]
    x = torch.randn(8, 12)

    def gradients(parts: tuple[Tensor, ...], again: bool) -> list[Tensor]:
        for layer in layers:
            layer.zero_grad()
        for y in parts:
            for layer in layers:
                y = checkpoint(layer, y, use_reentrant=False) if again else layer(y)  # noqa: PLW2901
            y.square().sum().backward()
        return [layer.weight.grad.clone() for layer in layers]

    whole = gradients((x,), again=False)
    for parts, again in ((x.split(2), False), ((x,), True), (x.split(4), True)):
        for got, expected in zip(gradients(parts, again), whole, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of RMSNorm, whose weight stays float32
def test_mixed_precision_trains_float32_masters() -> None:
    for model, x in (
        (Decoder(BitQuantConfig()), torch.randint(0, 11, (2, 6))),
        (Images(BitQuantConfig()), torch.randn(2, 3, 8, 8)),
        (Images(BitQuantConfig.int8_per_tensor()), torch.randn(2, 3, 8, 8)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name


def test_a_pretrained_dense_model_is_fine_tuned() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    labels = (x @ torch.randn(16, 4)).argmax(-1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def train(steps: int) -> None:
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=0.01)
        warmup = QuantizationWarmup(model, steps // 3) if any(isinstance(m, BitLinear) for m in model) else None
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
            if warmup is not None:
                warmup.step()

    def accuracy() -> float:
        return (model.eval()(x).argmax(-1) == labels).float().mean().item()

    train(100)
    dense = accuracy()
    convert(model, exclude=stem_and_head(model))
    model.train()
    train(100)
    assert accuracy() > dense - 0.05 > 0.8
    assert_deploy_equal(model, x)
