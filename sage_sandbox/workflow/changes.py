"""What an edited template changes of a run that has begun: which phases are no longer what they were. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from sage_sandbox.workflow.definition import Phase, Workflow
from sage_sandbox.workflow.references import Reference, parse, texts_with_references

ALL: Final = ""


def parameters_left(before: Workflow, after: Workflow, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the user gave, as far as ``after`` has such parameters; what was a default may be another now."""
    defaults = before.parameters
    given = {
        name: value
        for name, value in values.items()
        if name not in defaults or defaults[name].required or value != defaults[name].default
    }
    return {name: value for name, value in given.items() if name in after.parameters}


def changed_phases(before: Workflow, after: Workflow, parameters: Collection[str] = ()) -> dict[str, str]:
    """Why phases of ``after`` are not what they were, by id; ``parameters`` are those that have another value now."""
    known = {phase.id: phase for phase in before.phases}
    found = {}
    for phase in after.phases:
        if why := _why_changed(known.get(phase.id), phase, parameters):
            found[phase.id] = why
    return found


def _why_changed(before: Phase | None, after: Phase, parameters: Collection[str]) -> str:
    if before is None:
        return "it is new"
    if before is not after and _in_effect(before) != _in_effect(after):  # a stored template is the same, whole
        return "its definition changed"
    if not parameters:
        return ""
    used = set(_parameters_of(after))
    names = sorted(name for name in parameters if name in used or ALL in used)
    return f"parameter {', '.join(names)} changed" if names else ""


def _in_effect(phase: Phase) -> Phase:
    """A phase without what does not change what it does: what it is called, where it stands, what is kept of it."""
    operations = tuple(
        replace(operation, line=0, keep=None, cache=None, cache_ttl_s=None) for operation in phase.operations
    )
    return replace(phase, name="", operations=operations)


def _parameters_of(phase: Phase) -> Iterator[str]:
    """The parameters that the operations of a phase refer to; ALL where it is to all of them at once."""
    for operation in phase.operations:
        for _, text in texts_with_references(
            [operation.params, list(operation.argv), operation.prompt, operation.system]
        ):
            for piece in parse(text):
                if isinstance(piece, Reference) and piece.steps[0] == "params":
                    yield piece.steps[1] if piece.steps[1:] else ALL
