"""A tool server in a kernel sandbox of its own: a process that the broker starts in the place of the server's program.

What the server is given comes in a file that only its descriptor leads to, for its values may be credentials, and what
stands in this process's own environment could change what it does before anything is confined.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from sage_sandbox.errors import SageError
from sage_sandbox.grants.limits import machine_ceilings
from sage_sandbox.grants.review import grant_policy
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import CEILING_CPU_S, CEILING_TIMEOUT_S, GiB, Limits, MiB, parse_grant
from sage_sandbox.sandbox.job import Job
from sage_sandbox.signals import cancel_on_signals

MEMORY: Final = 1 * GiB
PIDS: Final = 128
DISK: Final = 256 * MiB


def main(spec_fd: str) -> int:
    """Run the server that a file describes, its streams passed on; the exit code, once it has ended."""
    from sage_sandbox.sandbox.inside.syscalls import set_dumpable

    set_dumpable(False)
    try:
        with open(int(spec_fd), "rb") as file:  # noqa: PTH123 - a descriptor has no path
            job = job_of(json.load(file))
        return _said(_run(job))
    except SageError as error:
        _say(error.message, error.hint)
        return int(error.exit_code)


def job_of(spec: dict[str, Any]) -> Job:
    """The server as an operation that may last for a day. UsageError, NotGranted."""
    project = os.path.realpath(spec["project"])
    return Job(
        "command",
        argv=tuple(spec["argv"]),
        policy=grant_policy(tuple(parse_grant(text) for text in spec["policy"]), Path(project)),
        limits=Limits(min(MEMORY, machine_ceilings().memory), CEILING_CPU_S, PIDS, DISK, CEILING_TIMEOUT_S),
        env=(("PYTHONSAFEPATH", "1"), *((name, value) for name, value in spec["env"])),
        project=project,
    )


def _run(job: Job) -> Outcome:
    from sage_sandbox.operations.confining import supervisor as confining
    from sage_sandbox.sandbox.watch import Relay

    supervisor = confining(job.project)
    try:
        with cancel_on_signals() as cancel_fd:
            return supervisor.run(job, cancel_fd=cancel_fd, relay=Relay(0, (1, 2), lambda _number, data: data))
    finally:
        supervisor.close()


def _said(outcome: Outcome) -> int:
    if not outcome.ok:
        _say(outcome.error, outcome.hint)
    return 0 if outcome.ok else outcome.exit_code or 1


def _say(text: str, hint: str) -> None:
    """Leave the reason as the last words, which the broker passes on."""
    sys.stderr.write(text + (f" ({hint})" if hint else "") + "\n")
