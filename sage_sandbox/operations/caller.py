"""How the operations of a worker call tools: through its run's broker, one operation at a time.

A ``type: mcp`` operation is such a call and nothing else; what runs in a sandbox asks its supervisor, which comes here.
"""

from __future__ import annotations

import time

from sage_sandbox.broker.client import CALL_S, BrokerClient, Line
from sage_sandbox.outcome import Outcome, Violation, rejected
from sage_sandbox.sandbox.calls import Answer, Call, ToolSpec
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.untrusted import UntrustedData, check_json

_NO_TOOLS = Answer(ok=False, error="no tool was granted to this run", kind="denied")


class Caller:
    """What a worker calls tools with; `call` and `list_tools` fit the supervisor and may be used from its threads."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._operation = ""
        self._client: BrokerClient | None = None

    def begin(self, operation: str, line: Line | None) -> None:
        """From now on calls are for this operation (``phase/operation``)."""
        self._operation = operation
        if line != self._line:
            self.close()
            self._line = line
            self._client = BrokerClient(line.path, line.token) if line is not None else None

    def end(self) -> None:
        """The operation is over: what it still waits for nobody will read, and the server is told."""
        if self._client is not None:
            self._client.give_up()

    def call(self, call: Call, *, timeout_s: float = CALL_S, cancel_fd: int = -1) -> Answer:
        """Have a tool called for the operation that runs."""
        if self._client is None:
            return _NO_TOOLS
        return self._client.call(self._operation, call, timeout_s=timeout_s, cancel_fd=cancel_fd)

    def list_tools(self) -> tuple[ToolSpec, ...]:
        """The tools that the operation that runs was granted."""
        return self._client.list_tools(self._operation) if self._client is not None else ()

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        """Make the one call that an operation is."""
        started = time.monotonic()
        answer = self.call(Call(job.tool, job.params), timeout_s=job.limits.timeout_s, cancel_fd=cancel_fd)
        return _outcome(job, answer, time.monotonic() - started)

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
        self._client = self._line = None


def _outcome(job: Job, answer: Answer, duration_s: float) -> Outcome:
    """What an answer means for an operation that is nothing but the call."""
    if answer.ok:
        try:
            return Outcome("fulfilled", result=check_json(answer.value), duration_s=duration_s)
        except UntrustedData as error:
            return _rejected(Answer(ok=False, error=f"{job.tool}: {error}"), job, duration_s)
    return _rejected(answer, job, duration_s)


def _rejected(answer: Answer, job: Job, duration_s: float) -> Outcome:
    violations: tuple[Violation, ...] = ()
    hint = ""
    match answer.kind:
        case "denied":
            outcome, hint = rejected("denied", answer.error), f"--allow tool:{job.tool}"
            violations = (Violation(answer.error, f"tool:{job.tool}"),)
        case "cancelled":
            outcome = rejected("cancelled", answer.error)
        case "transport" if duration_s >= job.limits.timeout_s:
            outcome = rejected("timeout", answer.error)
        case "transport":
            outcome = rejected("unavailable", answer.error)
        case _:
            outcome = rejected("error", answer.error)
    return Outcome(outcome.status, outcome.reason, outcome.error, hint, duration_s=duration_s, violations=violations)
