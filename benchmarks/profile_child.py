"""Where does a warm sandboxed operation's time go, as its supervisor sees it? ``python -m benchmarks.profile_child``.

No benchmark: it looks at the supervisor's insides, by wrapping what they are made of, and prints a table of medians for
whoever has to make them faster. One operation is the sum of the first group; the second group is what a new child costs
by itself, which a spare hides as long as operations come slower than that.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import percentile
from benchmarks.machine import compile_byte_code
from benchmarks.projects import SMALL, make_project
from benchmarks.subjects import fulfilled, python_job
from benchmarks.table import figure
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.nursery import Child, Zygote
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.sandbox.watch import Watch

Marks = dict[str, float]

_STRETCHES: Final = (
    ("compile_steps, or a blueprint known", "submitted", "compiled"),
    ("spare taken (half-open: steps sent)", "compiled", "taken"),
    ("waited until it is ready", "taken", "ready"),
    ("request sent", "ready", "sent"),
    ("next child asked for (refill)", "sent", "refilled"),
    ("until the result is here", "refilled", "result"),
    ("result to gone (kill, reap)", "result", "gone"),
    ("outcome made, descriptors closed", "gone", "done"),
    ("submit to result, all of it", "submitted", "done"),
)


class Marker:
    """Notes when each step of the running operation ended."""

    def __init__(self) -> None:
        self.marks: Marks = {}

    def mark(self, name: str) -> None:
        """Note the time, of the first occurrence."""
        self.marks.setdefault(name, time.perf_counter())

    def after(self, owner: Any, attribute: str, name: str) -> None:
        """Have every call of a function end in a mark."""
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def marked(*args: Any, **kwargs: Any) -> Any:
            try:
                return inner(*args, **kwargs)
            finally:
                self.mark(name)

        setattr(owner, attribute, marked)


def instrument() -> Marker:
    """Wrap the supervisor's steps, for as long as this process lives."""
    marker = Marker()
    marker.after(Supervisor, "_blueprint", "compiled")
    marker.after(Supervisor, "_take_spare", "taken")
    marker.after(Supervisor, "_confined_child", "ready")
    marker.after(Watch, "start", "sent")
    marker.after(Supervisor, "_refill", "refilled")
    marker.after(Watch, "_read_frames", "result")
    marker.after(Watch, "until_gone", "gone")
    return marker


def stretches(supervisor: Supervisor, job: Job, marker: Marker, times: int, pause_s: float) -> dict[str, list[float]]:
    """What each stretch of so many operations took (seconds)."""
    taken: dict[str, list[float]] = {name: [] for name, _, _ in _STRETCHES}
    for number in range(-max(3, times // 10), times):
        time.sleep(pause_s)
        marker.marks = {"submitted": time.perf_counter()}
        fulfilled(supervisor.run(job))
        marker.mark("done")
        for name, start, end in _STRETCHES if number >= 0 else ():
            taken[name].append(max(0.0, marker.marks[end] - marker.marks[start]))
    return taken


def birth(supervisor: Supervisor, job: Job, times: int) -> dict[str, list[float]]:
    """What a child costs that nothing was prepared for (seconds)."""
    taken: dict[str, list[float]] = {}
    for _ in range(times):
        zygote: Zygote = supervisor._zygote_for(())  # noqa: SLF001 - it looks at the insides
        blueprint = supervisor._blueprint(job)  # noqa: SLF001
        moments = [time.perf_counter()]
        child: Child = supervisor._spawn(None)  # noqa: SLF001
        moments.append(time.perf_counter())
        zygote.wait_born(child)
        moments.append(time.perf_counter())
        child.confine(blueprint)
        child.wait_ready()
        moments.append(time.perf_counter())
        supervisor._bury(child)  # noqa: SLF001
        moments.append(time.perf_counter())
        names = ("spawn asked for", "asked to born (fork)", "confine to ready (every step)", "kill to gone, idle child")
        for name, start, end in zip(names, moments, moments[1:], strict=False):
            taken.setdefault(name, []).append(end - start)
    return taken


def show(title: str, taken: Mapping[str, list[float]]) -> None:
    """Print medians in milliseconds."""
    print(f"\n{title} (ms: median, p10 .. p95)")
    for name, values in taken.items():
        median, p10, p95 = (figure(percentile(values, share) * 1000) for share in (0.5, 0.1, 0.95))
        print(f"  {name:<46} {median:>6}   {p10} .. {p95}")


def main() -> int:
    """Profile without grants and with ``read: ["."]``, back to back and with the spare ready."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.profile_child", description=__doc__.partition("\n")[0])
    reader.add_argument("--times", type=int, default=300)
    times: int = reader.parse_args().times
    compile_byte_code()
    marker = instrument()
    with tempfile.TemporaryDirectory() as scratch:
        project = make_project(Path(scratch, "project"), SMALL)
        jobs = {"no grants": python_job(project), 'read: ["."], 200 files': python_job(project, reads=True)}
        for name, job in jobs.items():
            with closing(Supervisor(project)) as supervisor:
                pauses: dict[str, float] = {"back to back": 0.0, "spare ready": 0.01}
                for how, pause_s in pauses.items():
                    show(f"one operation, {name}, {how}", stretches(supervisor, job, marker, times, pause_s))
            with closing(Supervisor(project)) as supervisor:
                show(f"a new child, {name}", birth(supervisor, job, times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
