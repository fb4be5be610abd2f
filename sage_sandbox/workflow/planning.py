"""The order of a workflow: what depends on what, what may run together, and the longest way through. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.workflow.definition import Workflow
from sage_sandbox.workflow.pausing import collector_paused

_SHOWN_MAX: Final = 12

Edges = Mapping[str, tuple[str, ...]]
"""The dependencies of each phase, by phase id, in the order of the file."""


@frozen
class Plan:
    """Everything the order decides. Batch ``n`` holds the phases whose longest chain of dependencies has ``n`` phases.

    A runner counts down the ``dependencies`` of each of the ``dependents`` of a phase that is done; batches are for
    people.
    """

    batches: tuple[tuple[str, ...], ...]
    critical_path: tuple[str, ...]
    dependencies: Mapping[str, tuple[str, ...]]
    dependents: Mapping[str, tuple[str, ...]]
    edges: int

    @property
    def order(self) -> tuple[str, ...]:
        """All phases, dependencies first; in the order of the file where nothing else decides."""
        return tuple(phase for batch in self.batches for phase in batch)

    @property
    def depth(self) -> int:
        """How many batches there are: the phases on the longest chain."""
        return len(self.batches)

    def graph(self) -> dict[str, int]:
        """``nodes``, ``edges`` and ``depth``, as ``validate --json`` shows them."""
        return {"nodes": len(self.dependencies), "edges": self.edges, "depth": self.depth}


def plan(workflow: Workflow) -> Plan:
    """Plan a checked workflow (`graphlib.CycleError` for one that was put together by hand and has a cycle)."""
    return plan_edges({phase.id: phase.dependencies for phase in workflow.phases})


def plan_edges(edges: Edges) -> Plan:
    """Plan a bare graph: the dependencies of each phase, every one of which is itself a phase."""
    with collector_paused():
        batches = _batches(tuple(edges.items()))
        return Plan(
            batches=batches,
            critical_path=_critical_path(batches, edges),
            dependencies=edges,
            dependents=_dependents(edges),
            edges=_count(edges),
        )


def descendants(workflow: Workflow, phases: Iterable[str]) -> set[str]:
    """These phases, and all that depend on them, however far."""
    dependents = _dependents({phase.id: phase.dependencies for phase in workflow.phases})
    found: set[str] = set()
    queue = [phase for phase in phases if phase in dependents]
    while queue:
        phase = queue.pop()
        if phase not in found:
            found.add(phase)
            queue.extend(dependents[phase])
    return found


def measure(edges: Edges) -> dict[str, int]:
    """``nodes``, ``edges`` and ``depth`` of a graph that need not be sound: one with a cycle has no depth, 0."""
    try:
        depth = len(_batches(tuple(edges.items())))
    except CycleError:
        depth = 0
    return {"nodes": len(edges), "edges": _count(edges), "depth": depth}


def _count(edges: Edges) -> int:
    return sum(map(len, edges.values()))


@lru_cache(maxsize=1)  # a graph is measured when its template is checked, and planned when it runs
def _batches(edges: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[tuple[str, ...], ...]:
    position = {phase: number for number, (phase, _) in enumerate(edges)}
    sorter = TopologicalSorter(dict(edges))
    sorter.prepare()
    batches = []
    while ready := sorter.get_ready():
        sorter.done(*ready)
        batches.append(tuple(sorted(ready, key=position.__getitem__)))
    return tuple(batches)


def _critical_path(batches: Sequence[Sequence[str]], edges: Edges) -> tuple[str, ...]:
    """The longest chain, back from the first phase of the last batch: each batch is reached from the one before."""
    if not batches:
        return ()
    level = {phase: number for number, batch in enumerate(batches) for phase in batch}
    path = [batches[-1][0]]
    while level[path[-1]]:
        path.append(max(edges[path[-1]], key=level.__getitem__))
    return tuple(reversed(path))


def _dependents(edges: Edges) -> dict[str, tuple[str, ...]]:
    dependents: dict[str, list[str]] = {phase: [] for phase in edges}
    for phase, dependencies in edges.items():
        for dependency in dependencies:
            dependents[dependency].append(phase)
    return {phase: tuple(names) for phase, names in dependents.items()}


def cycles(edges: Edges) -> list[tuple[str, ...]]:
    """One cycle for each knot of phases that depend on each other, as ``(a, b, a)``: a depends on b, b on a.

    Each starts with the knot's first phase in the order of the file. Unknown dependencies are ignored.
    """
    knots = [knot for knot in _components(edges) if len(knot) > 1 or next(iter(knot)) in edges[next(iter(knot))]]
    position = {phase: number for number, phase in enumerate(edges)}
    firsts = [(min(knot, key=position.__getitem__), knot) for knot in knots]
    return [_cycle(first, knot, edges) for first, knot in sorted(firsts, key=lambda pair: position[pair[0]])]


def _components(edges: Edges) -> Iterable[set[str]]:
    """Strongly connected components by Tarjan's algorithm, on a stack of our own: a chain may have 100,000 phases."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    for root in edges:
        work = [] if root in index else [(root, iter(edges[root]))]
        while work:
            phase, remaining = work[-1]
            if phase not in index:
                index[phase] = low[phase] = len(index)
                stack.append(phase)
                on_stack.add(phase)
            for other in remaining:
                if other in edges and other not in index:
                    work.append((other, iter(edges[other])))
                    break
                if other in on_stack:
                    low[phase] = min(low[phase], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[phase])
                if low[phase] == index[phase]:
                    yield _pop_until(phase, stack, on_stack)


def _pop_until(phase: str, stack: list[str], on_stack: set[str]) -> set[str]:
    component: set[str] = set()
    while phase not in component:
        component.add(stack.pop())
    on_stack -= component
    return component


def _cycle(first: str, knot: set[str], edges: Edges) -> tuple[str, ...]:
    """The shortest cycle through ``first`` that stays inside its knot."""
    came_from: dict[str, str] = {}
    frontier = [first]
    while first not in came_from:
        reached = []
        for phase in frontier:
            for other in edges[phase]:
                if other in knot and other not in came_from:
                    came_from[other] = phase
                    reached.append(other)
        frontier = reached
    path = [first]
    while len(path) == 1 or path[-1] != first:
        path.append(came_from[path[-1]])
    return tuple(reversed(path))


def show_cycle(cycle: Sequence[str]) -> str:
    """``research → specification → research``, the middle of a long one left out."""
    if len(cycle) > _SHOWN_MAX:
        left_out = f"… {len(cycle) - _SHOWN_MAX + 1:,} more …"
        cycle = (*cycle[: _SHOWN_MAX - 3], left_out, *cycle[-2:])
    return " → ".join(cycle)
