"""Loaded into a zygote by `profile_child`, and never otherwise: notes what each step of its children takes.

The notes go to a shared mapping, which a child still has when it has neither files nor descriptors left: for each name
in `NAMES` the seconds and the page faults (mostly copy-on-write) since they were last taken.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from sage_sandbox.sandbox.inside import child, programs, wire

STEPS: Final = (
    "Namespaces", "Work", "OwnRoot", "Place", "Attach", "Proc", "Pivot", "Landlock", "Identity", "Descriptors",
    "Defaults", "Rlimits", "Powerless", "Restrict", "Seccomp", "SelfCheck",
)  # fmt: skip
REHEARSE, READ_STEPS, READ_REQUEST, RUN = "rehearse (before ready)", "unpack steps", "unpack request", "load and run"
NAMES: Final = (REHEARSE, READ_STEPS, *STEPS, READ_REQUEST, RUN)
_NOTE: Final = struct.Struct("dd")
SIZE: Final = _NOTE.size * len(NAMES)

Call = Callable[..., Any]


class Notes:
    """The shared mapping."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        self._area = mmap.mmap(fd, SIZE)
        os.close(fd)

    def add(self, name: str, seconds: float, faults: float) -> None:
        """Add to what a name has."""
        place = NAMES.index(name) * _NOTE.size
        before = _NOTE.unpack_from(self._area, place)
        _NOTE.pack_into(self._area, place, before[0] + seconds, before[1] + faults)

    def take(self) -> dict[str, tuple[float, float]]:
        """What was noted, by name; then forget it."""
        taken = dict(zip(NAMES, _NOTE.iter_unpack(self._area[:SIZE]), strict=True))
        self._area[:SIZE] = bytes(SIZE)
        return {name: (note[0], note[1]) for name, note in taken.items()}

    def timed(self, name: str, inner: Call) -> Call:
        """The same function, noted."""

        def call(*args: Any) -> Any:
            began = _moment()
            try:
                return inner(*args)
            finally:
                self.add(name, *_since(began))

        return call


def _moment() -> tuple[float, int]:
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _since(began: tuple[float, int]) -> tuple[float, int]:
    now = _moment()
    return now[0] - began[0], now[1] - began[1]


def install(path: str) -> None:
    """Have the children of this zygote-to-be noted."""
    notes = Notes(path)
    make, run, send = child.Ascent.__init__, programs.run, wire.send
    running: list[tuple[float, int]] = []

    def init(self: child.Ascent, *args: Any) -> None:
        make(self, *args)
        self._apply = {kind: notes.timed(kind.__name__, step) for kind, step in self._apply.items()}

    def run_noted(*args: Any) -> None:
        running.append(_moment())
        run(*args)

    def send_noted(*args: Any) -> None:
        if running:
            notes.add(RUN, *_since(running.pop()))
        send(*args)

    # mypy takes an assignment to a method for a mistake; here it is the purpose.
    setattr(child.Ascent, "__init__", init)  # noqa: B010
    setattr(programs, "run", run_noted)  # noqa: B010
    setattr(wire, "send", send_noted)  # noqa: B010
    setattr(programs, "rehearse", notes.timed(REHEARSE, programs.rehearse))  # noqa: B010
    setattr(wire, "unpack_steps", notes.timed(READ_STEPS, wire.unpack_steps))  # noqa: B010
    setattr(wire, "unpack_request", notes.timed(READ_REQUEST, wire.unpack_request))  # noqa: B010
