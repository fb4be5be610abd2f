"""What happens during a run, as frozen records, and who may listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Outcome, Usage

RunStatus = Literal["running", "paused", "completed", "failed", "cancelled"]
PhaseStatus = Literal["completed", "degraded", "failed", "blocked", "timeout", "cancelled", "paused"]


@frozen
class RunStarted:
    """The plan is made and the first operation is about to start; ``kept`` phases were done by an earlier process."""

    workflow_id: str
    feature: str
    workflow: str
    phases: int
    operations: int
    kept: int = 0


@frozen
class PhaseStarted:
    """All dependencies of the phase are done."""

    phase: str
    name: str
    operations: int


@frozen
class OperationStarted:
    """A slot has taken the operation (``attempt`` counts from 1)."""

    phase: str
    operation: str
    attempt: int


@frozen
class OperationSettled:
    """The operation has its final outcome."""

    phase: str
    operation: str
    outcome: Outcome


@frozen
class PhaseSettled:
    """Every operation of the phase has settled, or it will never start (blocked)."""

    phase: str
    name: str
    status: PhaseStatus
    fulfilled: int
    total: int
    duration_s: float


@frozen
class Weight:
    """What operations produced beside what is handed back of it, in bytes and in a model's tokens.

    ``exact``: the tokens were counted, not estimated. ``personal`` is how often personal data was replaced.
    """

    produced: int = 0
    handed: int = 0
    produced_tokens: int = 0
    handed_tokens: int = 0
    exact: bool = False
    personal: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(
            self.produced + other.produced,
            self.handed + other.handed,
            self.produced_tokens + other.produced_tokens,
            self.handed_tokens + other.handed_tokens,
            self.exact,
            self.personal + other.personal,
        )


NOTHING: Final = Weight()


@frozen
class RunSettled:
    """Nothing of the run is left running; ``resumable`` if it can be gone on with."""

    workflow_id: str
    feature: str
    status: RunStatus
    duration_s: float
    resumable: bool = False
    weight: Weight = NOTHING
    usage: tuple[Usage, ...] = ()


@frozen
class Notice:
    """Something the user should know that is no outcome: less parallel, a worker lost, a limit of this machine."""

    level: Literal["info", "warning", "error"]
    text: str


Event = RunStarted | PhaseStarted | OperationStarted | OperationSettled | PhaseSettled | RunSettled | Notice
Observer = Callable[[Event], None]
