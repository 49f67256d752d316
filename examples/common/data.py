"""Data: what a program trains on and what it validates with."""

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

Items = Dataset[tuple[Tensor, ...]]  # (input, target); indexed by lists: dataset[[3, 5]] is ([2, ...], [2, ...])


@dataclass(frozen=True)
class Data:
    """Items to train on, other items to validate with, and what they are in words."""

    description: str
    training: Items
    validation: TensorDataset
