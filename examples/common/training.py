"""The training loop of all programs, from the pieces of bitlayers.training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from bitlayers import BitLayer
from bitlayers.training import QuantizationWarmup, TwoStageSchedule, parameter_groups
from common.data import Data, Items

POINTS = 10  # of a curve
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, logits, target -> what is minimized


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rate and weight decay go BitNet's two stages; a dense model's fall in one."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.1
    warmup_share: float = 0.05  # of the steps: the learning rate rises
    lambda_share: float = 0.0  # of the steps: quantization grows


@dataclass
class Curve:
    """Losses during training: at `steps`, the mean training loss since the last one, and the validation loss."""

    steps: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


def cross_entropy(x: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of logits [..., classes] and targets [...]."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def train(
    model: nn.Module, data: Data, recipe: Recipe, seed: int, advance: Callable[[], None], loss_of: Loss = cross_entropy
) -> Curve:
    """Trains `model`, a ternary one or its dense twin. The seed alone decides on batches and dropout."""
    torch.manual_seed(seed)
    ternary = any(isinstance(module, BitLayer) for module in model.modules())
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    schedule = TwoStageSchedule(
        optimizer,
        recipe.steps,
        switch_at=0.5 if ternary else 1.0,
        warmup_steps=int(recipe.warmup_share * recipe.steps),
    )
    warmup = QuantizationWarmup(model, int(recipe.lambda_share * recipe.steps)) if ternary else None
    curve, losses = Curve(), []
    model.train()
    device = device_of(model)
    for step, batch in enumerate(batches(data.training, recipe, seed), 1):
        x, target = (tensor.to(device) for tensor in batch)
        optimizer.zero_grad()
        loss = loss_of(x, model(x), target)
        loss.backward()
        optimizer.step()
        schedule.step()
        if warmup is not None:
            warmup.step()
        losses.append(loss.item())
        if step * POINTS // recipe.steps > (step - 1) * POINTS // recipe.steps:
            curve.steps.append(step)
            curve.training.append(sum(losses) / len(losses))
            curve.validation.append(evaluate(model, data)[0])
            losses.clear()
            model.train()
        advance()
    model.eval()
    return curve


def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """(mean cross entropy, accuracy) of all targets of the validation data; leaves `model` in eval mode."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    with torch.inference_mode():
        for batch in _loader(data.validation, SequentialSampler(data.validation), 64):
            x, target = (tensor.to(device_of(model)) for tensor in batch)
            logits = model(x)
            loss += cross_entropy(x, logits, target).item() * target.numel()
            right += int((logits.argmax(-1) == target).sum())
            count += target.numel()
    return loss / count, right / count


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or, in a deployed model, buffer is."""
    return next(chain(model.parameters(), model.buffers())).device


def batches(dataset: Items, recipe: Recipe, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """`steps` batches. Every item comes once before one comes again, in an order of the seed's."""
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(dataset, num_samples=recipe.steps * recipe.batch_size, generator=generator)
    return _loader(dataset, sampler, recipe.batch_size)


def _loader(dataset: Items, sampler: Sampler[int], batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Whole batches at a time: the dataset is indexed by lists."""
    return DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)
