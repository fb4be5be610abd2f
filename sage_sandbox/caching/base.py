"""What the loop and the cache say to each other. Loaded before the workers start: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Hashable

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.job import Job


@frozen
class Question:
    """Whether an operation need not run; ``about`` comes back with the answer. ``ttl_s``: None for the user's."""

    about: Hashable
    job: Job
    ttl_s: float | None = None


@frozen
class Reply:
    """The answer: an outcome, or None. With ``key`` (empty: never) the outcome of a run may be offered."""

    question: Question
    outcome: Outcome | None = None
    key: str = ""


def may_be_cached(kind: str, policy: Policy, asked: bool | None) -> bool:
    """Whether an operation may be answered from the cache, by its grants and by what its template says.

    A call of a tool, or a question to a model, may not: what its answer hangs on, the credentials among it, is known to
    the broker alone.
    """
    return kind not in ("mcp", "llm") and (policy.repeatable if asked is None else asked)
