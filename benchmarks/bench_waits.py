"""Whether operations that wait do so at the same time.

Four sandboxed operations sleep 0.45, 0.30, 0.40 and 0.20 s in one phase on four warm slots: their sum over the time of
the whole run, at most 3.0. The floor is the same on four warm loky workers (section 14, line 7).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.floors.raw_loky import wait_together, warm_executor
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, run
from sage_sandbox.workflow.definition import Operation, Phase, Workflow

WAITS_S: Final = (0.45, 0.30, 0.40, 0.20)
_CODE: Final = "import time\ndef run(params):\n    time.sleep(params)\n"
_WHAT, _LOKY = "four waits: their sum over the time they took, sandboxed", "raw loky, 4 workers"


def measure(scale: Scale) -> Iterator[Row]:
    """One row."""
    waits = WAITS_S if scale != "tiny" else tuple(wait / 10 for wait in WAITS_S)
    operations = tuple(Operation(f"op-{n}", "python", code=_CODE, params=wait) for n, wait in enumerate(waits))
    workflow = Workflow("waits", (Phase("waits", "waits", operations),))
    with ExitStack() as stack:
        project = str(Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve())
        slots = KeptOpen(project, len(waits))
        stack.callback(slots.end)
        loky = stack.enter_context(warm_executor(len(waits)))

        def sandboxed() -> list[float]:
            started = time.monotonic()
            run(workflow, slots, project)
            return [sum(waits) / (time.monotonic() - started)]

        arms: dict[str, Round] = {_WHAT: sandboxed, _LOKY: lambda: [sum(waits) / wait_together(loky, waits)]}
        taken = take_turns(arms, pick(scale, 15, 5, 1))
    yield row(_WHAT, taken[_WHAT], "x", {_LOKY: taken[_LOKY]}, [Aim(">= 2.95x", 2.95, at_most=False)])


if __name__ == "__main__":
    main(__doc__ or "", measure)
