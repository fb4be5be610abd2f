"""What an operation left: frozen, plain, fit to cross a process border."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal["error", "timeout", "limit", "denied", "worker lost", "cancelled"]
MemoryControl = Literal["cgroup", "sampled"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing the operation tried that its policy does not allow: ``allow`` is the grant that would, or empty."""

    what: str
    allow: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file collected from ``$SAGE_OUT``: path in the artifact folder, size, SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the named exceptions came to here: how memory is held, if /proc is there, how names are hidden."""

    memory: MemoryControl = "sampled"
    proc: bool = True
    hidden: Literal["overlay", "entries", "none needed"] = "none needed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one operation ended, from its last attempt.

    ``result`` is JSON text (UTF-8), already checked for size, depth and node count, still untrusted. ``stdout`` and
    ``stderr`` are the last 64 KiB of each, raw. Durations are seconds, sizes bytes. ``scrubbed`` counts the secrets
    that were replaced in all of this by ``[secret:NAME]``. ``cached_s`` is the age of an outcome that was not run for
    but found in the cache, else None; its durations are those of the run that left it.
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
    artifacts: tuple[Artifact, ...] = ()
    written: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    scrubbed: int = 0
    cached_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it was fulfilled."""
        return self.status == "fulfilled"

    def value(self) -> Any:
        """The result as data."""
        return json.loads(self.result)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of an operation that may have had several."""

    status: Literal["fulfilled", "rejected"]
    reason: Reason | None
    error: str
    duration_s: float


def rejected(reason: Reason, error: str, hint: str = "") -> Outcome:
    """An outcome for an operation that never got as far as a sandbox."""
    return Outcome("rejected", reason, error, hint)
