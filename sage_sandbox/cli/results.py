"""What a finished run shows to a person: each phase, each operation, and the kept part of each result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from sage_sandbox.escaping import clip, escape

if TYPE_CHECKING:
    from sage_sandbox.document import OperationResult, PhaseResult, RunResult
    from sage_sandbox.workflow.definition import Keep

_ERROR_WIDTH: Final = 500
_MARKS: Final[Mapping[str, str]] = {"completed": "✓", "degraded": "⚠"}


def result_lines(result: RunResult, *, whole: bool = False) -> Iterator[str]:
    """A run as lines for stdout, safe for a terminal whatever the operations returned."""
    for phase in result.phases:
        yield _phase_line(phase)
        for operation in phase.operations:
            yield f"    {_operation_text(operation, result.keeps.get((phase.id, operation.id)), whole=whole)}"


def _phase_line(phase: PhaseResult) -> str:
    fulfilled = sum(operation.outcome.ok for operation in phase.operations)
    count = "" if phase.single or not phase.operations else f" ({fulfilled} of {len(phase.operations)})"
    return f"{_MARKS.get(phase.status, '✗')} {escape(phase.id)}: {phase.status}{count}"


def _operation_text(operation: OperationResult, keep: Keep | None, *, whole: bool) -> str:
    from sage_sandbox.results.leaving import hand_back

    handed = hand_back(operation.outcome, keep, whole=whole)
    if operation.outcome.ok:
        return f"{escape(operation.id)}: {escape(json.dumps(handed.value, ensure_ascii=False))}"
    hint = f" (hint: {clip(handed.hint, _ERROR_WIDTH)})" if handed.hint else ""
    return f"{escape(operation.id)}: {operation.outcome.reason}: {clip(handed.error, _ERROR_WIDTH)}{hint}"
