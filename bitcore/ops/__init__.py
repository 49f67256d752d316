"""Functional forms of the layers, and what torch.compile and torch.export need to know of the compiled operators."""

from bitcore.ops import bitlinear, fakes

__all__ = ["bitlinear", "fakes"]
