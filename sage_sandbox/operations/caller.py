"""How the operations of a worker call tools and ask models: through its run's broker, one operation at a time.

An operation of ``type: mcp`` or ``llm`` is such a call and nothing else; what runs in a sandbox asks its supervisor,
which comes here.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sage_sandbox.broker.client import CALL_S, BrokerClient, Line
from sage_sandbox.outcome import CachedAnswer, Outcome, Violation, merged_answers, rejected
from sage_sandbox.sandbox.calls import Answer, Call, ToolSpec
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.untrusted import UntrustedData, check_json
from sage_sandbox.workflow.answers import mismatch

_NO_MODELS = Answer(ok=False, error="no model was granted to this run", kind="denied")
_NO_TOOLS = Answer(ok=False, error="no tool was granted to this run", kind="denied")


class Caller:
    """What a worker calls tools with; `call` and `list_tools` fit the supervisor and may be used from its threads."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._operation = ""
        self._client: BrokerClient | None = None
        self._notes = _Notes()

    def begin(self, operation: str, line: Line | None) -> None:
        """From now on calls are for this operation (``phase/operation``)."""
        self._operation = operation
        self._notes = _Notes()
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
        notes = self._notes  # an answer may come when another operation runs
        notes.begin(call.tool)
        answer = self._client.call(self._operation, call, timeout_s=timeout_s, cancel_fd=cancel_fd)
        notes.end(call.tool, answer)
        return answer

    def noted(self, outcome: Outcome) -> Outcome:
        """The outcome of the operation that ran, with what its calls came to."""
        return self._notes.noted(outcome)

    def list_tools(self) -> tuple[ToolSpec, ...]:
        """The tools that the operation that runs was granted."""
        return self._client.list_tools(self._operation) if self._client is not None else ()

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        """Make the one call that an operation is."""
        started = time.monotonic()
        if job.type == "llm":
            return _of_model(job, self._ask(job, cancel_fd), time.monotonic() - started)
        answer = self.call(Call(job.tool, job.params), timeout_s=job.limits.timeout_s, cancel_fd=cancel_fd)
        return _outcome(job, answer, time.monotonic() - started)

    def _ask(self, job: Job, cancel_fd: int) -> Answer:
        if self._client is None:
            return _NO_MODELS
        name = f"model:{job.model}"
        self._notes.begin(name)
        answer = self._client.ask_model(
            self._operation, job.model, job.params, timeout_s=job.limits.timeout_s, cancel_fd=cancel_fd
        )
        self._notes.end(name, answer)
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
        self._client = self._line = None


class _Notes:
    """What the calls of one operation came to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: tuple[CachedAnswer, ...] = ()
        self._lacked: set[str] = set()
        self._open: Counter[str] = Counter()

    def begin(self, tool: str) -> None:
        """A call is under way; from any thread."""
        with self._lock:
            self._open[_server(tool)] += 1

    def end(self, tool: str, answer: Answer) -> None:
        """It is answered; from any thread."""
        with self._lock:
            self._open[_server(tool)] -= 1
            if answer.cached_s is not None:
                found = CachedAnswer(tool, answer.cached_s, answer.unavailable)
                self._cached = merged_answers((*self._cached, found))
            if answer.kind == "transport":
                self._lacked.add(_server(tool))

    def noted(self, outcome: Outcome) -> Outcome:
        """The outcome with that in it: what failed for want of a server may be whole once that is back."""
        with self._lock:
            lacked = set() if outcome.ok else set(self._lacked)
            if outcome.reason == "timeout":
                lacked |= {server for server, calls in self._open.items() if calls}
            if not self._cached and not lacked:
                return outcome
            if lacked and outcome.reason == "error":
                outcome = replace(outcome, reason="unavailable")
            return replace(outcome, cached_answers=self._cached, lacked=tuple(sorted(lacked)))


def _server(tool: str) -> str:
    return tool.partition("/")[0]


def _outcome(job: Job, answer: Answer, duration_s: float) -> Outcome:
    """What an answer means for an operation that is nothing but the call."""
    if answer.ok:
        try:
            value = check_json(answer.value)
            return Outcome("fulfilled", result=value, duration_s=duration_s, cached_s=answer.cached_s)
        except UntrustedData as error:
            return _rejected(Answer(ok=False, error=f"{job.tool}: {error}"), job, duration_s)
    return _rejected(answer, job, duration_s)


def _of_model(job: Job, answer: Answer, duration_s: float) -> Outcome:
    """What an answer means for an operation that is nothing but the question: text, or data as its schema says."""
    if not answer.ok:
        return _rejected(answer, job, duration_s)
    schema = json.loads(job.params)["schema"]
    try:
        result = check_json(answer.value) if schema is None else _data(json.loads(answer.value), schema)
    except UntrustedData as error:
        return _rejected(replace(answer, error=f"{job.model}: {error}", kind="tool"), job, duration_s)
    return Outcome("fulfilled", result=result, duration_s=duration_s, cached_s=answer.cached_s, usage=answer.usage)


def _data(text: str, schema: Mapping[str, Any]) -> bytes:
    """A text that is JSON and as its schema says; UntrustedData if it is not."""
    data = check_json(text.encode("utf-8", "surrogatepass"), "the answer")
    if trouble := mismatch(json.loads(data), schema):
        raise UntrustedData(trouble)
    return data


def _rejected(answer: Answer, job: Job, duration_s: float) -> Outcome:
    violations: tuple[Violation, ...] = ()
    hint = ""
    match answer.kind:
        case "denied":
            grant = f"model:{job.model}" if job.type == "llm" else f"tool:{job.tool}"
            outcome, hint = rejected("denied", answer.error), f"--allow {grant}"
            violations = (Violation(answer.error, grant),)
        case "limit":
            outcome, hint = rejected("limit", answer.error), "raise its max_tokens"
        case "cancelled":
            outcome = rejected("cancelled", answer.error)
        case "transport" if duration_s >= job.limits.timeout_s:
            outcome = rejected("timeout", answer.error)
        case "transport":
            outcome = rejected("unavailable", answer.error)
        case _:
            outcome = rejected("error", answer.error)
    return replace(outcome, hint=hint, duration_s=duration_s, violations=violations, usage=answer.usage)
