"""The vocabulary of a GGUF file, from a byte-level BPE tokenizer of `transformers`."""

import json
from typing import Any

from bitcore.exceptions import ArgumentError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types


def tokenizer_metadata(tokenizer: Any, tokenizer_pre: str | None, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.ggml.*`, and the chat template.

    Args:
        tokenizer: a fast tokenizer of `transformers`, or None for a file without a vocabulary.
        tokenizer_pre: llama.cpp's name of how it cuts text before BPE: "llama-bpe" for Llama 3 and BitNet b1.58 2B4T.
        vocab_size: of the model; what the tokenizer does not fill is unused.

    Raises:
        ArgumentError: the tokenizer is not byte-level BPE, has more tokens than the model, or `tokenizer_pre` is
            missing.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArgumentError("tokenizer", f"a {type(tokenizer).__name__}", "a fast tokenizer of transformers")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ArgumentError(
            "tokenizer", f"of type {model.get('type')}", "byte-level BPE, as those of Llama 3 and GPT-2"
        )
    if tokenizer_pre is None:
        expected = "llama.cpp's name of the pre-tokenizer, such as 'llama-bpe' for Llama 3: a wrong one degrades output"
        raise ArgumentError("tokenizer_pre", None, expected)
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    vocabulary = {**model["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
    if max(vocabulary.values(), default=-1) >= vocab_size:
        raise ArgumentError("tokenizer", f"with token {max(vocabulary.values())}", f"at most {vocab_size - 1}")
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, NORMAL
    for added in content["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    begin = tokenizer.bos_token_id
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": tokenizer_pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": begin,
        "tokenizer.ggml.add_bos_token": begin is not None and tokenizer.encode("")[:1] == [begin],
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.chat_template": getattr(tokenizer, "chat_template", None),
    }
    return {key: value for key, value in metadata.items() if value is not None and value != []}
