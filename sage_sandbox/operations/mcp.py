"""``type: mcp``: one call of one tool of a server, made by the broker."""

from __future__ import annotations

from typing import Final

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.operations.base import Circumstances, Setting, common
from sage_sandbox.policy import MiB
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation

ARGUMENTS_MAX: Final = 1 * MiB


def job(operation: Operation, setting: Setting, here: Circumstances) -> Job:
    """The call of one attempt; references are replaced already. ReferenceMissing if they made no arguments."""
    arguments = {} if operation.params is None else operation.params
    if not isinstance(arguments, dict):
        raise ReferenceMissing(f"the arguments of {operation.tool} are no mapping")
    made = Job(type="mcp", tool=operation.tool, **common(setting, here, arguments))
    if len(made.params) > ARGUMENTS_MAX:
        raise ReferenceMissing(f"the arguments of {operation.tool} are larger than 1 MiB")
    return made
