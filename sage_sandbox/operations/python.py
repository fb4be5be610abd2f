"""``type: python``: a module with ``def run(params, inputs, tools)``."""

from __future__ import annotations

from sage_sandbox.operations.base import Circumstances, Setting, common
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation


def job(operation: Operation, setting: Setting, here: Circumstances) -> Job:
    """The job for one attempt; tracebacks name the file the code came from, or the operation."""
    return Job(
        type="python",
        code=operation.code,
        file=operation.file or f"<{here.phase}/{here.operation}>",
        files=tuple((file.name, file.text) for file in operation.files),
        packages=operation.packages,
        **common(setting, here, operation.params),
    )
