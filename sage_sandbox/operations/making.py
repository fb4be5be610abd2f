"""From a workflow's operation to a job: references replaced, then the table of kinds, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sage_sandbox.operations import command, llm, mcp, python
from sage_sandbox.operations.base import Circumstances, Setting
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation
from sage_sandbox.workflow.references import resolve_operation

KINDS: Final[Mapping[str, Callable[[Operation, Setting, Circumstances], Job]]] = {
    "python": python.job,
    "command": command.job,
    "mcp": mcp.job,
    "llm": llm.job,
}


def make_job(operation: Operation, setting: Setting, here: Circumstances, scope: Mapping[str, Any]) -> Job:
    """The job for one attempt; ``scope`` is what ``${…}`` may refer to. Raises ReferenceMissing."""
    return KINDS[operation.type](resolve_operation(operation, scope), setting, here)
