"""The kept part of a result: its shape, its counts, its first items, in the place of all of it.

What was left out is said where it stood, in a way that leaves JSON what it was: ``["a", "b", "… 1,234 more"]``,
``{"a": 1, "…": "7 more"}``, ``"the beginning… 5,678 more characters"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from sage_sandbox.frozen import frozen
from sage_sandbox.workflow.definition import Keep

KEPT_BYTES: Final = 2000
"""The most that is kept of a result, as compact JSON text in UTF-8, unless its template says otherwise."""

_ALL: Final = 1 << 62
_KEY_WIDTH: Final = 60
_MORE: Final = "…"


class Texts(Protocol):
    """How texts are shown."""

    def begin(self) -> None:
        """A copy begins; what was shown so far is dropped."""
        ...

    def head(self, text: str, most: int) -> str:
        """The beginning of a text, of so many characters at most."""
        ...


class AsTheyAre:
    """Texts, cut and nothing else."""

    def begin(self) -> None:
        """There is nothing to drop."""

    def head(self, text: str, most: int) -> str:
        """The beginning."""
        return text[:most]


@frozen
class _Measure:
    """How much of a value is copied: items of each list, members of each mapping, characters of each text."""

    items: int
    members: int
    width: int


# From all to nothing; the first that fits is taken. Lists give way before mappings: keys say what a result is made of.
_MEASURES: Final = tuple(
    _Measure(items, members, width)
    for items, members, width in (
        (_ALL, _ALL, _ALL),
        *((200, 200, 1600), (100, 100, 800), (50, 50, 400), (20, 50, 400), (20, 50, 200), (10, 50, 200), (10, 50, 100)),
        *((5, 50, 100), (3, 50, 80), (2, 30, 60), (1, 30, 40), (1, 20, 20)),
        *((0, members, 20) for members in (20, 10, 5, 3, 2, 1, 0)),
    )
)


def kept(value: Any, keep: Keep | None = None, texts: Texts | None = None) -> Any:
    """The part of a result that people and agents see: the same value if there is room for all of it.

    Its JSON text has at most ``max_bytes`` bytes; where not even a mark has room, it is a mark all the same.
    """
    keep, texts = keep or Keep(), texts or AsTheyAre()
    most = KEPT_BYTES if keep.max_bytes is None else keep.max_bytes
    value = selected(value, keep.fields)
    items = _ALL if keep.max_items is None else keep.max_items
    if isinstance(value, str):
        return _kept_text(value, most, texts)
    for measure in _MEASURES:
        texts.begin()
        try:
            return _Copy(measure, items, most, texts).of(value)
        except _TooLarge:
            continue
    return _MORE


def selected(value: Any, fields: Iterable[str]) -> Any:
    """The fields of a mapping, or of each mapping in a list; all of what is neither, or where none is named.

    ``a.b`` is the field b of what a holds, unless there is a field of the name ``a.b``.
    """
    paths = tuple(fields)
    if not paths:
        return value
    if isinstance(value, list):
        return [selected(item, paths) for item in value]
    if not isinstance(value, dict):
        return value
    within: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = (path, "", "") if path in value else path.partition(".")
        if name in value:
            within.setdefault(name, []).append(rest)
    return {name: value[name] if "" in rests else selected(value[name], rests) for name, rests in within.items()}


def size(value: Any) -> int:
    """How many bytes the JSON text of a value has."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


class _TooLarge(Exception):
    """There is no room for it."""


class _Copy:
    """Copies a value, cut to measure; gives up as soon as there is no room left, however large the value is."""

    def __init__(self, measure: _Measure, items: int, most: int, texts: Texts) -> None:
        self._measure = measure
        self._items = items
        self._room = most
        self._texts = texts

    def of(self, value: Any) -> Any:
        """The copy. _TooLarge."""
        match value:
            case dict():
                return self._mapping(value, self._measure.members)
            case list():
                return self._list(value, min(self._measure.items, self._items))
            case str():
                value = cut(value, self._measure.width, self._texts)
        self._take(size(value))
        return value

    def _mapping(self, value: Mapping[str, Any], most: int) -> dict[str, Any]:
        self._take(2)
        copy: dict[str, Any] = {}
        for number, (name, item) in enumerate(value.items()):
            if number == most:
                more = f"{len(value) - number:,} more"
                self._take(size({_MORE: more}))
                return {**copy, _free(_MORE, copy): more}
            name = _free(cut(name, max(self._measure.width, _KEY_WIDTH), self._texts), copy)  # noqa: PLW2901 - as it is shown
            self._take(size(name) + 4)
            copy[name] = self.of(item)
        return copy

    def _list(self, value: list[Any], most: int) -> list[Any]:
        self._take(2)
        copy: list[Any] = []
        for number, item in enumerate(value):
            if number == most:
                more = f"{_MORE} {len(value) - number:,} more"
                self._take(size(more) + 2)
                return [*copy, more]
            self._take(2)
            copy.append(self.of(item))
        return copy

    def _take(self, bytes_: int) -> None:
        self._room -= bytes_
        if self._room < 0:
            raise _TooLarge


def cut(text: str, width: int, texts: Texts) -> str:
    """The beginning of a text, and how much more there is of it."""
    if len(text) <= width:
        return texts.head(text, width)
    return f"{texts.head(text, width)}{_MORE} {len(text) - width:,} more characters"


def _kept_text(text: str, most: int, texts: Texts) -> str:
    """A result that is one text: as much of its beginning as there is room for."""
    width = min(len(text), most)
    while True:
        texts.begin()
        shown = cut(text, width, texts)
        if (found := size(shown)) <= most:
            return shown
        if not width:
            return _MORE
        width = max(0, min(width - (found - most) // 6, width * most // found - 1))


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A name that is not taken: two that were shortened, or cleaned, may have become the same."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
