"""A plan as text for a terminal, as JSON, and as the source of a Mermaid or Graphviz picture. Pure.

All of a workflow is a stranger's text: each piece is escaped for where it ends up.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from sage_sandbox.escaping import clip, escape
from sage_sandbox.grants.review import Review, Row
from sage_sandbox.policy import HIDDEN_NAMES, format_duration, format_size
from sage_sandbox.workflow.definition import Budgets, Operation, Phase, Workflow
from sage_sandbox.workflow.findings import count_of
from sage_sandbox.workflow.planning import Plan

_LINE: Final = 60


@dataclass(frozen=True)
class Picture:
    """What there is to draw."""

    workflow: Workflow
    plan: Plan
    review: Review

    @cached_property
    def phases(self) -> Mapping[str, Phase]:
        """The phases by id."""
        return {phase.id: phase for phase in self.workflow.phases}

    @cached_property
    def critical(self) -> frozenset[str]:
        """The phases on the longest chain."""
        return frozenset(self.plan.critical_path)

    @cached_property
    def rows(self) -> Mapping[tuple[str, str], list[Row]]:
        """What each operation asks for."""
        found: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.review.rows:
            found[row.phase, row.operation].append(row)
        return found


def text(picture: Picture) -> str:
    """The batches from top to bottom, each phase with its operations and what they ask for."""
    return "\n".join((*_heading(picture), *_batches(picture), "", *_closing(picture)))


def _heading(picture: Picture) -> Iterator[str]:
    workflow, graph = picture.workflow, picture.plan.graph()
    operations = sum(len(phase.operations) for phase in workflow.phases)
    counts = f"{count_of(graph['nodes'], 'phase')}, {count_of(operations, 'operation')}, depth {graph['depth']:,}"
    yield f"{escape(workflow.name)}: {counts}"
    if workflow.description:
        yield f"  {clip(workflow.description, 2 * _LINE)}"
    if budgets := _budgets(workflow.budgets):
        yield f"  paused once it has spent {budgets}"


def _budgets(budgets: Budgets) -> str:
    parts = [
        f"{budgets.tokens:,} tokens" if budgets.tokens is not None else "",
        f"a cost of {budgets.cost:g}" if budgets.cost is not None else "",
        f"{format_duration(budgets.time_s)} of running" if budgets.time_s is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _batches(picture: Picture) -> Iterator[str]:
    for number, batch in enumerate(picture.plan.batches, 1):
        together = f", {len(batch):,} together" if len(batch) > 1 else ""
        yield ""
        yield f"── batch {number}{together}"
        for phase in batch:
            yield from _phase(picture, picture.phases[phase])


def _phase(picture: Picture, phase: Phase) -> Iterator[str]:
    mark = "●" if phase.id in picture.critical else "○"
    arrow = f"  ← {', '.join(phase.dependencies)}" if phase.dependencies else ""
    yield f" {mark} {phase.id}  {escape(phase.name)}{arrow}"
    for number, operation in enumerate(phase.operations, 1):
        branch = "└" if number == len(phase.operations) else "├"
        yield f"   {branch} {operation.id}  {operation.type}  {_what(operation)}{_limits(operation)}"
        for row in picture.rows.get((phase.id, operation.id), ()):
            yield f"   {' ' if branch == '└' else '│'}   {_ask(row)}"


def _what(operation: Operation) -> str:
    if operation.type == "command":
        return clip(" ".join(operation.argv), _LINE)
    if operation.type == "mcp":
        return clip(operation.tool, _LINE)
    if operation.type == "llm":
        return clip(operation.model, _LINE)
    return clip(operation.file, _LINE) if operation.file else "inline code"


def _limits(operation: Operation) -> str:
    limits = operation.limits
    asked = [
        f"memory {format_size(limits.memory)}" if limits.memory else "",
        f"cpu {format_duration(limits.cpu_s)}" if limits.cpu_s else "",
        f"pids {limits.pids}" if limits.pids else "",
        f"disk {format_size(limits.disk)}" if limits.disk else "",
        f"timeout {format_duration(operation.timeout_s)}" if operation.timeout_s else "",
        f"retries {operation.retries}" if operation.retries else "",
    ]
    shown = ", ".join(part for part in asked if part)
    return f"  [{shown}]" if shown else ""


def _ask(row: Row) -> str:
    mark, word = ("✓", "granted") if row.granted else ("✗", "not granted")
    return f"{mark} {escape(str(row.ask))}  {word}" + (f": {escape(row.note)}" if row.note else "")


def _closing(picture: Picture) -> Iterator[str]:
    yield f"longest chain (●): {' → '.join(picture.plan.critical_path)}"
    yield f"never shown below a read grant on a folder: {', '.join(HIDDEN_NAMES)}"
    yield from (f"✗ {escape(problem)}" for problem in picture.review.problems)
    yield from (f"⚠ {escape(notice)}" for notice in picture.review.notices)
    if picture.review.missing:
        yield "to grant what is missing:"
        yield from (f"  {escape(_option(str(grant)))}" for grant in picture.review.missing)
    elif not picture.review.rows:
        yield "asks for nothing"


def _option(grant: str) -> str:
    import shlex

    return f"--allow {shlex.quote(grant)}"


def document(picture: Picture) -> str:
    """The plan as one JSON document."""
    plan = picture.plan
    content: dict[str, Any] = {
        "name": picture.workflow.name,
        "graph": plan.graph(),
        "batches": plan.batches,
        "criticalPath": plan.critical_path,
        "phases": [_phase_entry(picture, phase) for phase in picture.workflow.phases],
        "missing": [str(grant) for grant in picture.review.missing],
        "problems": picture.review.problems,
        "hidden": HIDDEN_NAMES,
    }
    return json.dumps(content, indent=2)


def _phase_entry(picture: Picture, phase: Phase) -> dict[str, Any]:
    return {
        "id": phase.id,
        "name": phase.name,
        "dependencies": phase.dependencies,
        "operations": [
            {
                "id": operation.id,
                "type": operation.type,
                "limits": asdict(operation.limits),
                "asks": [
                    {"ask": str(row.ask), "granted": row.granted, "note": row.note}
                    for row in picture.rows.get((phase.id, operation.id), ())
                ],
            }
            for operation in phase.operations
        ],
    }


def mermaid(picture: Picture) -> str:
    """A Mermaid flowchart; every character of a label that could end it is written as an entity."""
    lines = ["flowchart TD"]
    numbers = {phase: number for number, phase in enumerate(picture.phases)}
    for phase in picture.workflow.phases:
        lines.append(f'  p{numbers[phase.id]}["{_entities(phase.id)}<br/>{_entities(phase.name)}"]')
        lines += [f"  p{numbers[dependency]} --> p{numbers[phase.id]}" for dependency in phase.dependencies]
    lines += [f"  style p{numbers[phase]} stroke-width:3px" for phase in picture.plan.critical_path]
    return "\n".join(lines)


def _entities(label: str) -> str:
    return "".join(char if char.isalnum() or char in " .-_" else f"#{ord(char)};" for char in escape(label))


def dot(picture: Picture) -> str:
    """A Graphviz digraph; labels are quoted strings."""
    lines = ["digraph workflow {", "  node [shape=box];"]
    for phase in picture.workflow.phases:
        bold = ", penwidth=3" if phase.id in picture.critical else ""
        lines.append(f"  {_quoted(phase.id)} [label={_quoted(phase.id, phase.name)}{bold}];")
        lines += [f"  {_quoted(dependency)} -> {_quoted(phase.id)};" for dependency in phase.dependencies]
    return "\n".join((*lines, "}"))


def _quoted(*lines: str) -> str:
    escaped = (escape(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
