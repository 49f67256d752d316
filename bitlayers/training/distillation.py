"""Losses that pull a quantized student towards a dense teacher, to be added to the ordinary loss.

The pair is that of BitDistill (arXiv 2510.13998): logits, and attention relations of one layer. Computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore.exceptions import ArgumentError, ShapeError


def logits_distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), mean of all positions.

    The square keeps the size of the gradients when the temperature changes (arXiv 1503.02531).

    Args:
        student: logits [..., classes], any float dtype.
        teacher: logits of the same shape; they get no gradient.
        temperature: above 0.
        mask: bool [...], True for the positions that count (no padding); None: all.

    Returns:
        A float32 scalar; 0 where nothing counts.

    Raises:
        ShapeError, ArgumentError: the shapes differ; `temperature` is not positive.
    """
    if student.shape != teacher.shape:
        raise ShapeError("teacher", f"of shape {list(teacher.shape)}", f"{list(student.shape)}, as student")
    if not temperature > 0:
        raise ArgumentError("temperature", temperature, "a positive number")
    divergence = _divergence(student.float() / temperature, teacher.detach().float() / temperature)
    return temperature**2 * _mean(divergence, mask)


def attention_relation_loss(
    student: Tensor, teacher: Tensor, relation_heads: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """How differently student and teacher relate the positions of a sequence: MiniLMv2's loss (arXiv 2012.15828).

    Queries, keys or values A of one layer, all heads side by side, are cut anew into `relation_heads` heads of width d;
    their relations are softmax(A A^T / sqrt(d)), and the loss is KL(teacher || student), mean of all heads and
    positions. Widths may differ between student and teacher. The papers add the losses of queries, keys and values.

    Args:
        student: [batch, length, width].
        teacher: [batch, length, its own width]; it gets no gradient.
        relation_heads: divides both widths.
        mask: bool [batch, length], True for the positions that count (no padding); None: all.
        causal: relate each position to itself and earlier ones alone.

    Returns:
        A float32 scalar; 0 where nothing counts.

    Raises:
        ShapeError: the shapes do not fit each other, or `relation_heads` does not divide a width.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        shapes = f"of shape {list(teacher.shape)} for a student of {list(student.shape)}"
        raise ShapeError("teacher", shapes, "[batch, length, width] with the student's batch and length")
    length = student.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=student.device)
    allowed = allowed.tril() if causal else allowed
    if mask is not None:  # a position relates to itself even where it does not count: no row without any
        allowed = allowed & mask[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=student.device)
    divergence = _divergence(
        _relations(student, "student", relation_heads).masked_fill(~allowed, -torch.inf),
        _relations(teacher.detach(), "teacher", relation_heads).masked_fill(~allowed, -torch.inf),
    )
    counts = None if mask is None else mask[:, None, :].expand(divergence.shape)
    return _mean(divergence, counts)


def _relations(states: Tensor, argument: str, heads: int) -> Tensor:
    """Scaled products [batch, heads, length, length] of `states` [batch, length, width] with themselves."""
    if heads < 1 or states.shape[-1] % heads != 0:
        raise ShapeError(argument, f"{states.shape[-1]} wide", f"a multiple of relation_heads, {heads}")
    split = states.float().unflatten(-1, (heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    relations: Tensor = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    return relations


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension; where both are -inf counts nothing."""
    log_student, log_teacher = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    difference = (log_teacher - log_student).masked_fill(teacher == -torch.inf, 0.0)
    return (log_teacher.exp() * difference).sum(-1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of `values` where `mask` holds."""
    if mask is None:
        return values.mean() if values.numel() > 0 else values.sum()
    if mask.shape != values.shape:
        raise ShapeError("mask", f"of shape {list(mask.shape)}", f"{list(values.shape)}")
    return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)
