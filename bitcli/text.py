"""Between text and tokens."""

import re
from typing import Any

from bitcore.exceptions import ArgumentError


def prompt_ids(text: str, tokenizer: Any, chat: bool) -> list[int]:
    """The tokens of a prompt; without a tokenizer it is numbers.

    Raises:
        ArgumentError: it is not numbers, or the tokenizer has no chat template.
    """
    if tokenizer is None:
        if re.fullmatch(r"[\d\s,]*", text) is None:
            raise ArgumentError("--prompt", repr(text), "token ids, such as '1 15 7'")
        return [int(number) for number in re.findall(r"\d+", text)]
    if not chat:
        return list(tokenizer.encode(text))
    if tokenizer.chat_template is None:
        raise ArgumentError("the tokenizer", "without a chat template", "one that has it, or no --chat")
    turn = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(whole, add_special_tokens=False))
