"""Steps of fused optimizers (torch.optim with fused=True), which change parameters and leave their version counters.

A layer in eval mode keeps its packed weight as long as its master's version stays; without this it would not notice.
"""

from functools import cache
from typing import Any

from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


@cache
def notice_fused_steps() -> None:
    """From the first call on, fused steps raise the versions of what they change, as all other optimizers do."""
    register_optimizer_step_post_hook(_raise_versions)


def _raise_versions(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version([parameter for parameter in group["params"] if parameter.grad is not None])
