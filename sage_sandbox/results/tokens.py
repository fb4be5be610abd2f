"""How many tokens a model would read in a text: counted where bpe-openai is installed, estimated elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Final

ENCODING: Final = "o200k_base"
"""Whose tokens are counted; those of other models' encodings are as many within a tenth or two."""

# The tokenizer takes 200,000 tokens at a time; no character is more than four.
_PIECE: Final = 50_000

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLANKS: Final = b" \t\r\n"
_OTHERS: Final = bytes(range(128, 256))
_PER_LETTER: Final = 0.22
_PER_BLANK: Final = 0.16
_PER_OTHER: Final = 0.45
_PER_SIGN: Final = 0.6
"""Least squares over sources, prose, logs, listings and JSON: within a tenth for most, a quarter for all."""


def is_exact() -> bool:
    """Whether tokens are counted; else they are estimated."""
    return _counter() is not None


def tokens(data: bytes) -> int:
    """How many tokens there are in a text (UTF-8)."""
    count = _counter()
    return estimated(data) if count is None else sum(map(count, _pieces(data.decode("utf-8", "replace"))))


def estimated(data: bytes) -> int:
    """About how many: letters make words, of which most are one token; digits and signs are tokens of their own."""
    letters = len(data) - len(data.translate(None, _LETTERS))
    blanks = len(data) - len(data.translate(None, _BLANKS))
    others = len(data) - len(data.translate(None, _OTHERS))
    signs = len(data) - letters - blanks - others
    return round(letters * _PER_LETTER + blanks * _PER_BLANK + others * _PER_OTHER + signs * _PER_SIGN)


def _pieces(text: str) -> list[str]:
    """A text in pieces that end with lines where they can: one token more or less for each is all it changes."""
    pieces, start = [], 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        pieces.append(text[start:end])
        start = end
    return pieces


@cache
def _counter() -> Callable[[str], int] | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            import bpe_openai

            encoding = bpe_openai.get_encoding(ENCODING)
    except Exception:  # noqa: BLE001 - not installed, or not fit for this Python: no reason to lose a run's result
        return None
    return lambda text: len(encoding.encode_ordinary(text))
