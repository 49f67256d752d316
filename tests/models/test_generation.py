"""Generation: the same tokens whatever computes them, stopping, sampling, bad input."""

from collections.abc import Iterator

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers_of_all_kinds import KINDS, clear_prompt, make

from bitcore.exceptions import ArgumentError, DtypeError, LayerStateError, NonFiniteError, ShapeError
from bitcore.kernels import KernelRegistry
from bitmodels.sampling import SamplingConfig
from bitmodels.transformer import BitTransformerModel


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


NEW = 5  # tokens


def greedy(model: BitTransformerModel, prompt: list[int], **options: object) -> list[int]:
    return model.generate([prompt], max_new_tokens=NEW, **options)[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_do_not_depend_on_how_they_are_computed(kind: str, two_threads: None) -> None:
    model = make(kind).deploy()
    prompts = [clear_prompt(model, length, NEW) for length in (5, 2, 9)]
    expected = [greedy(model, prompt) for prompt in prompts]
    assert [tokens[: len(prompt)] for tokens, prompt in zip(expected, prompts, strict=True)] == prompts
    batch = model.generate(prompts, max_new_tokens=NEW).tolist()
    for row, prompt, tokens in zip(batch, prompts, expected, strict=True):
        assert row[9 - len(prompt) :] == tokens
    assert [greedy(model, prompt, use_cache=False) for prompt in prompts] == expected
    with KernelRegistry.use("reference"):
        assert greedy(model, prompts[0]) == expected[0]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert greedy(model, prompts[0]) == expected[0]


def test_greedy_tokens_are_the_likeliest() -> None:
    model = make("llama").eval()
    prompt = clear_prompt(model, 3, NEW)
    tokens = greedy(model, prompt)
    logits = model(torch.tensor([tokens]))[0]
    assert logits.argmax(-1)[2:-1].tolist() == tokens[3:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_tensor_is_on_any_side(side: str) -> None:
    model = make("bitnet").deploy()
    prompts = [[5, 6], [7, 8, 9, 10]]
    rows = [
        [0] * (4 - len(prompt)) + prompt if side == "left" else prompt + [0] * (4 - len(prompt)) for prompt in prompts
    ]
    mask = torch.tensor([[0, 0, 1, 1] if side == "left" else [1, 1, 0, 0], [1, 1, 1, 1]])
    got = model.generate(torch.tensor(rows), attention_mask=mask, max_new_tokens=8)
    assert torch.equal(got, model.generate(prompts, max_new_tokens=8))


def test_a_stream_gives_the_same_tokens_as_they_come() -> None:
    model = make("llama").deploy()
    prompts = torch.randint(50, (2, 5))
    stream = model.generate(prompts, max_new_tokens=8, stream=True)
    first = next(stream)
    assert torch.is_grad_enabled()
    tokens = torch.stack([first, *stream], 1)
    assert torch.equal(tokens, model.generate(prompts, max_new_tokens=8)[:, 5:])


def test_rows_end_at_the_end_token_and_are_padded() -> None:
    model = make("llama").deploy()
    prompts = torch.randint(50, (2, 3))
    free = model.generate(prompts, max_new_tokens=8)[:, 3:]
    end = int(free[0, 2])
    got = model.generate(prompts, max_new_tokens=8, eos_token_id=[end, 49], pad_token_id=7)[:, 3:]
    for row, tokens in zip(got.tolist(), free.tolist(), strict=True):
        ends = [index for index, token in enumerate(tokens) if token in (end, 49)]
        length = ends[0] + 1 if ends else 8
        assert row[:length] == tokens[:length]
        assert set(row[length:]) <= {7}
    configured = make("llama", eos_token_id=end).deploy()
    configured.load_state_dict(model.state_dict())
    assert (
        configured.generate(prompts[:1], max_new_tokens=8)[0, 3:].tolist()
        == free[0, : free[0].tolist().index(end) + 1].tolist()
    )


class LetterTokenizer:
    """Token 7 is "h"."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in token_ids)


def test_rows_end_at_a_stop_string() -> None:
    model = make("llama").deploy()
    prompt = [5, 6, 7]
    tokenizer = LetterTokenizer()
    free = model.generate([prompt], max_new_tokens=8)[0, 3:].tolist()
    text = tokenizer.decode(free)
    for stop in (text[2:4], [text[5:], text[4:6]]):
        got = model.generate([prompt], max_new_tokens=8, stop_strings=stop, tokenizer=tokenizer)[0, 3:].tolist()
        ends = min(text.index(string) + len(string) for string in ([stop] if isinstance(stop, str) else stop))
        assert got == free[:ends]
    with pytest.raises(ArgumentError, match="tokenizer is None, expected the tokenizer, to find stop_strings"):
        model.generate([prompt], stop_strings="x")


@pytest.mark.parametrize("temperature", [None, 0.7, 1.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 90])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.9, 1.0])
def test_sampling_is_from_the_distribution_of_transformers(
    temperature: float | None, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.randn(3, 40)
    expected = logits
    for value, warper in ((temperature, TemperatureLogitsWarper), (top_k, TopKLogitsWarper), (top_p, TopPLogitsWarper)):
        if value is not None:
            expected = warper(value)(None, expected)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    config = SamplingConfig(**{name: value for name, value in given.items() if value is not None})
    torch.testing.assert_close(config.filtered(logits).softmax(-1), expected.softmax(-1))
    tokens = config.sample(logits.repeat(50, 1))
    assert (expected.repeat(50, 1).gather(1, tokens.unsqueeze(1)) > -torch.inf).all()


def test_a_generator_repeats_what_is_drawn() -> None:
    model = make("llama").deploy()
    # Hot: the likeliest of a random model's tokens can be as good as certain.
    options = {"max_new_tokens": 20, "do_sample": True, "temperature": 20.0}
    drawn = [
        model.generate([[1, 2]], **options, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4, 5)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])
    only = model.generate([[1, 2]], max_new_tokens=5, do_sample=True, top_k=1)
    assert torch.equal(only, model.generate([[1, 2]], max_new_tokens=5))


@pytest.mark.parametrize(
    ("input_ids", "options", "error", "message"),
    [
        ([], {}, ShapeError, "without a prompt"),
        ([[1], []], {}, ShapeError, "without a token in row 1"),
        ([[1, 50]], {}, ArgumentError, "from 1 to 50 in row 0, expected tokens of 0 to 49"),
        ([[-1]], {}, ArgumentError, "from -1 to -1"),
        ([[0.5]], {}, DtypeError, "an integer dtype"),
        ([[[1]]], {}, ShapeError, "row of shape"),
        ("text", {}, DtypeError, "input_ids is 'text', expected lists of tokens, which a tokenizer makes"),
        ([[1, "a"]], {}, DtypeError, "lists of tokens"),
        ([[1, None]], {}, DtypeError, "lists of tokens"),
        (torch.tensor([1, 2]), {}, ShapeError, r"of shape \[2\], expected \[batch, length\]"),
        ([[1] * 32], {}, ShapeError, "32 tokens long, expected at most 31, .*shorten the prompt"),
        ([[1] * 30], {"max_new_tokens": 3}, ArgumentError, "max_new_tokens is 3, expected 1 to 2: the context has 32"),
        ([[1]], {"max_new_tokens": 0}, ArgumentError, "max_new_tokens is 0"),
        ([[1]], {"max_new_tokens": 2.5}, ArgumentError, "max_new_tokens is 2.5, expected 1 to 31"),
        ([[1]], {"eos_token_id": "</s>"}, ArgumentError, "eos_token_id is '</s>', expected a token, or several"),
        ([[1]], {"eos_token_id": 1.5}, ArgumentError, "eos_token_id is 1.5"),
        ([[1]], {"temperature": 0.5}, ArgumentError, "temperature is given with do_sample=False"),
        ([[1]], {"temperature": 0.0, "do_sample": True}, ArgumentError, "temperature is 0.0"),
        ([[1]], {"top_p": 1.5, "do_sample": True}, ArgumentError, "top_p is 1.5"),
        ([[1]], {"top_k": 0, "do_sample": True}, ArgumentError, "top_k is 0"),
        ([[1]], {"pad_token_id": 50}, ArgumentError, "pad_token_id is 50"),
        ([[1]], {"stop_strings": [""], "tokenizer": LetterTokenizer()}, ArgumentError, "no empty string"),
        ([[1]], {"stop_strings": [5], "tokenizer": LetterTokenizer()}, ArgumentError, r"\[5\], expected strings"),
        (
            [[1]],
            {"stop_strings": "a", "tokenizer": "gpt2"},
            ArgumentError,
            "tokenizer is 'gpt2', expected the tokenizer",
        ),
        ([[1]], {"attention_mask": torch.ones(1, 1)}, ArgumentError, "lists need no padding"),
        (torch.tensor([[1]]), {"attention_mask": [[1]]}, ArgumentError, "attention_mask is a list, expected a tensor"),
        ([[1]], {"max_tokens": 3}, ArgumentError, "generate is given max_tokens, expected only .* max_new_tokens, "),
        (torch.tensor([[1]]), {"attention_mask": torch.ones(1, 2)}, ShapeError, "attention_mask is of shape"),
        (
            torch.tensor([[1]]),
            {"attention_mask": torch.full((1, 1), -2.5)},
            ArgumentError,
            "attention_mask is from -2.5 ",
        ),
        (torch.tensor([[1]]), {"attention_mask": torch.zeros(1, 1)}, ShapeError, "without a token in row 0"),
    ],
)
def test_bad_input_is_refused_at_once(input_ids: object, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make("llama").deploy().generate(input_ids, stream=True, **options)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = make("llama").deploy()
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    for options in ({}, {"do_sample": True}):
        with pytest.raises(NonFiniteError, match="logits is NaN, expected numbers: a weight of the model is NaN"):
            model.generate([[1]], max_new_tokens=2, **options)


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float) -> None:
    logits = 1e4 * torch.randn(3, 40)
    for config in (SamplingConfig(temperature=temperature), SamplingConfig(temperature=temperature, top_p=0.9)):
        assert torch.equal(config.sample(logits), logits.argmax(-1))


def test_an_end_token_that_no_model_says_does_not_fill_rows() -> None:
    """As of a tokenizer with more tokens than the model."""
    model = make("llama").deploy()
    free = model.generate([[1, 2]], max_new_tokens=8)[0].tolist()
    for ends, padding in (([50], 0), ([50, -1, free[3]], free[3])):
        rows = model.generate([[1, 2], [5, 6, 7]], max_new_tokens=8, eos_token_id=ends)
        assert rows[0, 0] == padding


def test_without_a_limit_the_context_is_filled() -> None:
    assert make("llama").deploy().generate([[1], [1, 2]]).shape == (2, 32)


def test_training_mode_is_refused() -> None:
    with pytest.raises(LayerStateError, match="BitTransformerModel is in training mode"):
        make("llama").generate([[1]])
