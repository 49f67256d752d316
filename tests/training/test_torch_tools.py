"""torch's own tools around a quantized model: fused optimizers, weight averaging, data parallelism over processes."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bitlayers import BitConv2d, BitLinear, assert_deploy_equal, deploy
from bitlayers.training import QuantizationWarmup, parameter_groups

OPTIMIZERS = [
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adagrad, {"lr": 0.01}),
]


def network() -> nn.Sequential:
    """Images [B, 2, 6, 6] -> [B, 5]."""
    stem = nn.Sequential(BitConv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*stem, BitLinear(144, 16, norm=True), nn.ReLU(), nn.Linear(16, 5))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
def test_fused_optimizers(optimizer: type[torch.optim.Optimizer], options: dict[str, float]) -> None:
    fused = network()
    plain = deepcopy(fused)
    optimizers = [
        optimizer(parameter_groups(model), fused=model is fused, foreach=False, **options) for model in (fused, plain)
    ]
    x, labels = torch.randn(8, 2, 6, 6), torch.randint(0, 5, (8,))
    for model, its_optimizer in zip((fused, plain), optimizers, strict=True):
        step(model, its_optimizer, x, labels)
        for (name, before), after in zip(model.named_parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(after, before, msg=name)


@pytest.mark.parametrize("fused", [False, True])
def test_eval_sees_what_an_optimizer_has_changed(fused: bool) -> None:
    """Eval mode keeps packed weights between calls, and fused steps do not raise the masters' version counters."""
    model = network().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    x, labels = torch.randn(8, 2, 6, 6), torch.randint(0, 5, (8,))
    before = model(x)
    for _ in range(2):
        step(model, optimizer, x, labels)
        fresh = network().eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(model(x), fresh(x))
    assert not torch.equal(model(x), before)


def test_averaged_weights_are_the_average_of_masters_and_deploy() -> None:
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x, labels = torch.randn(8, 2, 6, 6), torch.randint(0, 5, (8,))
    expected: dict[str, Tensor] = {}
    for _ in range(6):
        step(model, optimizer, x, labels)
        averaged.update_parameters(model)
        for name, parameter in model.named_parameters():
            now = parameter.detach().clone()
            expected[name] = now if name not in expected else torch.lerp(now, expected[name], 0.75)
        fresh = network().eval()
        fresh.load_state_dict(averaged.module.state_dict())
        assert torch.equal(averaged.eval()(x), fresh(x))
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    assert_deploy_equal(averaged.module, x)
    logits = averaged(x)
    assert torch.equal(deploy(averaged.module)(x), logits)


def train_in_a_process(rank: int, folder: Path) -> None:
    """One of two processes: trains on its half of each batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, x, labels = torch.load(folder / "start.pt", weights_only=False)
    parallel = DistributedDataParallel(model)
    train(parallel, model, x[:, rank::2], labels[:, rank::2])
    torch.save(model.state_dict(), folder / f"end{rank}.pt")
    del parallel  # it holds the process group, whose threads must end before the interpreter does
    distributed.barrier()
    distributed.destroy_process_group()


def train(called: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=0.01)
    warmup = QuantizationWarmup(model, 3)
    for images, classes in zip(x, labels, strict=True):
        step(called, optimizer, images, classes)
        warmup.step()


def test_two_processes_train_as_one_on_the_joined_batch(tmp_path: Path) -> None:
    model, x, labels = network(), torch.randn(5, 12, 2, 6, 6), torch.randint(0, 5, (5, 12))
    torch.save((model, x, labels), tmp_path / "start.pt")
    multiprocessing.spawn(train_in_a_process, (tmp_path,), nprocs=2)
    before = deepcopy(model.state_dict())
    train(model, model, x, labels)
    ends = [torch.load(tmp_path / f"end{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(ends[0][name], ends[1][name]), name
        assert not torch.equal(tensor, before[name]), name
        torch.testing.assert_close(ends[0][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    model.load_state_dict(ends[0])
    assert_deploy_equal(model, x[0])
