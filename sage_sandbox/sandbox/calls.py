"""What passes between a supervisor and whoever carries out the tool calls of its operations: plain records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """What a child asked for, parsed and checked: ``tool`` is ``server/tool``, ``arguments`` a JSON object's text.

    ``tool`` matches ``[A-Za-z0-9_.-]{1,64}/[A-Za-z0-9_./-]{1,128}``; ``arguments`` are at most 1 MiB of UTF-8, checked
    for depth and nodes.
    """

    tool: str
    arguments: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: ``value`` is JSON text of at most 16 MiB, ``error`` one line for the child.

    ``kind`` is empty, or ``denied``, ``tool`` (the tool said no), ``transport`` or ``cancelled``.
    """

    ok: bool
    value: bytes = b"null"
    error: str = ""
    kind: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is listed: ``name`` is ``server/tool``, ``input_schema`` a JSON Schema's text."""

    name: str
    description: str
    input_schema: bytes


CallHandler = Callable[[Call], Answer]
"""Carries out one call. It may block, is called in a thread of the supervisor's process, and does not raise."""

Lister = Callable[[], tuple[ToolSpec, ...]]
"""Names the tools there are; called as a `CallHandler` is."""
