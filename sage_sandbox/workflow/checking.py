"""What a template says between its fields: ids, dependencies, cycles, and what a reference may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from sage_sandbox.escaping import clip
from sage_sandbox.workflow.definition import Parameter
from sage_sandbox.workflow.findings import Finding, Findings, did_you_mean, quote
from sage_sandbox.workflow.planning import Edges, cycles, measure, show_cycle
from sage_sandbox.workflow.positions import FieldPath
from sage_sandbox.workflow.references import Reference, parse, texts_with_references

RESERVED_IDS: Final = ("params", "feature")
CYCLE_MESSAGE: Final = "Cycle detected in workflow dependencies:"
CYCLE_FIX: Final = "remove the circular dependency"
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "python", "python3", "perl", "node", "ruby"})
_SCRIPT_OPTIONS: Final = frozenset({"-c", "-e", "-lc", "-ec"})


def check_graph(phases: Sequence[Any], findings: Findings) -> dict[str, int]:
    """Check ids and dependencies of phases that may be wrong in other ways; returns the graph's measures."""
    first_with: dict[str, int] = {}
    for index, phase in enumerate(phases):
        name = phase.get("id") if isinstance(phase, dict) else None
        if not isinstance(name, str):
            continue
        if name in first_with:
            message = f"the id {quote(name)} is already that of phases[{first_with[name]}]"
            findings.add(Finding(("phases", index, "id"), message))
        else:
            first_with[name] = index
            if name in RESERVED_IDS:
                message = f"${{{name}}} never means this phase: rename it to refer to its result"
                findings.add(Finding(("phases", index, "id"), message, severity="warning"))
    edges = {name: _dependencies(phases[index], index, first_with, findings) for name, index in first_with.items()}
    graph = measure(edges)
    if edges and not graph["depth"]:
        _add_cycles(edges, first_with, findings)
    return graph


def _dependencies(
    phase: Mapping[str, Any], index: int, known: Mapping[str, int], findings: Findings
) -> tuple[str, ...]:
    given = phase.get("dependencies", [])
    if not isinstance(given, list):
        return ()  # said elsewhere
    found: dict[str, None] = {}
    for number, name in enumerate(given):
        if message := _dependency_trouble(name, known, found):
            findings.add(Finding(("phases", index, "dependencies", number), message))
        else:
            found[name] = None
    return tuple(found)


def _dependency_trouble(name: Any, known: Mapping[str, int], found: Mapping[str, None]) -> str:
    if not isinstance(name, str):
        return "must be the id of a phase"
    if name in found:
        return f"{quote(name)} is listed twice"
    return "" if name in known else f"there is no phase {quote(name)}{did_you_mean(name, known)}"


def _add_cycles(edges: Edges, index_of: Mapping[str, int], findings: Findings) -> None:
    for cycle in cycles(edges):
        path = ("phases", index_of[cycle[0]], "dependencies")
        message = f"{CYCLE_MESSAGE}\n  {show_cycle([clip(name, 64) for name in cycle])}"
        findings.add(Finding(path, message, fix=CYCLE_FIX))


def operations_of(phase: Mapping[str, Any]) -> list[tuple[FieldPath, Any]]:
    """The operations of an unchecked phase, each with its path below the phase."""
    given = phase.get("operations")
    if isinstance(given, list):
        return [(("operations", number), operation) for number, operation in enumerate(given)]
    return [(("operations",), given)]


def check_references(phases: Sequence[Any], parameters: Mapping[str, Parameter] | None, findings: Findings) -> None:
    """Check that each ``${…}`` can lead somewhere, as far as that shows before anything has run.

    Works on phases that may be wrong in other ways; ``parameters`` is None where they cannot be known.
    """
    by_id: dict[str, Mapping[str, Any]] = {}
    for phase in phases:
        if isinstance(phase, dict) and isinstance(phase.get("id"), str):
            by_id.setdefault(phase["id"], phase)
    checker = _ReferenceChecker(by_id, parameters, findings)
    for index, phase in enumerate(phases):
        if isinstance(phase, dict):
            for below, operation in operations_of(phase):
                if isinstance(operation, dict):
                    checker.check(phase, operation, ("phases", index, *below))


class _ReferenceChecker:
    """Knows what references may look at; finds the texts that hold them."""

    def __init__(
        self, by_id: Mapping[str, Any], parameters: Mapping[str, Parameter] | None, findings: Findings
    ) -> None:
        self._by_id = by_id
        self._parameters = parameters
        self._findings = findings

    def check(self, phase: Mapping[str, Any], operation: Mapping[str, Any], base: FieldPath) -> None:
        if operation.get("params") is not None:
            for path, text in texts_with_references(operation["params"]):
                self._check_text(text, phase, (*base, "params", *path))
        for field in ("prompt", "system"):
            given = operation.get(field)
            if isinstance(given, str) and "${" in given:
                self._check_text(given, phase, (*base, field))
        argv = operation.get("argv")
        for number, text in enumerate(argv if isinstance(argv, list) else ()):
            if isinstance(text, str) and "${" in text:
                self._check_argument(argv, number, phase, (*base, "argv", number))

    def _check_argument(self, argv: Any, number: int, phase: Mapping[str, Any], path: FieldPath) -> None:
        if number == 0:
            self._findings.add(Finding(path, "references (${...}) are data: they cannot name the program"))
        elif self._check_text(argv[number], phase, path) and _is_script(argv, number):
            message = "the value becomes part of a script: pass it as a further argument"
            self._findings.add(Finding(path, message, severity="warning"))

    def _check_text(self, text: str, phase: Mapping[str, Any], path: FieldPath) -> bool:
        """Check one text; whether it has a reference at all."""
        try:
            references = [piece for piece in parse(text) if isinstance(piece, Reference)]
        except ValueError as error:
            self._findings.add(Finding(path, str(error)))
            return False
        for reference in references:
            if trouble := self._trouble(reference, phase):
                self._findings.add(Finding(path, f"{quote(str(reference))}: {trouble}"))
        return bool(references)

    def _trouble(self, reference: Reference, phase: Mapping[str, Any]) -> str:
        root, *rest = reference.steps
        if root == "feature":
            return "the feature is a text, nothing lies below it" if rest else ""
        if root == "params":
            return self._parameter_trouble(rest)
        given = phase.get("dependencies", [])
        dependencies = given if isinstance(given, list) else []
        if root in dependencies:
            return _operation_trouble(root, self._by_id.get(root, {}), rest)
        if root == phase.get("id"):
            return "a phase cannot refer to its own result"
        if root in self._by_id:
            return f"{quote(root)} is no direct dependency: add it to the dependencies of this phase"
        roots = (*RESERVED_IDS, *(name for name in dependencies if isinstance(name, str)))
        return f"there is no {quote(root)} here{did_you_mean(root, roots)}"

    def _parameter_trouble(self, rest: Sequence[str]) -> str:
        if not rest or self._parameters is None:
            return ""
        if rest[0] not in self._parameters:
            return f"there is no parameter {quote(rest[0])}{did_you_mean(rest[0], self._parameters)}"
        kind = self._parameters[rest[0]].type
        if rest[1:] and kind not in ("array", "object"):
            return f"nothing lies below a parameter of type {kind}"
        return ""


def _is_script(argv: Sequence[Any], number: int) -> bool:
    return isinstance(argv[0], str) and PurePath(argv[0]).name in _SHELLS and argv[number - 1] in _SCRIPT_OPTIONS


def _operation_trouble(phase_id: str, phase: Mapping[str, Any], rest: Sequence[str]) -> str:
    operations = phase.get("operations")
    if not rest or not isinstance(operations, list):
        return ""
    for number, operation in enumerate(operations, 1):
        if isinstance(operation, dict) and operation.get("id", f"op-{number}") == rest[0]:
            return ""
    ids = [operation.get("id", f"op-{n}") for n, operation in enumerate(operations, 1) if isinstance(operation, dict)]
    close = did_you_mean(rest[0], [name for name in ids if isinstance(name, str)])
    return f"phase {quote(phase_id)} has no operation {quote(rest[0])}{close}"
