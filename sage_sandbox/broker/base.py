"""The seam between the broker and whatever speaks to a tool server or to a model, and how that can go wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sage_sandbox.frozen import frozen
from sage_sandbox.providers import Provider
from sage_sandbox.sandbox.calls import ToolSpec
from sage_sandbox.toolservers.definition import Server


class SessionLost(Exception):
    """The server did not answer: it broke, hung up, was silent or could not be had.

    ``sent``: the request may have reached it. ``asked_s``: how long it asked to be left alone.
    """

    def __init__(self, message: str, *, sent: bool, asked_s: float | None = None) -> None:
        super().__init__(message)
        self.sent = sent
        self.asked_s = asked_s


class Silent(SessionLost):
    """It gave no answer in time; the session itself may still be good."""


class ToolRefused(Exception):
    """The server answered, and its answer is no: an error of the tool, or of how it was called."""


@frozen
class Progress:
    """What a server says of a call under way."""

    done: float
    total: float | None = None
    text: str = ""


OnProgress = Callable[[Progress], None]


class Session(Protocol):
    """A live connection to one server, used by several calls at once.

    An implementation promises: a call that is cancelled is cancelled at the server, too.
    """

    @property
    def alive(self) -> bool:
        """Whether it can be used; once it cannot, it never can again."""
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any], timeout_s: float, progress: OnProgress) -> bytes:
        """The result as JSON text. ToolRefused, SessionLost, Silent."""
        ...

    async def tools(self, timeout_s: float) -> tuple[ToolSpec, ...]:
        """What the server offers. SessionLost, Silent, ToolRefused."""
        ...

    def is_safe(self, tool: str) -> bool:
        """Whether the server says of a tool that calling it twice is as good as once."""
        ...

    def is_read_only(self, tool: str) -> bool:
        """Whether the server says of a tool that it changes nothing."""
        ...

    def about(self) -> Mapping[str, Any]:
        """The server's own name and version, and the protocol that was agreed on."""
        ...


Connect = Callable[[Server, Mapping[str, str], str], AbstractAsyncContextManager[Session]]
"""From an expanded definition, the environment a program gets besides its own, and the folder it starts in."""


@frozen
class Prompt:
    """One question to a model (without its provider's name). ``schema``: what the answer must be, or None for text."""

    model: str
    text: str
    system: str
    max_tokens: int
    schema: Mapping[str, Any] | None = None


@frozen
class Reply:
    """What a model said. ``counts`` are input, output, cache-read and cache-write tokens, None where it did not say.

    ``is_cut``: it had more to say. ``refusal`` is why it would not, or empty.
    """

    text: str
    model: str
    counts: tuple[int, int, int, int] | None = None
    is_cut: bool = False
    refusal: str = ""


class ModelClient(Protocol):
    """A provider, used by several questions at once.

    An implementation promises: a question that is cancelled is hung up on.
    """

    async def ask(self, prompt: Prompt) -> Reply:
        """The answer to one question. SessionLost, ToolRefused."""
        ...

    async def close(self) -> None:
        """Let go of its connections."""
        ...


MakeClient = Callable[[Provider], ModelClient]

Sleep = Callable[[float], Awaitable[None]]
