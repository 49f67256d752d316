"""DecodingGraph: the step from one token to the next on a GPU, captured once and replayed, with no Python within."""

from typing import Protocol

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError
from bitlayers import KeyValueCache
from bitmodels.decoder import BitDecoder
from bitmodels.transformer_cache import TransformerCache


class Decoding(Protocol):
    """What the graph needs of a language model, such as BitTransformerModel."""

    @property
    def model(self) -> BitDecoder:
        """Everything but the head."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The head alone."""


class FixedLengthCache:
    """The memory of a KeyValueCache, written at a position that a tensor holds, and always read whole."""

    def __init__(self, cache: KeyValueCache, position: Tensor, allowed: Tensor) -> None:
        self._cache = cache
        self.length = position  # int64 [1]
        self.allowed = allowed  # bool [1, max_length]: the positions so far and this one

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one position; returns all, those that are not `allowed` among them."""
        self._cache.keys.index_copy_(2, self.length, keys)
        self._cache.values.index_copy_(2, self.length, values)
        return self._cache.keys, self._cache.values


class DecodingGraph:
    """The logits of the next token as one CUDA graph: for a batch without padding, from a filled cache on.

    Args:
        model: in eval mode, on a GPU.
        cache: of the positions before; every step adds one. Not of a sliding window.
        compile: let torch.compile fuse the small operations first: about a minute, once a process and model.

    Raises:
        ArgumentError: the cache is not on a GPU, or slides.
    """

    def __init__(self, model: Decoding, cache: TransformerCache, *, compile: bool = False) -> None:
        first = cache.layers[0]
        if not self.serves(cache):
            raise ArgumentError("cache", f"{type(first).__name__} on {first.keys.device}", "KeyValueCache on a GPU")
        self._model, self._cache = model, cache
        device, self._room = first.keys.device, first.max_length
        self._input_ids = torch.zeros(first.keys.shape[0], 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        step = torch.compile(self._step) if compile else self._step
        with torch.no_grad():
            self._position.fill_(self._room - 1)  # what trying writes there is overwritten before it is read
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(3):  # compiles, and lets libraries allocate
                    step()
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # others may go on
                self._logits = step()

    @staticmethod
    def serves(cache: TransformerCache) -> bool:
        """Whether steps of this cache can be captured."""
        return type(cache.layers[0]) is KeyValueCache and cache.layers[0].keys.is_cuda

    def __call__(self, input_ids: Tensor) -> Tensor:
        """The logits [batch, vocab_size] after input_ids [batch, 1]; overwritten by the next call.

        Raises:
            ArgumentError: the cache is full.
        """
        if self._cache.length >= self._room:
            raise ArgumentError("cache", f"full: {self._room} positions", "room for another")
        self._input_ids.copy_(input_ids)
        self._position.fill_(self._cache.length)
        self._graph.replay()
        self._cache.length += 1
        for layer in self._cache.layers:
            layer.length = self._cache.length
        return self._logits

    def _step(self) -> Tensor:
        positions = torch.arange(self._room, device=self._position.device)
        allowed = (positions <= self._position).unsqueeze(0)
        caches = [FixedLengthCache(layer, self._position, allowed) for layer in self._cache.layers]
        hidden = self._model.model.run(self._input_ids, self._position, None, caches)
        return self._model.logits(hidden[:, -1])
