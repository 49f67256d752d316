"""DecodingGraph: the step from one token to the next on a GPU, captured once and replayed, with no Python within."""

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError
from bitlayers import KeyValueCache
from bitlayers.fixed_length_cache import FixedLengthCache
from bitlayers.rotary import HalfRotary
from bitmodels.decoder import Decoding
from bitmodels.fused_step import FusedStep
from bitmodels.transformer_cache import TransformerCache


class DecodingGraph:
    """The logits of the next token as one CUDA graph: for a batch without padding, from a filled cache on.

    Args:
        model: in eval mode, on a GPU.
        cache: of the positions before; every step adds one. Not of a sliding window.

    Raises:
        ArgumentError: the cache is not on a GPU, or slides.
    """

    def __init__(self, model: Decoding, cache: TransformerCache) -> None:
        first = cache.layers[0]
        if not self.serves(cache):
            raise ArgumentError("cache", f"{type(first).__name__} on {first.keys.device}", "KeyValueCache on a GPU")
        self._model, self._cache = model, cache
        device, self._room = first.keys.device, first.max_length
        self._input_ids = torch.zeros(first.keys.shape[0], 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        with torch.no_grad():
            rotary = model.model.rotary(torch.arange(self._room, device=device))
            self._cos, self._sin = rotary.cos, rotary.sin  # [room, head_dim]
            arrivals = torch.zeros(first.keys.shape[0] * model.model.config.num_heads, dtype=torch.int32, device=device)
            self._caches = [FixedLengthCache(layer, self._position, arrivals) for layer in cache.layers]
            width = model.model.config.hidden_size
            example = torch.empty(first.keys.shape[0], 1, width, device=device, dtype=rotary.cos.dtype)
            fused = FusedStep.serves(model.model, example)
            self._run = FusedStep(model.model) if fused else model.model.run
            self._position.fill_(self._room - 1)  # what trying writes there is overwritten before it is read
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._step()  # lets libraries allocate
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # others may go on
                self._logits = self._step()

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
        rotary = HalfRotary(self._cos.index_select(0, self._position), self._sin.index_select(0, self._position))
        hidden = self._run(self._input_ids, rotary, self._caches)
        return self._model.logits(hidden[:, -1])
