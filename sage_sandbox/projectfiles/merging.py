"""Adds our lines to a ``.gitignore`` and our server to a ``.mcp.json``, and leaves every other byte as it was; pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sage_sandbox.errors import UsageError
from sage_sandbox.escaping import escape

MCP_JSON: Final = ".mcp.json"
SERVER: Final = "sage-sandbox"
ENTRY: Final = {"command": "sage-sandbox", "args": ["serve"]}
SERVERS: Final = "mcpServers"
IGNORED: Final = (
    "/.sage/*",
    "!/.sage/README.md",
    "!/.sage/config.toml",
    "!/.sage/schema/",
    "!/.sage/templates/",
)
"""All of ``.sage`` but what is in version control; in this order, for the last line that fits counts (gitignore(5))."""

_IGNORED_NOTE: Final = "# What sage-sandbox runs leave; templates, schema and configuration are kept."
_UNIT: Final = "  "
_SPACE: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder()


def with_ignored(before: bytes | None) -> bytes:
    """The lines of a ``.gitignore`` and ours: those that are missing, at the end."""
    before = before or b""
    newline = b"\r\n" if b"\r\n" in before else b"\n"
    known = {line.strip() for line in before.decode("utf-8", "replace").splitlines()}
    if IGNORED[0] not in known:
        # What makes an exception has to stand behind what it is an exception of.
        lines = [*([""] if before else []), _IGNORED_NOTE, *IGNORED]
    else:
        lines = [line for line in IGNORED if line not in known]
    added = b"".join(line.encode() + newline for line in lines)
    gap = newline if added and before and not before.endswith(b"\n") else b""
    return before + gap + added


def with_server(before: bytes | None) -> bytes:
    """A ``.mcp.json`` with our entry among its servers; the same bytes if it has one of that name, whatever it says.

    UsageError where the file is not what it should be: what is not understood is not written to.
    """
    if before is None:
        return json.dumps({SERVERS: {SERVER: ENTRY}}, indent=2).encode() + b"\n"
    text, content = _read(before)
    top = _scan(text, _skip(text, 1 if text.startswith("\ufeff") else 0))
    servers = top.find(SERVERS)
    if servers is None:
        after = _inserted(text, top, SERVERS, {SERVER: ENTRY}, "")
    else:
        inside = _scan(text, servers.value)
        if inside.find(SERVER) is not None:
            return before
        after = _inserted(text, inside, SERVER, ENTRY, top.indent(text))
    wanted = {**content, SERVERS: {**content.get(SERVERS, {}), SERVER: ENTRY}}
    assert json.dumps(json.loads(after.removeprefix("\ufeff"))) == json.dumps(wanted)
    return after.encode()


def server_in(data: bytes) -> Any:
    """What a ``.mcp.json`` that `with_server` made, or left as it was, says of our server."""
    return _read(data)[1][SERVERS][SERVER]


class _Member(NamedTuple):
    """Where one member of an object begins, where its value does, and where it ends."""

    name: str
    start: int
    value: int
    end: int


class _Object(NamedTuple):
    """Where an object's braces are, and what is between them."""

    start: int
    end: int
    members: tuple[_Member, ...]

    def find(self, name: str) -> _Member | None:
        found = [member for member in self.members if member.name == name]
        if len(found) > 1:
            raise _wrong(f"the key {escape(name)} stands twice in one mapping")
        return found[0] if found else None

    def indent(self, text: str) -> str | None:
        """What stands before each member on a line of its own; None where they share a line."""
        between = text[self.start + 1 : self.members[0].start]
        return between.rpartition("\n")[2] if "\n" in between else None


def _read(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = data.decode()
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise _wrong(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _wrong("must be a mapping")
    if not isinstance(content.get(SERVERS, {}), dict):
        raise _wrong(f"{SERVERS} must be a mapping")
    return text, content


def _scan(text: str, start: int) -> _Object:
    """The object that begins at ``start`` of what is known to be JSON."""
    members = tuple(_members(text, start))
    end = text.index("}", members[-1].end if members else start)
    return _Object(start, end, members)


def _members(text: str, start: int) -> Iterator[_Member]:
    at = _skip(text, start + 1)
    while text[at] != "}":
        name, after = _DECODER.raw_decode(text, at)
        value = _skip(text, _skip(text, after) + 1)  # behind the colon
        _, end = _DECODER.raw_decode(text, value)
        yield _Member(name, at, value, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _inserted(text: str, into: _Object, name: str, value: Any, outer: str | None) -> str:
    """``text`` with one more member, laid out like its siblings; ``outer``: how the object's own line is indented."""
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = into.indent(text) if into.members else None if outer is None else outer + (outer or _UNIT)
    if indent is None:
        member = f"{json.dumps(name)}: {json.dumps(value)}"
    else:
        unit = indent if not outer else indent.removeprefix(outer) or _UNIT
        made = json.dumps({name: value}, indent=unit).split("\n")[1:-1]
        member = newline.join(line.replace(unit, indent, 1) for line in made)
    if not into.members:
        inside = member if indent is None else f"{newline}{member}{newline}{outer}"
        return text[: into.start + 1] + inside + text[into.end :]
    last = into.members[-1].end
    return f"{text[:last]},{' ' if indent is None else newline}{member}{text[last:]}"


def _wrong(message: str) -> UsageError:
    hint = f"mend it, or add by hand below {SERVERS}: {json.dumps({SERVER: ENTRY})}"
    return UsageError(f".mcp.json: {message}", hint)
