"""How a value that is known may be spelled where it turns up: as it is, in JSON, in a URL, in base64."""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from json import dumps
from typing import Final
from urllib.parse import quote, quote_plus

SHORTEST: Final = 8
"""A value with fewer characters is not looked for: it would be found everywhere."""

# What JSON text spells in one way only, but for \uXXXX, which is looked for by itself.
_PLAIN_IN_JSON: Final = r"[ !#-.0-\[\]-~]+"


def spellings(value: str) -> tuple[str, ...]:
    """Every way to spell a value that is looked for, each once; none for a value that is too short."""
    found = {
        spelling: None
        for text in (value, value.strip())
        if len(text.strip()) >= SHORTEST
        for spelling in (text, *_in_json(text), *_in_url(text), *_in_base64(text))
        if len(spelling) >= SHORTEST
    }
    return tuple(found)


def anchors(spelling: str) -> tuple[bytes, ...]:
    """Bytes of which one at least is in every JSON text that holds this spelling in a string."""
    plain: list[str] = re.findall(_PLAIN_IN_JSON, spelling)
    if plain:
        return (max(plain, key=len).encode(),)
    # Every character of it is one that JSON may escape: then a backslash is there, or its first character as it is.
    return b"\\", _printed(spelling[0])


def _in_json(text: str) -> Iterator[str]:
    for ascii_only in (True, False):
        inside = dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield inside
        yield inside.replace("/", "\\/")


def _in_url(text: str) -> Iterator[str]:
    # As a path, as a part of one, as JavaScript's encodeURIComponent has it, as a form.
    for spelling in (
        *(quote(text, safe, errors="surrogateescape") for safe in ("/", "", "!'()*~")),
        quote_plus(text, errors="surrogateescape"),
    ):
        yield spelling
        yield re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), spelling)


def _in_base64(text: str) -> Iterator[str]:
    """What is the same wherever in a longer text the value stands, for each of the three places it can have there."""
    data = _printed(text)
    encoders: tuple[Callable[[bytes], bytes], ...] = (b64encode, urlsafe_b64encode)
    for encode in encoders:
        for before, foreign in ((0, 0), (1, 2), (2, 3)):
            encoded = encode(b"\0" * before + data).decode().rstrip("=")
            # The last character has bits of what follows, unless the value ends where three bytes do.
            yield encoded[foreign : None if (before + len(data)) % 3 == 0 else -1]


def _printed(text: str) -> bytes:
    """The text as an operation prints it; what was no UTF-8 in the environment is not changed."""
    return text.encode("utf-8", "surrogateescape")
