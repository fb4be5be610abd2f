"""From ``.mcp.json`` and ``.sage/config.toml`` to definitions: everything that is wrong is said, by file and field."""

from __future__ import annotations

import difflib
import errno
import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sage_sandbox.disk.files import Untrusted, sage_folder
from sage_sandbox.errors import DefinitionError, Problem, UsageError
from sage_sandbox.escaping import clip, escape
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import STATE_KEY_NAMES
from sage_sandbox.toolservers.definition import NAME, Server, variables_in

MCP_JSON: Final = ".mcp.json"
CONFIG_TOML: Final = ".sage/config.toml"
SIZE_MAX: Final = 1 << 20
SERVERS_MAX: Final = 200
AT_ONCE_MAX: Final = 64
_WHERE_FROM: Final = f"servers are defined in {MCP_JSON} and {CONFIG_TOML}"
_STDIO: Final = ("command", "args", "env")
_HTTP: Final = ("url", "headers")
_GRANTS: Final = {"read": "read", "write_through": "write-through"}
_PACE: Final = ("at_once", "per_second")
_NEVER: Final = frozenset({*STATE_KEY_NAMES, "SAGE_STATE_KEY_FILE"})


@frozen
class Catalog:
    """The servers of a project by name, and what is wrong with its files; a definition with an error is not here."""

    servers: Mapping[str, Server] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def find(self, name: str) -> Server:
        """The server of that name; DefinitionError where its definition is wrong, UsageError where there is none."""
        if name in self.servers:
            return self.servers[name]
        mine = tuple(problem for problem in self.problems if problem.severity == "error" and _is_about(problem, name))
        if mine:
            raise DefinitionError(f"the tool server {escape(name)} is not well defined", "", mine)
        close = difflib.get_close_matches(name, self.servers, 1)
        hint = f"did you mean {close[0]}?" if close else _WHERE_FROM
        raise UsageError(f"there is no tool server {escape(name)} in this project", hint)


def read_catalog(project: Path) -> Catalog:
    """What the two files of a project say; a file that is not there says nothing."""
    merged: dict[str, Server] = {}
    problems: list[Problem] = []
    for file, parse, read in ((MCP_JSON, parse_mcp_json, _read_mcp_json), (CONFIG_TOML, parse_config, _read_config)):
        try:
            data = read(project)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, Untrusted) as error:
            problems.append(Problem(file, 0, 0, "", _reason(error)))
            continue
        found = parse(data)
        problems += found.problems
        for name, server in found.servers.items():
            if name in merged:
                problems.append(Problem(file, 0, 0, f"servers.{name}", f"{merged[name].source} defines it already"))
            else:
                merged[name] = server
    return Catalog(merged, tuple(problems))


def parse_mcp_json(data: bytes) -> Catalog:
    """``{"mcpServers": {NAME: {"command", "args", "env"} or {"url", "headers"}}}``, as other MCP clients read it.

    Fields that belong to other clients are named in a warning and otherwise left alone.
    """
    reader = _Reader(MCP_JSON, "mcpServers", (), strict=False)
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        return reader.failed("", f"is not JSON: {error}" if not isinstance(error, _Twins) else str(error))
    if not isinstance(content, dict):
        return reader.failed("", "must be a mapping")
    return reader.read(content.get("mcpServers", {}))


def parse_config(data: bytes) -> Catalog:
    """``[servers.NAME]`` with the fields of ``.mcp.json`` and ``at_once``, ``per_second``."""
    reader = _Reader(CONFIG_TOML, "servers", _PACE, strict=True)
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return reader.failed("", f"is not TOML: {error}")
    return reader.read(content.get("servers", {}))


class _Twins(ValueError):
    """A key stands twice in one mapping: what is read there depends on who reads it."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise _Twins(f"the key {clip(twin, 64)!r} stands twice in one mapping")
    return found


class _Reader:
    """Reads the servers of one file."""

    def __init__(self, file: str, section: str, pace: tuple[str, ...], *, strict: bool) -> None:
        self._file = file
        self._section = section
        self._known = ("type", *_STDIO, *_HTTP, *pace, "sandbox", "policy")
        self._strict = strict
        self._problems: list[Problem] = []

    def failed(self, path: str, message: str) -> Catalog:
        """Nothing but one problem."""
        self._add(path, message)
        return Catalog({}, tuple(self._problems))

    def read(self, raw: Any) -> Catalog:
        """Each server that is well defined, and everything that is wrong with the others."""
        if not isinstance(raw, dict):
            return self.failed(self._section, "must be a mapping of servers by name")
        if len(raw) > SERVERS_MAX:
            return self.failed(self._section, f"has more than {SERVERS_MAX} servers")
        servers = {name: server for name, about in raw.items() if (server := self._server(name, about))}
        return Catalog(servers, tuple(self._problems))

    def _add(self, path: str, message: str, *, warning: bool = False) -> None:
        self._problems.append(Problem(self._file, 0, 0, path, message, "warning" if warning else "error"))

    def _server(self, name: str, raw: Any) -> Server | None:
        path = f"{self._section}.{clip(name, 80)}"
        before = sum(problem.severity == "error" for problem in self._problems)
        if not NAME.fullmatch(name):
            self._add(path, "a server's name is 1 to 64 of A-Z, a-z, 0-9, _, . and -")
        elif not isinstance(raw, dict):
            self._add(path, "must be a mapping")
        else:
            self._check_fields(raw, path)
            server = self._made(name, raw, path)
            if sum(problem.severity == "error" for problem in self._problems) == before:
                return server
        return None

    def _check_fields(self, raw: Mapping[str, Any], path: str) -> None:
        for key in raw:
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                more = f", did you mean {close[0]}?" if close else ""
                text = f"is not known here{more}" if self._strict else f"is not known here and is left out{more}"
                self._add(f"{path}.{clip(key, 80)}", text, warning=not self._strict)
        kind = raw.get("type")
        if kind not in (None, "stdio", "http", "streamable-http"):
            self._add(f"{path}.type", f"must be stdio or http, not {clip(str(kind), 40)}")
        if ("command" in raw) == ("url" in raw):
            self._add(path, "has both command and url" if "url" in raw else "needs a command, or a url")
        elif kind is not None and (kind == "stdio") != ("command" in raw):
            self._add(f"{path}.type", "does not fit: command is for stdio, url for http")
        for key in _HTTP if "command" in raw else _STDIO:
            if key in raw and not {"command", "url"} <= raw.keys():
                self._add(f"{path}.{key}", "does not fit a server that is " + _kind(raw))

    def _made(self, name: str, raw: Mapping[str, Any], path: str) -> Server:
        args = raw.get("args", [])
        if not isinstance(args, list):
            self._add(f"{path}.args", "must be a list of texts")
            args = []
        return Server(
            name,
            self._file,
            self._text(raw.get("command", ""), f"{path}.command", required="command" in raw),
            tuple(self._text(text, f"{path}.args[{number}]") for number, text in enumerate(args)),
            tuple(self._pairs(raw.get("env", {}), f"{path}.env")),
            self._url(raw, path),
            tuple(self._headers(raw, path)),
            self._at_once(raw, path),
            self._per_second(raw, path),
            self._sandbox(raw, path),
            tuple(self._policy(raw, path)),
        )

    def _text(self, value: Any, path: str, *, required: bool = False) -> str:
        if not isinstance(value, str):
            self._add(path, "must be a text")
            return ""
        if "\0" in value:
            self._add(path, "must not hold a NUL character")
        elif not value and required:
            self._add(path, "must not be empty")
        for name in variables_in(value):
            if name in _NEVER:
                self._add(path, f"{name} opens the state of runs and is never handed to a server")
        return value

    def _pairs(self, raw: Any, path: str) -> Iterator[tuple[str, str]]:
        if not isinstance(raw, dict):
            self._add(path, "must be a mapping of texts by name")
            return
        for name, value in raw.items():
            below = f"{path}.{clip(name, 80)}"
            if not name or any(char in name for char in "=\0\r\n:"):
                self._add(below, "is not a name")
            yield name, self._text(value, below)

    def _url(self, raw: Mapping[str, Any], path: str) -> str:
        if "url" not in raw:
            return ""
        url = self._text(raw["url"], f"{path}.url", required=True)
        parts = _split(url)
        if url and not url.startswith("${") and (parts is None or parts.scheme not in ("http", "https")):
            self._add(f"{path}.url", "must begin with https:// or http://")
        elif parts is not None and parts.username is not None:
            self._add(f"{path}.url", "must not hold a user name: credentials belong in headers, from ${VARIABLES}")
        return url

    def _headers(self, raw: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
        for name, value in self._pairs(raw.get("headers", {}), f"{path}.headers"):
            if not name.isascii() or any(char in value for char in "\r\n"):
                self._add(f"{path}.headers.{clip(name, 80)}", "is not a header")
            yield name, value

    def _at_once(self, raw: Mapping[str, Any], path: str) -> int | None:
        value = raw.get("at_once") if self._strict else None
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= AT_ONCE_MAX):
            return value
        self._add(f"{path}.at_once", f"must be a number from 1 to {AT_ONCE_MAX}")
        return None

    def _per_second(self, raw: Mapping[str, Any], path: str) -> float | None:
        value = raw.get("per_second") if self._strict else None
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        self._add(f"{path}.per_second", "must be a number above 0")
        return None

    def _sandbox(self, raw: Mapping[str, Any], path: str) -> bool:
        value = raw.get("sandbox", False)
        if not isinstance(value, bool):
            self._add(f"{path}.sandbox", "must be true or false")
        elif value and "url" in raw:
            self._add(f"{path}.sandbox", "does not fit a server that is called at a url")
        return value is True

    def _policy(self, raw: Mapping[str, Any], path: str) -> Iterator[str]:
        """What a server in a sandbox may touch, as grants."""
        value = raw.get("policy", {})
        if "policy" in raw and raw.get("sandbox") is not True:
            self._add(f"{path}.policy", "is for a server in a sandbox: without sandbox: true nothing would hold it")
        if not isinstance(value, dict):
            self._add(f"{path}.policy", "must be a mapping")
            return
        for key, paths in value.items():
            below = f"{path}.policy.{clip(key, 80)}"
            if key not in _GRANTS:
                self._add(below, f"a server in a sandbox is granted {' and '.join(_GRANTS)} in this version, no more")
            elif not isinstance(paths, list) or not all(isinstance(text, str) and text for text in paths):
                self._add(below, "must be a list of paths")
            elif any("\0" in text for text in paths):
                self._add(below, "must not hold a NUL character")
            else:
                yield from (f"{_GRANTS[key]}:{text}" for text in paths)


def _kind(raw: Mapping[str, Any]) -> str:
    return "started by a command" if "command" in raw else "called at a url"


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        return parts if parts.hostname else None
    except ValueError:
        return None


def _is_about(problem: Problem, name: str) -> bool:
    """Whether a problem is this server's, or keeps the whole file from being read."""
    below = problem.field.partition(".")[2]
    return below in ("", name) or below.startswith((f"{name}.", f"{name}["))


def _reason(error: Exception) -> str:
    if isinstance(error, Untrusted):
        return error.reason
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a symbolic link"
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)


def _read_mcp_json(project: Path) -> bytes:
    """The file's bytes. Who else may write to it does not matter: what it says is approved before it is believed."""
    fd = os.open(project / MCP_JSON, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is not a regular file")
        data = file.read(SIZE_MAX + 1)
    if len(data) > SIZE_MAX:
        raise ValueError("is larger than 1 MiB")
    return data


def _read_config(project: Path) -> bytes:
    with sage_folder(project) as folder:
        return folder.read("config.toml", SIZE_MAX)
