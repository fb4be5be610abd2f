"""``type: llm``: one question to a model, put by the broker."""

from __future__ import annotations

from typing import Final

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.operations.base import Circumstances, Setting, common
from sage_sandbox.policy import MiB
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation

REQUEST_MAX: Final = 4 * MiB


def job(operation: Operation, setting: Setting, here: Circumstances) -> Job:
    """The question of one attempt; references are replaced already. ReferenceMissing if they made none that fits."""
    if not operation.prompt.strip():
        raise ReferenceMissing("the references left nothing of the prompt")
    request = {
        "prompt": operation.prompt,
        "system": operation.system,
        "maxTokens": operation.max_tokens,
        "schema": operation.schema,
    }
    made = Job(type="llm", model=operation.model, **common(setting, here, request))
    if len(made.params) > REQUEST_MAX:
        raise ReferenceMissing(f"the prompt for {operation.model} is larger than 4 MiB")
    return made
