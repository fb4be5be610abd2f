"""When something is over and how it ended: thresholds, retries, what is blocked, the status of a run. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from sage_sandbox.errors import ExitCode
from sage_sandbox.events import PhaseStatus, RunStatus
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Attempt, Contact, Outcome, Reason, Usage, added_up, gathered, rejected
from sage_sandbox.policy import RETRIES_MAX
from sage_sandbox.workflow.definition import Operation, Phase

RETRIED: Final[frozenset[Reason]] = frozenset({"error", "timeout", "worker lost", "unavailable"})
"""What may pass when tried again; a limit, a denial and a cancel would be the same the next time."""
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0

GOES_ON: Final[frozenset[PhaseStatus]] = frozenset({"completed", "degraded"})
"""The endings of a phase after which its dependents run."""


def phase_status(fulfilled: int, total: int, threshold: float) -> PhaseStatus:
    """How a phase ended whose operations were left to settle by themselves."""
    if fulfilled / total < threshold:
        return "failed"
    return "completed" if fulfilled == total else "degraded"


def run_status(
    phases: Iterable[tuple[PhaseStatus, bool]], *, cancelled: bool, timed_out: bool, out_of_budget: bool = False
) -> tuple[RunStatus, ExitCode]:
    """How a run ended, from each phase's status and whether it was written as a single operation."""
    seen = set(phases)
    statuses = {status for status, _ in seen}
    if cancelled:
        return "cancelled", ExitCode.CANCELLED
    if timed_out or "timeout" in statuses:
        return "paused", ExitCode.TIMEOUT
    if ("failed", False) in seen or "paused" in statuses or out_of_budget:
        return "paused", ExitCode.PAUSED
    if statuses - GOES_ON:
        return "failed", ExitCode.FAILED
    return "completed", ExitCode.DONE


def may_retry(outcome: Outcome, retries: int, used: int) -> bool:
    """Whether the template's retries cover this outcome and are not used up."""
    return outcome.reason in RETRIED and used < min(retries, RETRIES_MAX)


def backoff_s(used: int, jitter: Callable[[], float]) -> float:
    """How long to wait before retry number ``used + 1``: full jitter over an exponentially growing span.

    ``jitter`` gives numbers in [0, 1). Full jitter spreads operations that failed together best (AWS Architecture Blog,
    "Exponential Backoff And Jitter", 2015).
    """
    return jitter() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**used)


@frozen
class Stop:
    """Why operations are ended before their time: what their outcomes and their phase then say."""

    reason: Literal["timeout", "cancelled", "budget_exceeded"]
    text: str
    hint: str = ""


@dataclass(eq=False, slots=True)
class Trial:
    """One operation of a phase on its way to a final outcome, over all its attempts.

    ``ticket`` is set while a slot holds it; ``repeated`` once a lost worker's work was repeated for free.
    """

    run: PhaseRun
    index: int
    attempt: int = 1
    retries_used: int = 0
    repeated: bool = False
    ticket: int = 0
    settled: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    contacts: tuple[Contact, ...] = ()
    usage: tuple[Usage, ...] = ()

    @property
    def operation(self) -> Operation:
        """The operation as defined."""
        return self.run.phase.operations[self.index]

    def ended(self, outcome: Outcome) -> Outcome:
        """Book an attempt's outcome: what it means where the phase was stopped, all attempts noted in it."""
        self.ticket = 0
        stop = self.run.stop
        if stop is not None and outcome.reason in ("cancelled", "worker lost"):
            self.run.was_cut = True
            outcome = replace(outcome, reason=stop.reason, error=stop.text, hint=stop.hint)
        self.attempts.append(Attempt(outcome.status, outcome.reason, outcome.error, outcome.duration_s))
        self.contacts = gathered((*self.contacts, *outcome.contacts))
        self.usage = added_up((*self.usage, *outcome.usage))
        return self._whole(outcome)

    def cut(self, stop: Stop) -> Outcome:
        """The outcome of an operation that is stopped between two attempts, or before its first."""
        self.run.was_cut = True
        return self._whole(rejected(stop.reason, stop.text, stop.hint))

    def _whole(self, outcome: Outcome) -> Outcome:
        """An outcome with what is known of all attempts."""
        return replace(outcome, attempts=tuple(self.attempts), contacts=self.contacts, usage=self.usage)


class PhaseRun:
    """A phase whose dependencies are done, until its last operation has settled.

    ``kept`` are outcomes that an earlier process left, by operation id: these operations do not run again.
    """

    def __init__(self, phase: Phase, kept: Mapping[str, Outcome] = MappingProxyType({})) -> None:
        self.phase = phase
        self.outcomes: list[Outcome | None] = [kept.get(operation.id) for operation in phase.operations]
        self.trials = [Trial(self, index) for index, outcome in enumerate(self.outcomes) if outcome is None]
        self.started: float | None = None
        self.inputs: bytes | None = None
        self.stop: Stop | None = None
        self.was_cut = False
        self.open = len(self.trials)

    def settle(self, trial: Trial, outcome: Outcome) -> None:
        """Note a final outcome."""
        trial.settled = True
        self.outcomes[trial.index] = outcome
        self.open -= 1

    @property
    def settled(self) -> list[tuple[str, Outcome]]:
        """Operations and their outcomes, in the order of the definition."""
        pairs = zip(self.phase.operations, self.outcomes, strict=True)
        return [(operation.id, outcome) for operation, outcome in pairs if outcome is not None]

    @property
    def fulfilled(self) -> int:
        """How many operations were."""
        return sum(outcome.ok for _, outcome in self.settled)

    def status(self) -> PhaseStatus:
        """How it ended; a stop counts only if an operation was ended by it."""
        if self.stop is not None and self.was_cut:
            return "paused" if self.stop.reason == "budget_exceeded" else self.stop.reason
        return phase_status(self.fulfilled, len(self.outcomes), self.phase.success_threshold)


class Frontier:
    """Which phases may start: a count of open dependencies for each, every edge looked at once."""

    def __init__(self, dependencies: Mapping[str, Sequence[str]], dependents: Mapping[str, Sequence[str]]) -> None:
        self._dependents = dependents
        self._open = {phase: len(set(names)) for phase, names in dependencies.items()}
        self._blocked: set[str] = set()
        self.first = tuple(phase for phase, number in self._open.items() if not number)

    def settle(self, phase: str, *, goes_on: bool) -> tuple[list[str], list[str]]:
        """The phases that may start now, and those that never will."""
        if not goes_on:
            return [], self._block(phase)
        ready = []
        for dependent in dict.fromkeys(self._dependents[phase]):
            self._open[dependent] -= 1
            if not self._open[dependent]:
                ready.append(dependent)
        return ready, []

    def _block(self, phase: str) -> list[str]:
        found: list[str] = []
        queue = deque([phase])
        while queue:
            for dependent in self._dependents[queue.popleft()]:
                if dependent not in self._blocked:
                    self._blocked.add(dependent)
                    found.append(dependent)
                    queue.append(dependent)
        return found
