"""The distillation losses against their definitions in float64, position by position."""

import pytest
import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError, ShapeError
from bitlayers.training import attention_relation_loss, logits_distillation_loss


def divergence(student: Tensor, teacher: Tensor) -> float:
    """KL(teacher || student) of two vectors of logits."""
    p, q = teacher.double().softmax(0), student.double().softmax(0)
    return (p * (p.log() - q.log())).sum().item()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [True, False])
def test_logits(temperature: float, masked: bool) -> None:
    student, teacher = torch.randn(3, 5, 11, requires_grad=True), torch.randn(3, 5, 11, requires_grad=True)
    mask = torch.rand(3, 5) > 0.4 if masked else torch.ones(3, 5, dtype=torch.bool)
    mask[0, 0] = True
    loss = logits_distillation_loss(student, teacher, temperature, mask if masked else None)
    places = mask.nonzero().tolist()
    parts = [divergence(student[b, t] / temperature, teacher[b, t] / temperature) for b, t in places]
    assert loss.item() == pytest.approx(temperature**2 * sum(parts) / len(parts), rel=1e-4)
    loss.backward()
    assert teacher.grad is None
    assert not student.grad[~mask].any()
    gap = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    expected = temperature * gap * mask.unsqueeze(-1) / mask.sum()
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-6)


def test_equal_logits_cost_nothing_in_any_dtype() -> None:
    logits = torch.randn(4, 7).bfloat16()
    assert logits_distillation_loss(logits, logits, 2.0).item() == 0
    assert logits_distillation_loss(logits, logits).dtype == torch.float32
    logits[:, 3] = -torch.inf  # a class that neither can give
    assert logits_distillation_loss(logits, logits).item() == 0
    assert logits_distillation_loss(logits, logits, mask=torch.zeros(4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_relations(causal: bool, masked: bool) -> None:
    heads, length = 3, 6
    student, teacher = torch.randn(2, length, 12, requires_grad=True), torch.randn(2, length, 18, requires_grad=True)
    mask = torch.ones(2, length, dtype=torch.bool)
    if masked:
        mask[0, :2] = mask[1, 4:] = False  # padding on the left, and on the right
    loss = attention_relation_loss(student, teacher, heads, mask if masked else None, causal)
    parts = []
    for b in range(2):
        for h in range(heads):
            rows = [x[b, :, h * x.shape[2] // heads : (h + 1) * x.shape[2] // heads] for x in (student, teacher)]
            for i in range(length):
                keys = [j for j in range(length) if mask[b, j] and (j <= i or not causal)]
                if mask[b, i]:
                    relations = [x[keys] @ x[i] / x.shape[1] ** 0.5 for x in rows]
                    parts.append(divergence(*relations))
    assert loss.item() == pytest.approx(sum(parts) / len(parts), rel=1e-4)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert not student.grad[~mask].any()
    assert student.grad[mask].any()


def test_distillation_reaches_the_teacher() -> None:
    student, teacher = torch.randn(16, 5, requires_grad=True), torch.randn(16, 5)
    optimizer = torch.optim.Adam([student], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = logits_distillation_loss(student, teacher, 2.0)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(student.softmax(-1), teacher.softmax(-1), rtol=0.05, atol=0.01)


def test_wrong_arguments_are_named() -> None:
    x = torch.randn(2, 3, 8)
    with pytest.raises(ShapeError, match=r"teacher is of shape \[2, 3, 7\], expected \[2, 3, 8\], as student"):
        logits_distillation_loss(x, x[..., :7])
    with pytest.raises(ArgumentError, match="temperature is 0, expected a positive number"):
        logits_distillation_loss(x, x, 0)
    with pytest.raises(ShapeError, match=r"mask is of shape \[3\], expected \[2, 3\]"):
        logits_distillation_loss(x, x, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"teacher is of shape \[2, 2, 8\] for a student of \[2, 3, 8\]"):
        attention_relation_loss(x, x[:, :2], 2)
    with pytest.raises(ShapeError, match="student is 8 wide, expected a multiple of relation_heads, 3"):
        attention_relation_loss(x, x, 3)
