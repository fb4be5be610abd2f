"""Where a field stands in its template, worked out only once something is wrong with it.

A path is a tuple of keys and indexes, ``("phases", 2, "operations", 0, "type")``. Places are (line, column), 1-based,
in characters; a path that leads nowhere has the place of the deepest part of it that exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from sage_sandbox.escaping import clip

FieldPath = tuple[str | int, ...]
Place = tuple[int, int]

DEPTH_MAX: Final = 64
UNKNOWN: Final[Place] = (0, 0)


class Locator(Protocol):
    """Finds fields in the text of one template."""

    def place(self, path: FieldPath, *, key: bool = False) -> Place:
        """Where the value at ``path`` starts, or its key if ``key`` is set."""

    def code_place(self, path: FieldPath, line: int, column: int) -> Place | None:
        """Where a line of the text that is the value at ``path`` stands; None if the format hides it."""

    def line(self, path: FieldPath) -> int:
        """The line of ``path`` where it costs nothing to know, else 0."""


def show_path(path: FieldPath) -> str:
    """``phases[2].operations[0].type``, fit for a terminal."""
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{clip(step, 60)}" for step in path)
    return shown.removeprefix(".")


def place_at(text: str, offset: int) -> Place:
    """The place of a character."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def walk(value: Any, depth_max: int = DEPTH_MAX) -> Iterator[tuple[FieldPath, Any]]:
    """Every container and leaf of a JSON-like value with its path, in order; nothing below ``depth_max`` steps.

    Neither recursion nor a list of what is still to come: the value may be as deep and as wide as its reader allowed.
    """
    yield (), value
    pending: list[tuple[FieldPath, Iterator[tuple[str | int, Any]]]] = [((), _members(value))]
    while pending:
        above, members = pending[-1]
        for step, item in members:
            path: FieldPath = (*above, step)
            yield path, item
            if isinstance(item, dict | list) and len(path) < depth_max:
                pending.append((path, _members(item)))
                break
        else:
            pending.pop()


def _members(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value)) if isinstance(value, list) else iter(())


class JsonLocator:
    """Places in a text that is known to be JSON: whole values are skipped by the C scanner, so a big file is cheap."""

    _SPACE = re.compile(r"[ \t\r\n]*")

    def __init__(self, text: str) -> None:
        self._text = text
        decoder = json.JSONDecoder()
        self._skip = decoder.raw_decode
        self._scan_key: Callable[[str, int], tuple[str, int]] = decoder.parse_string  # type: ignore[attr-defined]  # missing in typeshed
        self._known: dict[int, dict[str | int, tuple[int, int]]] = {}
        self._scans: dict[int, Iterator[tuple[str | int, tuple[int, int]]]] = {}

    def place(self, path: FieldPath, *, key: bool = False) -> Place:
        """Of two equal keys the first is meant."""
        key_at = value_at = self._after_space(0)
        for step in path:
            child = self._child(value_at, step)
            if child is None:
                key_at = value_at
                break
            key_at, value_at = child
        return place_at(self._text, key_at if key else value_at)

    def code_place(self, path: FieldPath, line: int, column: int) -> Place | None:
        """JSON keeps a text on one line."""
        return None

    def line(self, path: FieldPath) -> int:
        """Would cost a second reading."""
        return 0

    def _after_space(self, offset: int) -> int:
        match = self._SPACE.match(self._text, offset)
        assert match  # the pattern matches the empty text
        return match.end()

    def _child(self, offset: int, step: str | int) -> tuple[int, int] | None:
        """Key and value offset of one member; scans no further than it has to, and nothing twice."""
        known = self._known.setdefault(offset, {})
        scan = self._scans.setdefault(offset, self._scan(offset))
        while step not in known:
            found = next(scan, None)
            if found is None:
                return None
            known.setdefault(*found)
        return known[step]

    def _scan(self, offset: int) -> Iterator[tuple[str | int, tuple[int, int]]]:
        """The members of the object or array that opens at ``offset``; nothing if it is neither."""
        opening = self._text[offset : offset + 1]
        if opening not in ("{", "["):
            return
        at = self._after_space(offset + 1)
        count = 0
        while self._text[at] not in "}]":
            step: str | int = count
            key_at = at
            if opening == "{":
                step, at = self._scan_key(self._text, at + 1)
                at = self._after_space(self._after_space(at) + 1)
            yield step, (key_at, at)
            at = self._after_space(self._skip(self._text, at)[1])
            if self._text[at] == ",":
                at = self._after_space(at + 1)
            count += 1


class TomlLocator:
    """Places of the headers and keys of a TOML text; what is inside an inline value has the place of its key."""

    _TOKEN = re.compile(
        r"""
        ^[ \t]*\[\[(?P<array>[^\]\n]+)\]\]
        | ^[ \t]*\[(?P<table>[^\]\n]+)\]
        | ^[ \t]*(?P<key>(?:[\w-]+|"[^"\n]*"|'[^'\n]*')(?:[ \t]*\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*'))*)[ \t]*=[ \t]*
        | \"\"\"(?:[^\\]|\\.)*?\"\"\"
        | '''.*?'''
        """,
        re.VERBOSE | re.MULTILINE | re.DOTALL,
    )
    _PART = re.compile(r"""[\w-]+|"[^"\n]*"|'[^'\n]*'""")

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[FieldPath, tuple[int, int]] = {(): (0, 0)}
        self._arrays: dict[FieldPath, int] = {}
        self._read()

    def place(self, path: FieldPath, *, key: bool = False) -> Place:
        """The value's place is only known where it follows its key."""
        key_at, value_at = self._nearest(path)
        return place_at(self._text, key_at if key else value_at)

    def code_place(self, path: FieldPath, line: int, column: int) -> Place | None:
        """Lines of a multi-line string that starts on a line of its own."""
        start = self._nearest(path)[1]
        if self._text[start : start + 4] not in ('"""\n', "'''\n"):
            return None
        return place_at(self._text, start)[0] + line, column

    def line(self, path: FieldPath) -> int:
        """Would cost a count of all lines before it."""
        return 0

    def _nearest(self, path: FieldPath) -> tuple[int, int]:
        while path not in self._found:
            path = path[:-1]
        return self._found[path]

    def _read(self) -> None:
        table: FieldPath = ()
        for match in self._TOKEN.finditer(self._text):
            if match["array"] or match["table"]:
                table = self._enter(self._parts(match["array"] or match["table"]), is_array=bool(match["array"]))
                at = match.start("array") - 2 if match["array"] else match.start("table") - 1
                self._found.setdefault(table, (at, at))
            elif match["key"]:
                path = (*table, *self._parts(match["key"]))
                self._found.setdefault(path, (match.start("key"), match.end()))

    def _parts(self, dotted: str) -> list[str]:
        return [part.strip("\"'") for part in self._PART.findall(dotted)]

    def _enter(self, parts: Sequence[str], *, is_array: bool) -> FieldPath:
        """The path a header stands for: the last element so far of every array of tables on the way."""
        path: FieldPath = ()
        for number, part in enumerate(parts, 1):
            path += (part,)
            if number == len(parts) and is_array:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path += (self._arrays[path],)
        return path
