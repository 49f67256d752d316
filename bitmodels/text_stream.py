"""TextStream: the text of tokens as they come, without decoding again what has been decoded.

A token may end within a character (byte-level BPE; sentencepiece's tokens of bytes), and what a token becomes may
depend on the one before (sentencepiece's leading space, WordPiece's ##). So a token is decoded together with those
whose text was given last, and what that adds is new.
"""

from collections.abc import Callable, Sequence
from operator import index
from typing import SupportsIndex

UNFINISHED = "\ufffd"  # what a decoder makes of a byte that belongs to no character, or not yet to one
LONGEST_UNFINISHED = 3  # bytes
LONGEST_PIECE = 16  # tokens: if none of so many ends with a character, they are bytes that make none


class TextStream:
    """Turns tokens into text, and holds back a character until all of its bytes are there.

    Args:
        decode: from a list of tokens to their text. It gets a bounded number of them, however long the text is.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # tokens whose text was given, and which the next ones are decoded with
        self._text_before = ""
        self._piece: list[int] = []  # the tokens after these
        self._given = 0  # characters of the piece's text
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was given."""
        return "".join(self._pieces)

    def add(self, token: SupportsIndex) -> str:
        """The text that `token` completes."""
        self._piece.append(index(token))
        text = self._piece_text()
        unfinished = min(len(text) - len(text.rstrip(UNFINISHED)), LONGEST_UNFINISHED)
        new = self._give(text[: len(text) - unfinished])
        if len(self._piece) >= LONGEST_PIECE or (text and unfinished == 0):
            if text:  # else they are special tokens, and what was before them stays
                before = self._decode(self._piece)
                self._before, self._text_before = self._piece, before[: len(before) - unfinished]
            self._piece, self._given = [], 0
        return new

    def end(self) -> str:
        """What is left: bytes that never became a character."""
        return self._give(self._piece_text())

    def _piece_text(self) -> str:
        text = self._decode([*self._before, *self._piece])
        if text.startswith(self._text_before):
            return text[len(self._text_before) :]
        return self._decode(self._piece)  # where a wrong byte or a comma changes the text before it

    def _give(self, text: str) -> str:
        new = text[self._given :]
        self._given += len(new)
        self._pieces.append(new)
        return new
