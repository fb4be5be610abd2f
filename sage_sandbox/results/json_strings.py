"""The strings of a JSON text, to be looked at and replaced one by one while the rest stays byte for byte as it is."""

from __future__ import annotations

import json
from bisect import bisect
from itertools import accumulate


class JsonStrings:
    """The strings of one JSON text by their number, from 0: keys and values, in their order.

    The text was checked by whoever took it over; ValueError only where that is needed to go on. A text is parted by
    functions that loop in C, for there may be 200,000 strings in it of which hardly one is looked at.
    """

    def __init__(self, text: str) -> None:
        # What a backslash makes part of a string, masked by what no JSON text has: all quotation marks left are edges.
        masked = text.replace("\\\\", "\0\0").replace('\\"', "\0\0")
        self._text = text
        self._parts = masked.split('"')
        if len(self._parts) % 2 == 0:
            raise ValueError("it is no JSON text: a string does not end")
        self._ends = list(accumulate(len(part) + 1 for part in self._parts))
        self._new: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parts) // 2

    def at(self, offset: int) -> int:
        """The string that has the character at this offset of the text; -1 if none has."""
        part = bisect(self._ends, offset)
        return part // 2 if part % 2 else -1

    def is_key(self, number: int) -> bool:
        """Whether a string names a member of an object."""
        return self._parts[2 * number + 2].lstrip(" \t\r\n").startswith(":")

    def is_named(self, number: int) -> bool:
        """Whether there is such a string, and it is the value of the one before it, which is a key."""
        return 0 < number < len(self) and self._parts[2 * number].strip(" \t\r\n") == ":"

    def __getitem__(self, number: int) -> str:
        part = self._parts[2 * number + 1]
        if "\\" not in part and "\0" not in part:
            return part
        start, end = self._span(number)
        value = json.loads(self._text[start:end])
        assert isinstance(value, str)
        return value

    def __setitem__(self, number: int, value: str) -> None:
        self._new[number] = json.dumps(value)

    def joined(self) -> str:
        """The text, with what was replaced."""
        parts, done = [], 0
        for number in sorted(self._new):
            start, end = self._span(number)
            parts += [self._text[done:start], self._new[number]]
            done = end
        return "".join((*parts, self._text[done:]))

    def _span(self, number: int) -> tuple[int, int]:
        """Where a string stands, its quotation marks included."""
        return self._ends[2 * number] - 1, self._ends[2 * number + 1]
