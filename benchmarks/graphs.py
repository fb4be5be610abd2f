"""Generated graphs as workflows and as templates; the same ones every time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from benchmarks.edges import Edges
from sage_sandbox.workflow.definition import Operation, Phase, Workflow

NOTHING: Final = "def run():\n    return 1\n"
"""The smallest operation."""
ADD: Final = "def run(inputs):\n    return 1 + len(inputs)\n"
"""An operation that looks at what the ones before it left."""
_FEATURE: Final[Mapping[str, tuple[int, tuple[str, ...]]]] = {
    "research": (3, ()),
    "specification": (1, ("research",)),
    "planning": (1, ("specification",)),
    "implementation": (2, ("planning",)),
    "testing": (1, ("implementation",)),
    "review": (1, ("implementation", "testing")),
}


def workflow(edges: Edges, code: str = ADD) -> Workflow:
    """One small Python operation a node."""
    phases = (
        Phase(name, name, (Operation("op-1", "python", code=code),), dependencies, single=True)
        for name, dependencies in edges.items()
    )
    return Workflow("benchmark", tuple(phases), timeout_s=3600.0)


def one_phase(operations: int, code: str = NOTHING, timeout_s: float = 3600.0) -> Workflow:
    """One phase of many operations."""
    many = tuple(Operation(f"op-{number}", "python", code=code) for number in range(operations))
    return Workflow("benchmark", (Phase("all", "all", many, timeout_s=timeout_s),), timeout_s=timeout_s)


def feature() -> Workflow:
    """Six phases of nine operations: how a feature is built, from research to review."""
    phases = (
        Phase(name, name, tuple(Operation(f"op-{n}", "python", code=ADD) for n in range(count)), dependencies)
        for name, (count, dependencies) in _FEATURE.items()
    )
    return Workflow("feature", tuple(phases), timeout_s=3600.0)


def feature_edges() -> dict[str, tuple[str, ...]]:
    """The same nine operations as nodes of their own."""
    nodes = {name: [f"{name}-{n}" for n in range(count)] for name, (count, _) in _FEATURE.items()}
    return {
        node: tuple(other for dependency in _FEATURE[name][1] for other in nodes[dependency])
        for name, members in nodes.items()
        for node in members
    }


def json_template(edges: Edges) -> str:
    """The graph as a JSON template of Python operations."""
    operation = {"type": "python", "code": ADD}
    phases = [
        {"id": name, "name": name, "operations": operation, "dependencies": dependencies}
        for name, dependencies in edges.items()
    ]
    return json.dumps({"name": "benchmark", "phases": phases})


def yaml_template(edges: Edges) -> str:
    """The graph as a YAML template: short lines, since 10,000 phases must stay below the format's 1 MiB."""
    lines = ["name: benchmark", "phases:"]
    for name, dependencies in edges.items():
        needs = f"[{', '.join(dependencies)}]"
        lines.append(f"- {{id: {name}, name: n, operations: {{type: command, argv: [id]}}, dependencies: {needs}}}")
    return "\n".join(lines) + "\n"
