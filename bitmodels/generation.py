"""Generating tokens: the loop around a language model, with its cache, stopping and streaming."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor
from typing_extensions import TypedDict

from bitcore.exceptions import ArgumentError, NonFiniteError, ShapeError
from bitmodels.prompts import Prompts
from bitmodels.sampling import SamplingConfig, sampling_config
from bitmodels.text_stream import TextStream
from bitmodels.transformer_cache import TransformerCache
from bitmodels.transformer_config import BitTransformerConfig

FEWEST_STEPS = 16  # for fewer a faster step is not worth being made


class Tokenizer(Protocol):
    """What stop strings need of a tokenizer; those of `transformers` and `tokenizers` have it."""

    def decode(self, token_ids: Any) -> Any:
        """The text of a list of tokens."""


class GenerationOptions(TypedDict, total=False):
    """The options of BitTransformerModel.generate, which explains them."""

    attention_mask: Tensor | None
    max_new_tokens: int | None
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None
    stop_strings: str | Sequence[str]
    tokenizer: Tokenizer | None
    generator: torch.Generator | None
    use_cache: bool


class LanguageModel(Protocol):
    """What generation needs of a model."""

    @property
    def config(self) -> BitTransformerConfig:
        """Its sizes and special tokens."""

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, cache: TransformerCache | None) -> Tensor:
        """The logits [batch, vocabulary] of the token after the last position."""

    def new_cache(self, batch_size: int, max_length: int | None = None) -> TransformerCache:
        """An empty cache."""

    def steps_from(self, cache: TransformerCache) -> Callable[[Tensor], Tensor] | None:
        """A faster way from tokens [batch, 1] to the next logits, from a filled cache on, or None."""


class Stopping:
    """Which rows of a batch have ended: by an end-of-sequence token, or by a string in what was generated."""

    def __init__(
        self, batch_size: int, eos_token_ids: Sequence[int], stop_strings: Sequence[str], tokenizer: Tokenizer | None
    ) -> None:
        if not all(isinstance(string, str) and string for string in stop_strings):
            raise ArgumentError("stop_strings", list(stop_strings), "strings, and no empty string")
        self.rows: list[StopStrings] = []
        if stop_strings:
            if tokenizer is None or not hasattr(tokenizer, "decode"):
                expected = "the tokenizer, to find stop_strings in what is generated"
                raise ArgumentError("tokenizer", repr(tokenizer), expected)
            self.rows = [StopStrings(stop_strings, tokenizer) for _ in range(batch_size)]
        self.finished = torch.zeros(batch_size, dtype=torch.bool)
        self.eos_token_ids = torch.tensor(list(eos_token_ids), dtype=torch.long)

    def add(self, tokens: Tensor) -> None:
        """Takes the next token of each row, int64 [batch] on the CPU."""
        self.finished |= torch.isin(tokens, self.eos_token_ids)
        for index, row in enumerate(self.rows):
            if not self.finished[index]:
                self.finished[index] = row.found_with(int(tokens[index]))


class StopStrings:
    """Looks for strings in the text of one row."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self._strings = tuple(strings)
        self._stream = TextStream(tokenizer.decode)
        self._kept = max(map(len, self._strings)) - 1  # characters that may begin a string which the next token ends
        self._end = ""

    def found_with(self, token: int) -> bool:
        """Whether the text has one of the strings, now that `token` has come."""
        text = self._end + self._stream.add(token)
        self._end = text[max(0, len(text) - self._kept) :]
        return any(string in text for string in self._strings)


def start_generation(
    model: LanguageModel,
    input_ids: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> tuple[Tensor, Iterator[Tensor]]:
    """The prompts [batch, length], padded on the left, and the tokens [batch] to come, once all has been checked."""
    config = model.config
    eos_token_ids = _as_tuple(config.eos_token_id if eos_token_id is None else eos_token_id)
    for token in eos_token_ids:
        if not isinstance(token, SupportsIndex):
            raise ArgumentError("eos_token_id", repr(token), "a token, or several")
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    if pad is None:
        pad = next((token for token in eos_token_ids if 0 <= token < config.vocab_size), 0)
    if not isinstance(pad, SupportsIndex) or not 0 <= pad < config.vocab_size:
        raise ArgumentError("pad_token_id", repr(pad), f"a token of 0 to {config.vocab_size - 1}, the vocabulary")
    prompts = Prompts.of(input_ids, attention_mask, pad, config.vocab_size)
    batch_size, length = prompts.input_ids.shape
    room = _room(config.max_length, length, max_new_tokens)
    stopping = Stopping(batch_size, eos_token_ids, _as_tuple(stop_strings), tokenizer)
    sampling = sampling_config(do_sample, temperature, top_k, top_p)
    tokens = _tokens(model, prompts, room, stopping, pad, sampling, generator, use_cache)
    return prompts.input_ids, tokens


@torch.no_grad()
def _tokens(
    model: LanguageModel,
    prompts: Prompts,
    max_new_tokens: int,
    stopping: Stopping,
    pad_token_id: int,
    sampling: SamplingConfig | None,
    generator: torch.Generator | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    input_ids, mask = prompts.input_ids, prompts.attention_mask
    batch_size, length = input_ids.shape
    cache = model.new_cache(batch_size, length + max_new_tokens) if use_cache else None
    step = None
    for count in range(max_new_tokens):
        if count == 1 and cache is not None and mask is None and max_new_tokens >= FEWEST_STEPS:
            step = model.steps_from(cache)
        logits = model.next_logits(input_ids, mask, cache) if step is None else step(input_ids)
        if count == 0 and bool(logits.isnan().any()):
            raise NonFiniteError("logits", "NaN", "numbers: a weight of the model is NaN, or an activation overflows")
        tokens = logits.argmax(-1) if sampling is None else sampling.sample(logits, generator)
        tokens = tokens.cpu().masked_fill(stopping.finished, pad_token_id)
        yield tokens
        stopping.add(tokens)
        if bool(stopping.finished.all()):
            return
        next_ids = tokens.unsqueeze(1)
        input_ids = next_ids if use_cache else torch.cat([input_ids, next_ids], 1)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(batch_size, 1)], 1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


def _room(max_length: int, length: int, max_new_tokens: int | None) -> int:
    """How many tokens may follow prompts of `length`."""
    room = max_length - length
    if room < 1:
        expected = f"at most {max_length - 1}, one less than the context: shorten the prompt"
        raise ShapeError("input_ids", f"{length} tokens long", expected)
    if max_new_tokens is None:
        return room
    if not isinstance(max_new_tokens, SupportsIndex) or not 1 <= max_new_tokens <= room:
        expected = f"1 to {room}: the context has {max_length} positions, the longest prompt {length}"
        raise ArgumentError("max_new_tokens", repr(max_new_tokens), expected)
    return max_new_tokens
