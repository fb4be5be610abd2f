"""Random graphs whose every result is known beforehand: a phase adds its own number to what it got."""

from __future__ import annotations

import random
from collections.abc import Mapping

from workflows import flow, single

from sage_sandbox.document import RunResult
from sage_sandbox.workflow.definition import Workflow

PRIME = 1_000_003
SUM = f"def run(params, inputs):\n    return (params + sum(inputs.values())) % {PRIME}\n"

Edges = Mapping[int, tuple[int, ...]]


def random_dag(phases: int, edges: int, seed: int) -> dict[int, tuple[int, ...]]:
    """Exactly so many edges, each from a phase to one before it: spread evenly, then wherever there is room."""
    chance = random.Random(seed)
    wanted = [min(node, edges // phases) for node in range(phases)]
    missing = edges - sum(wanted)
    for node in reversed(range(phases)):
        more = min(missing, 1, node - wanted[node])
        wanted[node] += more
        missing -= more
    assert not missing
    return {node: tuple(sorted(chance.sample(range(node), count))) for node, count in enumerate(wanted)}


def workflow(edges: Edges) -> Workflow:
    """One Python operation a phase."""
    phases = (
        single(f"p{node}", *(f"p{other}" for other in needs), code=SUM, op_fields={"params": node})
        for node, needs in edges.items()
    )
    return flow(*phases, timeout_s=3600.0)


def expected(edges: Edges) -> dict[str, int]:
    """What each phase is to return."""
    values: dict[int, int] = {}
    for node, needs in edges.items():
        values[node] = (node + sum(values[other] for other in needs)) % PRIME
    return {f"p{node}": value for node, value in values.items()}


def returned(result: RunResult) -> dict[str, object]:
    """What each phase did return, or why it did not."""
    outcomes = {phase.id: phase.operations[0].outcome for phase in result.phases}
    return {name: outcome.value() if outcome.ok else outcome.error for name, outcome in outcomes.items()}
