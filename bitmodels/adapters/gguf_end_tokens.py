"""End-of-sequence tokens in the metadata of a GGUF file: several keys, and tokens that are known by their text.

As llama.cpp's src/llama-vocab.cpp has it (`special_eog_ids`): a generation ends with the tokens of these keys, and with
every token that is one of these texts, for most files name one token where a model has two, such as Llama 3's
<|end_of_text|> and <|eot_id|>. It knows more texts, of models that are not read here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bitcore.exceptions import ArgumentError, CheckpointError

TOKENS = "tokenizer.ggml.tokens"
WRITTEN_KEYS = ("eos", "eot", "eom")  # of a sequence, a turn, a message
READ_KEYS = (*WRITTEN_KEYS, "fim_pad", "fim_rep", "fim_sep")  # the last three: of code that fills a gap
END_OF_MESSAGE = "<|eom_id|>"
END_TEXTS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|end_of_text|>",
        "<|end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|im_end|>",
        END_OF_MESSAGE,
    }
)


def read_end_tokens(metadata: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    """What ends a generation: `eos_token_id` of a config. The token that the file names as such comes first.

    Raises:
        CheckpointError: a key has another value than a token.
    """
    found = []
    for key in map(_full_key, READ_KEYS):
        token = metadata.get(key)
        if token is None:
            continue
        if type(token) is not int:
            raise CheckpointError(f"{key} is {token!r}, expected a token")
        found.append(token)
    texts = metadata.get(TOKENS)
    found += [index for index, text in enumerate(texts if isinstance(texts, list) else []) if _is_end(text)]
    tokens = tuple(dict.fromkeys(found))
    return tokens if len(tokens) > 1 else next(iter(tokens), None)


def end_token_metadata(ends: Sequence[int], texts: Sequence[str]) -> dict[str, int]:
    """The keys that say the same of `ends`, each once; `texts` is the file's vocabulary, empty if it has none.

    Raises:
        ArgumentError: there are more tokens than keys, and the others are none that llama.cpp knows by their text.
    """
    known = {token for token in ends if 0 <= token < len(texts) and _is_end(texts[token])}
    messages = [token for token in ends[1:] if token in known and texts[token] == END_OF_MESSAGE][:1]
    others = [token for token in ends if token not in messages]
    placed = dict(zip(("eom", "eos", "eot") if messages else WRITTEN_KEYS, messages + others, strict=False))
    left = set(ends) - known - set(placed.values())
    if left:
        expected = f"at most {len(WRITTEN_KEYS)} tokens, beside those that llama.cpp knows by their text: GGUF has no"
        raise ArgumentError("eos_token_id of config and tokenizer", ends, f"{expected} key for {sorted(left)}")
    return {_full_key(key): token for key, token in placed.items()}


def _full_key(key: str) -> str:
    return f"tokenizer.ggml.{key}_token_id"


def _is_end(text: object) -> bool:
    return isinstance(text, str) and text in END_TEXTS
