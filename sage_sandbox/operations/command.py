"""``type: command``: a program and its arguments, no shell."""

from __future__ import annotations

from sage_sandbox.operations.base import Circumstances, Setting, common
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation


def job(operation: Operation, setting: Setting, here: Circumstances) -> Job:
    """The job for one attempt; references are replaced already, each argument stays one argument."""
    return Job(
        type="command",
        argv=operation.argv,
        output=operation.output,
        ok_codes=operation.ok_codes,
        **common(setting, here, operation.params),
    )
