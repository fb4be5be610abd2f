"""Runs that are saved, their sandboxes faked: what an operation does is what the test says."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_sandbox.cli.main import main
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.sandbox.job import Job

Act = Callable[[Job, int], Outcome]

THREE: dict[str, dict[str, Any]] = {"a": {}, "b": {"needs": ["a"], "ops": ["x", "y"]}, "c": {"needs": ["b"]}}
"""One phase after the other; the second has two operations."""


def fail(_job: Job, _cancel_fd: int) -> Outcome:
    return rejected("error", "it was told to")


def hang(_job: Job, cancel_fd: int) -> Outcome:
    select.select([cancel_fd], [], [])
    return rejected("cancelled", "cancelled")


def be_terminated(job: Job, cancel_fd: int) -> Outcome:
    """As if somebody sent SIGTERM to the run meanwhile."""
    os.kill(os.getpid(), signal.SIGTERM)
    return hang(job, cancel_fd)


@dataclass
class World:
    """A project, what its operations do by ``phase/operation``, and which of them did."""

    project: Path
    acts: dict[str, Act] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def write(self, phases: Mapping[str, Mapping[str, Any]], name: str = "Steps", **head: Any) -> None:
        """The template ``t.yaml``: phases by id, with ``needs``, ``ops`` (names; a single one without), ``note`` (makes
        its code another), ``fields`` of the phase, ``op_fields`` of every operation."""
        document = {"name": name, **head, "phases": [_phase(phase, about) for phase, about in phases.items()]}
        (self.project / "t.yaml").write_text(json.dumps(document), encoding="utf-8")

    def run(self, *args: str) -> int:
        """``sage-sandbox run t.yaml f``, in this process; the exit code."""
        return self.main("run", "t.yaml", "f", *args)

    def resume(self, *args: str) -> int:
        """``sage-sandbox resume f``."""
        return self.main("resume", "f", *args)

    def main(self, *args: str) -> int:
        self.ran.clear()
        self.jobs.clear()
        # Operations do here what the test says, not what their content does: the cache could not tell them apart.
        uncached = ("--no-cache",) if args[0] in ("run", "resume") else ()
        return main((*args, *uncached))

    def state(self, *names: str) -> Path:
        return self.project.joinpath(".sage", "state", *names)

    def tree(self) -> dict[str, bytes]:
        """Every file of the state that runs decide by."""
        files = (path for path in self.state().rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(self.state())): path.read_bytes() for path in files}

    def spoil(self, *names: str) -> None:
        """Change one byte in the middle of a file of the state."""
        path = self.state(*names)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


class Pretender:
    """A supervisor that confines nothing and runs nothing."""

    def __init__(self, _project: str, _slot: int, world: World) -> None:
        self._world = world

    def prepare(self) -> None:
        pass

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        name = job.code.rpartition("# ")[2]
        self._world.ran.append(name)
        self._world.jobs.append(job)
        act = self._world.acts.get(name)
        return act(job, cancel_fd) if act else Outcome("fulfilled", result=job.inputs or b"null", level="full")

    def close(self) -> None:
        pass


def _phase(phase: str, about: Mapping[str, Any]) -> dict[str, Any]:
    names: Iterable[str] | None = about.get("ops")
    made = [_operation(phase, name, about) for name in names or ["op-1"]]
    fields = about.get("fields", {})
    operations: Any = made if names else made[0]
    return {
        "id": phase,
        "name": phase.title(),
        "dependencies": about.get("needs", []),
        "operations": operations,
        **fields,
    }


def _operation(phase: str, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    code = f"def run():\n    return {about.get('note', '')!r}  # {phase}/{name}"
    return {"id": name, "type": "python", "code": code, **about.get("op_fields", {})}
