"""What a finished run shows to a person: each phase, each operation, and the kept part of each result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.escaping import clip, escape

if TYPE_CHECKING:
    from sage_sandbox.document import OperationResult, PhaseResult, RunResult
    from sage_sandbox.workflow.definition import Keep, Workflow

KEPT_BYTES: Final = 2000
_ERROR_WIDTH: Final = 500
_TEXT_WIDTH: Final = 200
_ITEMS: Final = (20, 5, 2, 1, 0)
_MARKS: Final[Mapping[str, str]] = {"completed": "✓", "degraded": "⚠"}


def result_lines(result: RunResult, workflow: Workflow) -> Iterator[str]:
    """A run as lines for stdout, safe for a terminal whatever the operations returned."""
    keeps = {(phase.id, operation.id): operation.keep for phase in workflow.phases for operation in phase.operations}
    for phase in result.phases:
        yield _phase_line(phase)
        for operation in phase.operations:
            yield f"    {_operation_text(operation, keeps.get((phase.id, operation.id)))}"


def kept(value: Any, keep: Keep | None = None) -> str:
    """The part of a result that people see: its shape, its counts and its first items, as JSON of limited size."""
    most = KEPT_BYTES if keep is None or keep.max_bytes is None else keep.max_bytes
    if keep is not None and keep.fields and isinstance(value, dict):
        value = {name: value[name] for name in keep.fields if name in value}
    wanted = _ITEMS[0] if keep is None or keep.max_items is None else keep.max_items
    for items in (wanted, *(fewer for fewer in _ITEMS if fewer < wanted)):
        text = _text(value, items)
        if len(text.encode()) <= most:
            return text
    return clip(_text(value, 0), max(most // 4, 1))  # a character is four bytes at most


def _phase_line(phase: PhaseResult) -> str:
    fulfilled = sum(operation.outcome.ok for operation in phase.operations)
    count = "" if phase.single or not phase.operations else f" ({fulfilled} of {len(phase.operations)})"
    return f"{_MARKS.get(phase.status, '✗')} {escape(phase.id)}: {phase.status}{count}"


def _operation_text(operation: OperationResult, keep: Keep | None) -> str:
    outcome = operation.outcome
    if outcome.ok:
        return f"{escape(operation.id)}: {kept(outcome.value(), keep)}"
    hint = f" (hint: {clip(outcome.hint, _ERROR_WIDTH)})" if outcome.hint else ""
    return f"{escape(operation.id)}: {outcome.reason}: {clip(outcome.error, _ERROR_WIDTH)}{hint}"


def _text(value: Any, items: int) -> str:
    return escape(json.dumps(_shortened(value, items), ensure_ascii=False))


def _shortened(value: Any, items: int) -> Any:
    """The same value with at most ``items`` entries in every list and mapping, and no long texts."""
    if isinstance(value, dict):
        first = {clip(name, _TEXT_WIDTH): _shortened(value[name], items) for name in list(value)[:items]}
        return {**first, "…": f"{len(value) - items} more"} if len(value) > items else first
    if isinstance(value, list):
        start = [_shortened(item, items) for item in value[:items]]
        return [*start, f"… {len(value) - items} more"] if len(value) > items else start
    return value[:_TEXT_WIDTH] + "…" if isinstance(value, str) and len(value) > _TEXT_WIDTH else value
