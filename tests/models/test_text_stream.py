"""Text as tokens come: what decoding all of them would give, by decoding a few."""

import random
from collections.abc import Sequence

import pytest
import torch
from real_tokenizers import KINDS, WORDS, real_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from bitmodels.generation import start_generation
from bitmodels.text_stream import TextStream
from bitmodels.transformer_config import BitTransformerConfig

UNFINISHED = "\ufffd"
MOST_DECODED = 40  # tokens together, in a text of a thousand


class CountingTokenizer:
    """Knows how many tokens were decoded together, at most."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.most = tokenizer, 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.most = max(self.most, len(token_ids))
        return self.tokenizer.decode(token_ids)


def texts() -> list[str]:
    rng = random.Random(torch.initial_seed())
    words = WORDS.split(" ")
    scrambled = ["".join(rng.choices(WORDS, k=200)), " ".join(rng.choices(words, k=100)), "😀é€你" * 20]
    return [WORDS, WORDS[::-1], "", " ", "  two  spaces", *scrambled]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_text(kind: str) -> None:
    tokenizer = real_tokenizer(kind)
    for text in texts():
        ids = tokenizer.encode(text).ids
        stream = TextStream(tokenizer.decode)
        pieces = [stream.add(token) for token in ids]
        pieces.append(stream.end())
        assert "".join(pieces) == stream.text == tokenizer.decode(ids)
        assert not any(UNFINISHED in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = real_tokenizer("byte level")
    for text in texts():
        ids = tokenizer.encode(text).ids
        stream = TextStream(tokenizer.decode)
        for count, token in enumerate(ids, 1):
            stream.add(token)
            assert stream.text == tokenizer.decode(ids[:count]).rstrip(UNFINISHED)


def test_any_tokens_of_bytes_give_the_text_in_the_end() -> None:
    """Also those that never become a character, and runs of them."""
    tokenizer = real_tokenizer("byte level")
    rng = random.Random(torch.initial_seed())
    size = tokenizer.get_vocab_size()
    within = [token for text, token in tokenizer.get_vocab().items() if not tokenizer.decode([token]).isascii()]
    sequences = [rng.choices(tokens, k=length) for tokens in (range(size), within) for length in (1, 5, 50, 500)]
    sequences += [[token] * 100 for token in rng.choices(within, k=20)]
    for ids in sequences:
        stream = TextStream(tokenizer.decode)
        streamed = "".join(map(stream.add, ids))
        assert len(tokenizer.decode(ids)) - len(streamed) <= 3
        assert streamed + stream.end() == stream.text == tokenizer.decode(ids)


def test_bytes_that_never_became_a_character_come_at_the_end() -> None:
    tokenizer = real_tokenizer("byte level")
    stream = TextStream(tokenizer.decode)
    *ids, _ = tokenizer.encode("a€").ids
    assert [stream.add(token) for token in torch.tensor(ids)] == ["a", "", ""]
    assert stream.end() == UNFINISHED
    assert stream.end() == ""
    assert stream.text == f"a{UNFINISHED}"


def test_a_wrong_byte_takes_nothing_back() -> None:
    """Decoded as a whole, such a run of bytes is nothing but wrong ones."""
    tokenizer = real_tokenizer("byte fallback")
    stream = TextStream(tokenizer.decode)
    ids = [tokenizer.token_to_id(token) for token in ("<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "a", "▁", "b")]
    assert [stream.add(token) for token in ids] == ["", "", "€", "", "\ufffda", " ", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_few_tokens_are_decoded_together(kind: str) -> None:
    tokenizer = real_tokenizer(kind)
    counting = CountingTokenizer(tokenizer)
    stream = TextStream(counting.decode)
    ids = tokenizer.encode(WORDS * 9).ids + [tokenizer.get_vocab_size() - 1] * 99
    assert len(ids) > 500
    text = "".join(map(stream.add, ids)) + stream.end()
    assert text == tokenizer.decode(ids)
    assert counting.most < MOST_DECODED


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_leave_the_text_as_it_is(kind: str) -> None:
    tokenizer = real_tokenizer(kind)
    ids = [token for token in tokenizer.encode("one more word, and naïve").ids for token in (0, token, 0, 0)]
    stream = TextStream(tokenizer.decode)
    assert "".join(map(stream.add, ids)) + stream.end() == tokenizer.decode(ids) == "one more word, and naïve"


# Stop strings


class Script:
    """A language model that says what is written, whatever it is asked: rows of tokens."""

    def __init__(self, rows: list[list[int]], vocab_size: int) -> None:
        self.config = BitTransformerConfig(vocab_size=vocab_size, max_length=4096)
        self.rows, self.said = rows, 0

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, cache: None) -> Tensor:
        logits = torch.zeros(len(self.rows), self.config.vocab_size)
        for row, tokens in enumerate(self.rows):
            logits[row, tokens[self.said] if self.said < len(tokens) else 0] = 1.0
        self.said += 1
        return logits


def generated(tokenizer: object, rows: list[list[int]], vocab_size: int, stop_strings: list[str]) -> list[list[int]]:
    """The new tokens of each row, without what fills it up."""
    script = Script(rows, vocab_size)
    _, tokens = start_generation(
        script,
        [[1]] * len(rows),
        max_new_tokens=max(map(len, rows)),
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        use_cache=False,
    )
    return [[token for token in row if token != vocab_size - 1] for row in torch.stack(list(tokens), 1).tolist()]


def until(tokenizer: Tokenizer, ids: list[int], stop_strings: list[str]) -> list[int]:
    """`ids` until a stop string is in their text, found by decoding all of them again and again."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count]).rstrip(UNFINISHED)
        if any(string in text for string in stop_strings):
            return ids[:count]
    return ids


@pytest.mark.parametrize(
    "stop_strings",
    [["\n\n"], ["世界"], ["😀"], ["\u200d👧"], ["return x"], ["x", "nowhere"], ["nowhere"], [" "], ["…"]],
)
@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_each_row_ends_with_the_token_that_completes_a_stop_string(kind: str, stop_strings: list[str]) -> None:
    tokenizer = real_tokenizer(kind)
    rows = [tokenizer.encode(text).ids for text in (WORDS, WORDS[40:], "a" + WORDS[::-1], "nothing", WORDS[60:])]
    counting = CountingTokenizer(tokenizer)
    rows = [ids + [0] * (max(map(len, rows)) - len(ids)) for ids in rows]  # a special token, which has no text
    got = generated(counting, rows, tokenizer.get_vocab_size() + 1, stop_strings)
    assert got == [until(tokenizer, ids, stop_strings) for ids in rows]
    assert counting.most < MOST_DECODED
