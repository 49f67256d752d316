"""Tokenizers of the kinds that language models have, trained on the standard library's own text."""

import argparse
import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Words of several scripts, so that merges end within characters, and characters that no merge has seen.
WORDS = (
    "naïve Größe привет мир 你好世界 こんにちは नमस्ते 😀 👩‍👩‍👧‍👦 🏳️‍🌈"
    " €uro \u00a0 \n\n\tdef f(x): return x ** 2  # “quoted”…"
)
END = "<end>"


@cache
def real_tokenizer(kind: str) -> Tokenizer:
    """A tokenizer by its kind, one of KINDS; token 0 is special."""
    made = KINDS[kind]()
    text = [Path(module.__file__).read_text() for module in (argparse, json)]
    options = {"vocab_size": 700, "special_tokens": [END], "show_progress": False}
    if isinstance(made.model, models.WordPiece):
        trainer = trainers.WordPieceTrainer(**options)
    elif made.model.byte_fallback:
        options["special_tokens"] = [END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(**options, limit_alphabet=90)
    else:
        trainer = trainers.BpeTrainer(**options, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([*text, *[WORDS] * 9], trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][
        :1
    ]  # the tokens of bytes are trained as special ones, and are none
    return Tokenizer.from_str(json.dumps(content))


def _byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3: a token is bytes, which may end within a character."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: a leading space that decoding takes away, and a token for each byte."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _word_piece() -> Tokenizer:
    """As BERT: spaces are not in the tokens, and decoding takes those away in front of punctuation."""
    made = Tokenizer(models.WordPiece(unk_token=END))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


KINDS = {"byte level": _byte_level, "byte fallback": _byte_fallback, "word piece": _word_piece}
