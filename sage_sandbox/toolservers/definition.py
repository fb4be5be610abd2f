"""What a project's files say about one tool server, as it is written: nothing is expanded, nothing is started."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from sage_sandbox.frozen import frozen

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
START_S: Final = 60.0
"""How long a server may take to start and to say who it is: some are fetched first."""

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", re.ASCII)


@frozen
class Server:
    """One definition: a program that is started (``command``), or an address that is called (``url``).

    Every text is as it stands in ``source``. ``at_once`` and ``per_second`` are how many calls it gets; None: the
    default, and no rate. With ``sandbox`` the program runs in a kernel sandbox of its own and may touch what ``policy``
    names, grants as they are typed.
    """

    name: str
    source: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    at_once: int | None = None
    per_second: float | None = None
    sandbox: bool = False
    policy: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that decides what is started or contacted, how, and with which values."""
        parts: list[Any] = [self.name, self.command, self.args, self.env, self.url, self.headers]
        if self.sandbox:
            parts.append({"sandbox": self.policy})
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()

    def variables(self) -> tuple[str, ...]:
        """The names of the environment that it takes values from, in the order they appear."""
        return tuple(dict.fromkeys(name for text in self._texts() for name, _ in _VARIABLE.findall(text)))

    def lacking(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """The names that are not set and have no default."""
        found = (match for text in self._texts() for match in _VARIABLE.finditer(text))
        return tuple(dict.fromkeys(match[1] for match in found if match[2] is None and match[1] not in values))

    def expanded(self, values: Mapping[str, str]) -> Server:
        """With every ``${VAR}`` and ``${VAR:-default}`` put in, once; a name that is `lacking` stays as it is."""
        return Server(
            self.name,
            self.source,
            expand(self.command, values),
            tuple(expand(text, values) for text in self.args),
            tuple((name, expand(text, values)) for name, text in self.env),
            expand(self.url, values),
            tuple((name, expand(text, values)) for name, text in self.headers),
            self.at_once,
            self.per_second,
            self.sandbox,
            self.policy,
        )

    def _texts(self) -> Iterator[str]:
        yield from (self.command, *self.args, self.url)
        yield from (text for _, text in (*self.env, *self.headers))

    def document(self) -> dict[str, Any]:
        """The definition as JSON has it; `from_document` reads it."""
        return asdict(self)


def from_document(raw: Mapping[str, Any]) -> Server:
    """A definition that another process of ours sent."""
    return Server(
        raw["name"],
        raw["source"],
        raw["command"],
        tuple(raw["args"]),
        _pairs(raw["env"]),
        raw["url"],
        _pairs(raw["headers"]),
        raw["at_once"],
        raw["per_second"],
        raw["sandbox"],
        tuple(raw["policy"]),
    )


def _pairs(raw: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in raw)


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put values in for ``${VAR}`` and ``${VAR:-default}``; what they hold is not looked at again.

    As in a shell an empty value takes the default. Everything else with a ``$`` in it is text.
    """

    def value(match: re.Match[str]) -> str:
        given = values.get(match[1])
        if match[2] is None:
            return match[0] if given is None else given
        return given or match[2]

    return _VARIABLE.sub(value, text)


def variables_in(text: str) -> tuple[str, ...]:
    """The names that a text takes values from."""
    return tuple(match[1] for match in _VARIABLE.finditer(text))
