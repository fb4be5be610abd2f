"""How many sandboxed operations a second all cores together give.

One phase of many small operations through the runner, a slot a core, from the first begun to the last settled: zygotes
that are replaced on the way count, the start of the workers does not. Two floors, each of lean interpreters on all
cores at once: a fork-only operation (fork, request, run, answer, exit, wait; section 14, line 3), and the bare fork,
exit and wait, which nothing that gives an operation a process of its own can undercut.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.floors.forking import fork_rate
from benchmarks.graphs import one_phase
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.projects import SMALL, make_project
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, Stopwatch, cores, run

_AIMS = (Aim(">= 1,000/s", 1000, at_most=False), Aim(">= 70 % of fork-only operations", 0.7, of="ratio", at_most=False))
_SERVED, _BARE = "fork-only operation", "bare fork + exit + wait"


def measure(scale: Scale) -> Iterator[Row]:
    """Without grants, which the aim is for, and with a read grant."""
    operations = pick(scale, 3000, 500, 10)
    seconds = pick(scale, 2.0, 0.5, 0.05)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        project = make_project(scratch / "project", pick(scale, SMALL, SMALL, 10))
        slots = KeptOpen(project, cores())
        stack.callback(slots.end)
        bare = f"operations a second, {cores()} slots, no grants"
        arms: dict[str, Round] = {
            bare: lambda: [_rate(slots, project, operations)],
            f'operations a second, {cores()} slots, read: ["."]': lambda: [
                _rate(slots, project, operations // 2, reads=True)
            ],
            _SERVED: lambda: [fork_rate("served", cores(), seconds)],
            _BARE: lambda: [fork_rate("bare", cores(), seconds)],
        }
        taken = take_turns(arms, pick(scale, 9, 3, 1), warm_up=pick(scale, 1, 1, 0))
    floors = {_SERVED: taken.pop(_SERVED), _BARE: taken.pop(_BARE)}
    for name, values in taken.items():
        yield row(name, values, "/s", floors, _AIMS if name == bare else ())


def _rate(slots: KeptOpen, project: str, operations: int, *, reads: bool = False) -> float:
    watch = Stopwatch()
    run(one_phase(operations), slots, project, watch=watch, reads=reads)
    return operations / watch.elapsed_s


if __name__ == "__main__":
    main(__doc__ or "", measure)
