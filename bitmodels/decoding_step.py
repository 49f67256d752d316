"""DecodingStep: the step from one token to the next on a CPU, one operator for all layers, with no Python within."""

from contextlib import suppress
from operator import is_

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bitcore.exceptions import ArgumentError
from bitcore.ops.decoder import OpenDecoder
from bitlayers.changes import CountsChanges
from bitmodels.decoder import Decoding
from bitmodels.packed_decoder import kernel_of, norms_of, open_decoder, projections_of, why_not
from bitmodels.transformer_cache import TransformerCache


class DecodingStep:
    """The logits of the next token from one operator: for a batch without padding, from a filled cache on.

    Bit for bit those of `model.next_logits`, without gradients. A model or cache that has changed between two steps is
    noticed; where the operator does not serve any more, `next_logits` does, and says what is wrong.

    Args:
        model: in eval mode, on a CPU.
        cache: of the positions before; every step adds one. Not of a sliding window.

    Raises:
        ArgumentError: the operator does not serve the model with this cache.
    """

    def __init__(self, model: Decoding, cache: TransformerCache) -> None:
        reason = why_not(model, cache)
        if reason is not None:
            raise ArgumentError("model", reason, "one that a decoder's step on a CPU serves")
        self._model, self._cache = model, cache
        self._decoder: OpenDecoder | None = None
        self._open()

    @staticmethod
    def serves(model: Decoding, cache: TransformerCache) -> bool:
        """Whether the operator serves the model with this cache."""
        return why_not(model, cache) is None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor) -> Tensor:
        """The logits [batch, vocab_size] after input_ids [batch, 1]; overwritten by the next call.

        Raises:
            ShapeError: the cache or the context is full, or input_ids do not fit.
            IndexError: a token is not in the vocabulary.
        """
        if not self._is_current():
            self._open()
        outputs = self._outputs(input_ids)
        if outputs is None:
            return self._model.next_logits(input_ids, None, self._cache)
        self._cache.length += 1
        for layer in self._cache.layers:
            layer.length = self._cache.length
        return outputs

    def _outputs(self, input_ids: Tensor) -> Tensor | None:
        """The logits, or None where `next_logits` has to serve or to say what is wrong."""
        decoder, past, keys = self._decoder, self._cache.length, self._cache.layers[0].keys
        room = min(keys.shape[2], self._model.model.config.max_length)
        if decoder is None or past >= room or input_ids.shape != (keys.shape[0], 1) or input_ids.dtype != torch.int64:
            return None
        model, tokens = self._model.model, input_ids.reshape(-1)
        try:
            inputs = tokens if decoder.takes_tokens else model.embed_tokens(tokens).to(model.norm.weight.dtype)
            outputs = decoder.step(inputs, past)
        except RuntimeError:  # no token of the vocabulary, another device, or memory that is not what it was
            self._decoder = None
            return None
        return outputs if decoder.gives_logits else self._model.logits(outputs)

    def _open(self) -> None:
        """Lays the step out for the model as it is now."""
        self._decoder = None
        if why_not(self._model, self._cache) is not None:
            return
        decoder = self._model.model
        self._first = next(projections_of(decoder))
        self._masters = [layer.weight for layer in projections_of(decoder) if layer.weight is not None]
        self._norms = [norm._parameters for norm in norms_of(decoder)]
        self._held, self._counts = self._current_objects(), self._current_counts()
        with suppress(RuntimeError):  # of tensors that do not fit each other: the layers say which
            self._decoder = open_decoder(self._model, self._cache)

    def _is_current(self) -> bool:
        """Whether nothing has been put in the place of what the operator holds."""
        return (
            self._decoder is not None
            and self._counts == self._current_counts()
            and all(map(is_, self._held, self._current_objects()))
        )

    def _current_objects(self) -> list[object]:
        """What can be exchanged without being counted."""
        decoder = self._model.model
        objects: list[object] = [kernel_of(self._first, decoder.norm.weight.dtype), decoder, self._model.lm_head]
        objects += decoder.layers
        objects += [norm["weight"] for norm in self._norms]
        for layer in self._cache.layers:
            objects += (layer.keys, layer.values)
        return objects

    def _current_counts(self) -> list[int]:
        """Of changes to layers, of hooks, and of changes to weights that are not deployed."""
        return [CountsChanges.changes, RemovableHandle.next_id, *(master._version for master in self._masters)]
