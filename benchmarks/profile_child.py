"""Where a warm sandboxed operation's time goes: ``python -m benchmarks.profile_child [--times N]``.

No benchmark: it looks at insides, by wrapping what they are made of, and prints tables of medians for whoever has to
make them faster. First an operation as its supervisor sees it; then what a new child costs that nothing was prepared
for, which a spare hides as long as operations come slower than that; then that child's own steps, with the page faults
that each took.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import percentile
from benchmarks.inside_timing import NAMES, SIZE, Notes
from benchmarks.machine import HERE, compile_byte_code
from benchmarks.projects import SMALL, make_project
from benchmarks.subjects import fulfilled, python_job
from benchmarks.table import figure
from sage_sandbox.sandbox import nursery, supervisor
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.sandbox.watch import Watch

Taken = dict[str, list[float]]

_STRETCHES: Final = (
    ("compile_steps, or a blueprint known", "submitted", "compiled"),
    ("spare taken (half-open: steps sent)", "compiled", "taken"),
    ("waited until it is ready", "taken", "ready"),
    ("request sent", "ready", "sent"),
    ("request to result", "sent", "result"),
    ("result to gone (kill, reap)", "result", "gone"),
    ("outcome made, descriptors closed", "gone", "done"),
    ("submit to result, all of it", "submitted", "done"),
    ("of these, asking for the next child", "refill begun", "refilled"),
)


class Marker:
    """Notes when each step of the running operation began and ended."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Note the time, of the first occurrence."""
        self.marks.setdefault(name, time.perf_counter())

    def watch(self, owner: Any, attribute: str, end: str, begin: str = "") -> None:
        """Have every call of a function leave a mark when it returns, and one when it begins if that has a name."""
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if begin:
                self.mark(begin)
            try:
                return inner(*args, **kwargs)
            finally:
                self.mark(end)

        setattr(owner, attribute, marked)


def instrument() -> Marker:
    """Wrap the supervisor's steps, for as long as this process lives."""
    marker = Marker()
    marker.watch(Supervisor, "_blueprint", "compiled")
    marker.watch(Supervisor, "_take_spare", "taken")
    marker.watch(Supervisor, "_confined_child", "ready")
    marker.watch(Watch, "start", "sent")
    marker.watch(Supervisor, "_refill", "refilled", "refill begun")
    marker.watch(Watch, "_read_frames", "result")
    marker.watch(Watch, "until_gone", "gone")
    return marker


def stretches(box: Supervisor, job: Job, marker: Marker, times: int, pause_s: float) -> Taken:
    """What each stretch of so many operations took (seconds)."""
    taken: Taken = {}
    for number in range(-max(3, times // 10), times):
        time.sleep(pause_s)
        marker.marks = {"submitted": time.perf_counter()}
        fulfilled(box.run(job))
        marker.mark("done")
        for name, start, end in _STRETCHES:
            if number >= 0 and {start, end} <= marker.marks.keys():
                taken.setdefault(name, []).append(marker.marks[end] - marker.marks[start])
    return taken


def birth(box: Supervisor, job: Job, times: int, notes: Notes) -> tuple[Taken, Taken, Taken]:
    """A child that nothing was prepared for: what it takes from outside, its own steps, their page faults."""
    outside: Taken = {}
    inside: Taken = {name: [] for name in NAMES}
    faults: Taken = {name: [] for name in NAMES}
    for _ in range(times):
        zygote = box._zygote_for(())  # noqa: SLF001 - here, as below, it looks at the insides
        blueprint = box._blueprint(job)  # noqa: SLF001
        notes.take()
        moments = [time.perf_counter()]
        child = zygote.spawn(box._free_group(job.limits), -1)  # noqa: SLF001
        zygote.wait_born(child)
        moments.append(time.perf_counter())
        child.confine(blueprint)
        child.wait_ready()
        moments.append(time.perf_counter())
        child.frames.sock.sendall(wire.pack(supervisor._request(job, terminal=False)))  # noqa: SLF001
        child.frames.wait(time.monotonic() + nursery.START_S)
        moments.append(time.perf_counter())
        box._bury(child)  # noqa: SLF001
        moments.append(time.perf_counter())
        names = ("asked to born", "confine to ready", "request to result", "kill to gone")
        for name, start, end in zip(names, moments, moments[1:], strict=False):
            outside.setdefault(name, []).append(end - start)
        for name, (seconds, count) in notes.take().items():
            inside[name].append(seconds)
            faults[name].append(count)
    return outside, inside, faults


@contextmanager
def inside_timed(folder: Path) -> Iterator[Notes]:
    """Zygotes started in this block note what their children do."""
    path = folder / "notes"
    path.write_bytes(bytes(SIZE))
    boot = nursery._BOOT  # noqa: SLF001
    hook = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); from benchmarks import inside_timing as timing; "
    setattr(nursery, "_BOOT", f"{hook}timing.install({str(path)!r}); {boot}")  # noqa: B010 - it is Final
    try:
        yield Notes(str(path))
    finally:
        setattr(nursery, "_BOOT", boot)  # noqa: B010


def show(title: str, taken: Mapping[str, list[float]], faults: Mapping[str, list[float]] | None = None) -> None:
    """Print medians in milliseconds; what never happened is left out."""
    print(f"\n{title} (ms: median, p10 .. p95{'; page faults' if faults else ''})")
    for name, values in taken.items():
        if not any(values):
            continue
        median, p10, p95 = (figure(percentile(values, share) * 1000) for share in (0.5, 0.1, 0.95))
        count = f"   {percentile(faults[name], 0.5):.0f}" if faults else ""
        print(f"  {name:<46} {median:>7}   {p10} .. {p95}{count}")


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
            with closing(Supervisor(project)) as box:
                for how, pause_s in (("back to back", 0.0), ("spare ready", 0.01)):
                    show(f"one operation, {name}, {how}", stretches(box, job, marker, times, pause_s))
            with inside_timed(Path(scratch)) as notes, closing(Supervisor(project)) as box:
                outside, inside, faults = birth(box, job, times, notes)
            show(f"a new child, {name}, from outside", outside)
            show(f"a new child, {name}, its own steps", inside, faults)
    return 0


if __name__ == "__main__":
    sys.exit(main())
