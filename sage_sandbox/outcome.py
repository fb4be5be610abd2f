"""What an operation left: frozen, plain, fit to cross a process border."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from sage_sandbox.frozen import frozen

Reason = Literal[
    "error", "timeout", "limit", "denied", "worker lost", "cancelled", "unavailable", "budget_exceeded"
]  # fmt: skip
"""``unavailable``: a service that the operation needs does not answer; it may be back later."""
MemoryControl = Literal["cgroup", "sampled"]


@frozen
class Violation:
    """One thing the operation tried that its policy does not allow: ``allow`` is the grant that would, or empty."""

    what: str
    allow: str = ""


@frozen
class Contact:
    """What the operation asked the egress proxy for: a host and port (empty and 0 where it was no request).

    ``allowed``: let through, ``refused``: not, ``failed``: granted, but ``why`` says what came in between. ``breaker``:
    nothing was asked for, but what is known of the host changed: ``why`` is ``closed to open``. ``allow`` is the grant
    that would let it through, or empty. Bytes went out (``sent``) and came in, over so many ``times``.
    """

    host: str
    port: int
    verdict: Literal["allowed", "refused", "failed", "breaker"]
    why: str = ""
    allow: str = ""
    times: int = 0
    sent: int = 0
    received: int = 0


def gathered(contacts: Iterable[Contact]) -> tuple[Contact, ...]:
    """Contacts with their figures added up, each that differs in more than those once."""
    found: dict[Contact, Contact] = {}
    for one in contacts:
        kind = replace(one, times=0, sent=0, received=0)
        so_far = found.get(kind, kind)
        found[kind] = replace(
            kind,
            times=so_far.times + one.times,
            sent=so_far.sent + one.sent,
            received=so_far.received + one.received,
        )
    return tuple(found.values())


@frozen
class CachedAnswer:
    """Answers of a tool that was not called but answered from what is kept, so many ``times``: ``age_s``, the oldest.

    ``unavailable``: because its server was; else because the template says that it may be.
    """

    tool: str
    age_s: float
    unavailable: bool
    times: int = 1


def merged_answers(answers: Iterable[CachedAnswer]) -> tuple[CachedAnswer, ...]:
    """Each tool and reason once, counted."""
    found: dict[tuple[str, bool], CachedAnswer] = {}
    for one in answers:
        kind = (one.tool, one.unavailable)
        so_far = found.get(kind, replace(one, times=0))
        found[kind] = replace(one, age_s=max(one.age_s, so_far.age_s), times=one.times + so_far.times)
    return tuple(found.values())


@frozen
class Usage:
    """What asking a model took, in tokens: four counters that have nothing in common, over so many ``times``.

    ``asked`` is the model as the template names it (``provider/model``), ``provider`` and ``model`` are who answered,
    as reported. ``measured``: the provider counted; else it said nothing, and these are estimates.
    """

    asked: str
    provider: str
    model: str
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    times: int = 1
    measured: bool = True

    @property
    def total(self) -> int:
        """All tokens."""
        return self.input + self.output + self.cache_read + self.cache_write


def added_up(usage: Iterable[Usage]) -> tuple[Usage, ...]:
    """Usage with its figures added up, each model that was asked, and that answered, once."""
    found: dict[tuple[str, str, str, bool], Usage] = {}
    for one in usage:
        key = (one.asked, one.provider, one.model, one.measured)
        so_far = found.get(key)
        found[key] = one if so_far is None else _sum(so_far, one)
    return tuple(found.values())


def _sum(one: Usage, other: Usage) -> Usage:
    return replace(
        one,
        input=one.input + other.input,
        output=one.output + other.output,
        cache_read=one.cache_read + other.cache_read,
        cache_write=one.cache_write + other.cache_write,
        times=one.times + other.times,
    )


@frozen
class Artifact:
    """A file collected from ``$SAGE_OUT``: path in the artifact folder, size, SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


@frozen
class Capabilities:
    """What the named exceptions came to here: how memory is held, if /proc is there, how names are hidden."""

    memory: MemoryControl = "sampled"
    proc: bool = True
    hidden: Literal["overlay", "entries", "none needed"] = "none needed"


@frozen
class Outcome:
    """How one operation ended, from its last attempt.

    ``result`` is JSON text (UTF-8), already checked for size, depth and node count, still untrusted. ``stdout`` and
    ``stderr`` are the last 64 KiB of each, raw. Durations are seconds, sizes bytes. ``scrubbed`` counts the secrets
    that were replaced in all of this by ``[secret:NAME]``, ``calls`` the tool calls that were carried out.
    ``cached_s`` is the age of an outcome that was not run for but found in the cache, else None; its durations are
    those of the run that left it. ``cached_answers`` are those of tools that it was given in the place of a call,
    ``lacked`` the tool servers from which it got neither an answer nor one of before. ``usage`` is what models were
    asked for, over all attempts.
    """

    status: Literal["fulfilled", "rejected"]
    reason: Reason | None = None
    error: str = ""
    hint: str = ""
    result: bytes = b"null"
    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    duration_s: float = 0.0
    cpu_s: float = 0.0
    max_rss: int = 0
    level: Literal["full", "none"] = "none"
    capabilities: Capabilities = Capabilities()
    violations: tuple[Violation, ...] = ()
    contacts: tuple[Contact, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    written: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    scrubbed: int = 0
    calls: int = 0
    cached_s: float | None = None
    cached_answers: tuple[CachedAnswer, ...] = ()
    lacked: tuple[str, ...] = ()
    usage: tuple[Usage, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it was fulfilled."""
        return self.status == "fulfilled"

    def value(self) -> Any:
        """The result as data."""
        return json.loads(self.result)


@frozen
class Attempt:
    """One try of an operation that may have had several."""

    status: Literal["fulfilled", "rejected"]
    reason: Reason | None
    error: str
    duration_s: float


def rejected(reason: Reason, error: str, hint: str = "") -> Outcome:
    """An outcome for an operation that never got as far as a sandbox."""
    return Outcome("rejected", reason, error, hint)
