"""How long after a cancel a run has ended and none of its processes is left.

As many sandboxed operations as there are cores sleep, each in a slot of its own; when the last has begun the run is
cancelled. The floor is what loky takes to kill as many workers that sleep. The aim is the promise of `cancel`: two
seconds, also where a worker does not obey.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.floors.raw_loky import kill_asleep
from benchmarks.graphs import one_phase
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import cores
from sage_sandbox.events import Event, OperationStarted
from sage_sandbox.runner import Runner

_ASLEEP: Final = "import time\ndef run():\n    time.sleep(600)\n"
_LOKY: Final = "loky's kill of workers that sleep"


class _Canceller:
    """An observer that cancels its run once all of so many operations have begun, and remembers when."""

    def __init__(self, operations: int) -> None:
        self.runner: Runner | None = None
        self.cancelled = 0.0
        self._missing = operations

    def __call__(self, event: Event) -> None:
        """Count what begins."""
        if isinstance(event, OperationStarted):
            self._missing -= 1
            if not self._missing and self.runner is not None:
                self.cancelled = time.monotonic()
                self.runner.cancel()


def measure(scale: Scale) -> Iterator[Row]:
    """One row."""
    what = f"cancel of {cores()} operations, until no process is left"
    with tempfile.TemporaryDirectory() as folder:
        project = str(Path(folder).resolve())
        arms: dict[str, Round] = {what: lambda: [_cancel(project)], _LOKY: lambda: [kill_asleep(cores())]}
        taken = take_turns(arms, pick(scale, 20, 5, 1))
    yield row(what, taken[what], "ms", {_LOKY: taken[_LOKY]}, [Aim("<= 2 s", 2000)])


def _cancel(project: str) -> float:
    canceller = _Canceller(cores())
    workflow = one_phase(cores(), _ASLEEP)
    runner = Runner(workflow, feature="benchmark", project=project, parallel=cores(), observers=(canceller,))
    canceller.runner = runner
    result = runner.run()
    took = time.monotonic() - canceller.cancelled
    if result.status != "cancelled":
        raise RuntimeError(f"the run ended as {result.status}: {result.errors[:1]}")
    return took


if __name__ == "__main__":
    main(__doc__ or "", measure)
