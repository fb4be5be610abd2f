"""How long a sandboxed Python operation takes on a warm supervisor, from submit to result.

Measured one at a time, in three ways: in this process back to back (the next child is made while an operation runs, so
it may not be ready), in this process after a pause (it is ready), and through a slot of the runner, pickled to a loky
worker and back. The floor is what loky alone takes for a no-op on a warm worker; the aim is section 14's, line 2.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from benchmarks.floors.raw_loky import nothing, warm_executor
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.projects import LARGE, SMALL, make_project
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, in_process, python_job
from sage_sandbox.sandbox.supervisor import Supervisor

_NONE = Aim("<= 1.0 ms p50 (0.7 likely)", 1.0)
_READ = Aim("<= 1.5 ms p50", 1.5)
_PAUSE_S = 0.01
_LOKY = "raw loky no-op"


def measure(scale: Scale) -> Iterator[Row]:
    """One row for each way and each grant."""
    rounds = pick(scale, 12, 5, 1)
    times = pick(scale, 100, 30, 2)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small = make_project(scratch / "small", pick(scale, SMALL, SMALL, 10))
        large = make_project(scratch / "large", pick(scale, LARGE, LARGE, 20))
        loky = stack.enter_context(warm_executor(1))
        slots = KeptOpen(small, 1)
        stack.callback(slots.end)
        grants = {
            "no grants": (small, python_job(small)),
            f'read: ["."], {SMALL} files': (small, python_job(small, reads=True)),
            f'read: ["."], {LARGE:,} files': (large, python_job(large, reads=True)),
        }
        arms: dict[str, Round] = {_LOKY: each(lambda: nothing(loky), times)}
        for name, (project, job) in grants.items():
            call = in_process(stack.enter_context(closing(Supervisor(project))), job)
            arms[f"warm, in process, back to back, {name}"] = each(call, times)
            arms[f"warm, in process, {_PAUSE_S * 1000:.0f} ms pause, {name}"] = each(call, times, pause_s=_PAUSE_S)
            if project == small:
                arms[f"warm, through a slot, back to back, {name}"] = each(partial(slots.one, job), times)
        taken = take_turns(arms, rounds)
    floor = taken.pop(_LOKY)
    for name, values in taken.items():
        yield row(name, values, "ms", {_LOKY: floor}, [_NONE if "no grants" in name else _READ])


if __name__ == "__main__":
    main(__doc__ or "", measure)
