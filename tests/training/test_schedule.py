"""TwoStageSchedule against its formulas; resuming; parameter groups."""

import math

import pytest
import torch
from torch import nn

from bitcore.exceptions import ArgumentError
from bitlayers import BitEmbedding, BitLinear
from bitlayers.training import TwoStageSchedule, parameter_groups


def optimizer_of(*peaks: tuple[float, float], kind: type = torch.optim.AdamW) -> torch.optim.Optimizer:
    """A group for each (learning rate, weight decay)."""
    return kind([{"params": [nn.Parameter(torch.ones(2))], "lr": lr, "weight_decay": decay} for lr, decay in peaks])


def course(optimizer: torch.optim.Optimizer, schedule: TwoStageSchedule, steps: int) -> list[list[tuple[float, float]]]:
    """Learning rate and weight decay of every group at each step."""
    found = []
    for _ in range(steps):
        found.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("weight_decay", ["constant", "cosine"])
def test_formulas(shape: str, weight_decay: str) -> None:
    peaks = ((1.5e-3, 0.1), (4e-4, 0.0))
    optimizer = optimizer_of(*peaks)
    options = {"switch_at": 0.6, "second_stage": 0.5, "warmup_steps": 3, "shape": shape, "weight_decay": weight_decay}
    schedule = TwoStageSchedule(optimizer, 10, **options)
    for step, groups in enumerate(course(optimizer, schedule, 13)):
        p = min(step / 10, 1)
        factor = (1 - p) if shape == "linear" else 0.5 + 0.5 * math.cos(math.pi * p)
        factor *= min(step / 3, 1) * (0.5 if step >= 6 else 1)
        decay = 1 if weight_decay == "constant" else 0.5 - 0.5 * math.cos(math.pi * step / 6)
        for (lr, found_decay), (peak, peak_decay) in zip(groups, peaks, strict=True):
            assert lr == pytest.approx(peak * factor, abs=1e-12)
            assert found_decay == pytest.approx(peak_decay * (decay if step < 6 else 0), abs=1e-12)
    assert schedule.last_epoch == 13


def test_the_published_numbers() -> None:
    """1.5e-3 falls to half of it at the switch, then from 5e-4 to nothing; weight decay 0.1, then none."""
    optimizer = optimizer_of((1.5e-3, 0.1))
    found = course(optimizer, TwoStageSchedule(optimizer, 1000), 1001)
    assert found[375][0][0] == pytest.approx(1.5e-3 * 0.625)
    assert found[499][0] == pytest.approx((0.75e-3, 0.1), rel=0.01)
    assert found[500][0] == pytest.approx((5e-4, 0.0))
    assert found[1000][0][0] == 0


def test_resumes_with_the_same_next_step() -> None:
    def build() -> tuple[torch.optim.Optimizer, TwoStageSchedule]:
        optimizer = optimizer_of((1e-2, 0.1), (1e-3, 0.0))
        return optimizer, TwoStageSchedule(optimizer, 20, warmup_steps=4)

    for stop in (0, 3, 10, 15):
        optimizer, schedule = build()
        course(optimizer, schedule, stop)
        states = optimizer.state_dict(), schedule.state_dict()
        again, schedule_again = build()
        again.load_state_dict(states[0])
        schedule_again.load_state_dict(states[1])
        assert course(again, schedule_again, 8) == course(optimizer, schedule, 8)
        from_epoch, _ = build()
        from_epoch.load_state_dict(states[0])
        continued = TwoStageSchedule(from_epoch, 20, warmup_steps=4, last_epoch=stop + 8 - 1)
        assert course(from_epoch, continued, 1) == course(optimizer, schedule, 1)


def test_works_beside_other_schedulers_and_without_weight_decay() -> None:
    optimizer = optimizer_of((1.0, 0.0), kind=torch.optim.SGD)
    assert isinstance(TwoStageSchedule(optimizer, 10, warmup_steps=0), torch.optim.lr_scheduler.LRScheduler)
    rprop = torch.optim.Rprop([nn.Parameter(torch.ones(2))], lr=1.0)  # has no weight decay at all
    schedule = TwoStageSchedule(rprop, 10, warmup_steps=0)
    rprop.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.9]
    assert "weight_decay" not in rprop.param_groups[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0, expected 1 or more"),
        ({"switch_at": 0.0}, "switch_at is 0.0"),
        ({"second_stage": 1.5}, "second_stage is 1.5"),
        ({"warmup_steps": 51}, "warmup_steps is 51, expected 0 to 50, the first stage"),
        ({"shape": "exp"}, "shape is 'exp', expected 'linear' or 'cosine'"),
        ({"weight_decay": "linear"}, "weight_decay is 'linear', expected 'constant' or 'cosine'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TwoStageSchedule(optimizer_of((1.0, 0.1)), **{"total_steps": 100, "warmup_steps": 0, **arguments})


def test_weight_decay_falls_on_what_is_multiplied() -> None:
    model = nn.Sequential(
        BitEmbedding(5, 8), BitLinear(8, 8, norm=True), nn.LayerNorm(8), nn.Linear(8, 3), nn.PReLU(), BitLinear(3, 3)
    )
    model[5].weight.requires_grad_(False)
    decayed, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(parameter)] for parameter in decayed["params"]] == ["0.weight", "1.weight", "3.weight"]
    assert {names[id(parameter)] for parameter in rest["params"]} == {
        "1.bias",
        "1.norm.weight",
        "2.weight",
        "2.bias",
        "3.bias",
        "4.weight",
        "5.bias",
    }
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    optimizer = torch.optim.AdamW([decayed, rest], lr=0.01, fused=True)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()


def test_tied_weights_are_in_one_group_once() -> None:
    model = nn.Sequential(BitEmbedding(5, 8), BitLinear(8, 5, bias=False))
    model[1].weight = model[0].weight
    (group,) = parameter_groups(model)
    assert len(group["params"]) == 1


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model is without a Parameter that needs a gradient"):
        parameter_groups(nn.ReLU())
    with pytest.raises(ArgumentError, match="weight_decay is -1"):
        parameter_groups(BitLinear(2, 2), -1)
