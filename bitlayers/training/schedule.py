"""TwoStageSchedule: BitNet's learning rate and weight decay, high in a first stage, low and none in a second."""

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bitcore.exceptions import ArgumentError

Shape = Literal["linear", "cosine"]
WeightDecay = Literal["constant", "cosine"]


class TwoStageSchedule(LRScheduler):
    """The learning rate and weight decay of every parameter group, a step at a time ("The Era of 1-bit LLMs: Training
    Tips, Code and FAQ", Microsoft 2024; BitNet b1.58 2B4T, arXiv 2504.12285).

    With p = step / total_steps, and the group's own learning rate and weight decay as the peaks:

        lr            peak * decay(p), from `switch_at` on times `second_stage`; decay(p) is 1 - p ("linear") or
                      (1 + cos(pi p)) / 2 ("cosine"); during the first `warmup_steps` times step / warmup_steps
        weight_decay  peak ("constant"), or peak * (1 - cos(pi p / switch_at)) / 2 ("cosine", rising), from `switch_at`
                      on 0: ternary masters near a rounding edge settle there

    An ordinary LRScheduler: `step` after each optimizer step, `state_dict` to resume.

    Args:
        optimizer: its groups' "lr" and "weight_decay" are the peaks. Groups without weight decay keep none.
        total_steps: the learning rate is 0 from there on.
        switch_at: where the second stage begins, as a share of `total_steps`.
        second_stage: the second stage's peak as a share of the first one's (the report: 1.5e-3 to 1e-3).
        warmup_steps: 375 in the report.
        shape: of the learning rate: "linear" (the report) or "cosine" (2B4T).
        weight_decay: "constant" (the report) or "cosine" (2B4T).
        last_epoch: as any LRScheduler's.

    Raises:
        ArgumentError: an argument is wrong.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        switch_at: float = 0.5,
        second_stage: float = 2 / 3,
        warmup_steps: int = 375,
        shape: Shape = "linear",
        weight_decay: WeightDecay = "constant",
        last_epoch: int = -1,
    ) -> None:
        if total_steps < 1:
            raise ArgumentError("total_steps", total_steps, "1 or more")
        if not 0 < switch_at <= 1:
            raise ArgumentError("switch_at", switch_at, "a share of total_steps, above 0 and at most 1")
        if not 0 < second_stage <= 1:
            raise ArgumentError("second_stage", second_stage, "above 0 and at most 1")
        if not 0 <= warmup_steps <= switch_at * total_steps:
            raise ArgumentError("warmup_steps", warmup_steps, f"0 to {switch_at * total_steps:g}, the first stage")
        if shape not in ("linear", "cosine"):
            raise ArgumentError("shape", repr(shape), "'linear' or 'cosine'")
        if weight_decay not in ("constant", "cosine"):
            raise ArgumentError("weight_decay", repr(weight_decay), "'constant' or 'cosine'")
        self.total_steps = total_steps
        self.switch_at = switch_at
        self.second_stage = second_stage
        self.warmup_steps = warmup_steps
        self.shape = shape
        self.weight_decay = weight_decay
        if last_epoch == -1:
            for group in optimizer.param_groups:
                group.setdefault("initial_weight_decay", group.get("weight_decay", 0.0))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The learning rate of each group at the present step."""
        return [peak * self._lr_factor(self.last_epoch) for peak in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Sets learning rate and weight decay of the next optimizer step."""
        super().step(epoch)
        factor = self._weight_decay_factor(self.last_epoch)
        for group in self.optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = group["initial_weight_decay"] * factor

    def _lr_factor(self, step: int) -> float:
        progress = min(step / self.total_steps, 1.0)
        decay = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        warmup = min(step / self.warmup_steps, 1.0) if self.warmup_steps > 0 else 1.0
        return decay * warmup * (self.second_stage if progress >= self.switch_at else 1.0)

    def _weight_decay_factor(self, step: int) -> float:
        progress = step / self.total_steps
        if progress >= self.switch_at:
            return 0.0
        return 1.0 if self.weight_decay == "constant" else (1 - math.cos(math.pi * progress / self.switch_at)) / 2
