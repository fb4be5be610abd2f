"""How long after a cancel, or after its last operation, a run has ended and none of its processes is left.

As many sandboxed operations as there are cores sleep, each in a slot of its own; when the last has begun the run is
cancelled. The floor is what loky takes to kill as many workers that sleep. The aim is the promise of `cancel`: two
seconds. These workers obey; one that does not is killed after a second. The other row is what every run pays for at its
end: as many workers that rest are ended, their zygotes and groups with them; its floor is loky's own shutdown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.floors.raw_loky import end_warm, kill_asleep
from benchmarks.graphs import one_phase
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, cores
from sage_sandbox.events import Event, OperationStarted
from sage_sandbox.runner import Runner

_ASLEEP: Final = "import time\ndef run():\n    time.sleep(600)\n"
_LOKY: Final = "loky's kill of workers that sleep"
_LOKY_END: Final = "loky's shutdown of workers that rest"


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
    """A row for each end."""
    end = f"end of {cores()} workers that rest, until no process is left"
    what = f"cancel of {cores()} operations, until no process is left"
    with tempfile.TemporaryDirectory() as folder:
        project = str(Path(folder).resolve())
        arms: dict[str, Round] = {
            what: lambda: [_cancel(project)],
            _LOKY: lambda: [kill_asleep(cores())],
            end: lambda: [_end(project)],
            _LOKY_END: lambda: [end_warm(cores())],
        }
        taken = take_turns(arms, pick(scale, 20, 5, 1))
    yield row(what, taken[what], "ms", {_LOKY: taken[_LOKY]}, [Aim("<= 2 s", 2000)])
    yield row(end, taken[end], "ms", {_LOKY_END: taken[_LOKY_END]})


def _end(project: str) -> float:
    slots = KeptOpen(project, cores())
    started = time.monotonic()
    slots.end()
    return time.monotonic() - started


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
