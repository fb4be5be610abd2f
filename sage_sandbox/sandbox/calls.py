"""A tool call on its way out of a sandbox: what was asked for, what came back, and who may carry it."""

from __future__ import annotations

from collections.abc import Callable

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Usage


@frozen
class Call:
    """What a child asked for, already parsed and checked for size, depth and nodes.

    ``tool`` is ``server/tool`` and matches ``^[A-Za-z0-9_.-]{1,64}/[A-Za-z0-9_./-]{1,128}$``; ``arguments`` is the text
    of a JSON object, at most 1 MiB.
    """

    tool: str
    arguments: bytes


@frozen
class Answer:
    """What came of a call: ``value`` is JSON text, at most 16 MiB; ``error`` one line for the child.

    ``kind`` is empty, "denied", "tool" (the tool said no), "transport" or "cancelled"; of a model also "limit" (it had
    more to say than it might). ``cached_s`` is the age of an answer that was kept from an earlier call, ``unavailable``
    whether it stands in for a server that does not answer. ``usage`` is what a model was asked for.
    """

    ok: bool
    value: bytes = b"null"
    error: str = ""
    kind: str = ""
    retryable: bool = False
    cached_s: float | None = None
    unavailable: bool = False
    usage: tuple[Usage, ...] = ()


@frozen
class ToolSpec:
    """A tool as its server describes it; ``input_schema`` is JSON text."""

    name: str
    description: str
    input_schema: bytes


CallHandler = Callable[[Call], Answer]
"""May block; is called in a thread of the supervisor's process; must not raise."""
Lister = Callable[[], tuple[ToolSpec, ...]]
"""The tools that an operation was granted."""
