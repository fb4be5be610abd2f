"""The order of a workflow, held against naive oracles."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.workflow.definition import Operation, Phase, Workflow
from sage_sandbox.workflow.planning import cycles, measure, plan, plan_edges, show_cycle


def workflow(edges):
    operation = Operation("op-1", "command", argv=("true",))
    return Workflow("w", tuple(Phase(name, name, (operation,), tuple(deps)) for name, deps in edges.items()))


@st.composite
def acyclic(draw, size=12):
    names = [f"p{number}" for number in range(draw(st.integers(1, size)))]
    edges = {
        name: tuple(draw(st.lists(st.sampled_from(names[:number]), unique=True))) if number else ()
        for number, name in enumerate(names)
    }
    return {name: edges[name] for name in draw(st.permutations(names))}


@st.composite
def any_graph(draw, size=8):
    names = [f"p{number}" for number in range(draw(st.integers(1, size)))]
    return {name: tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3))) for name in names}


def longest(name, edges):
    return 1 + max((longest(other, edges) for other in edges[name]), default=0)


def reachable(name, edges):
    found, pending = set(), list(edges[name])
    while pending:
        other = pending.pop()
        if other not in found:
            found.add(other)
            pending += edges[other]
    return found


@given(acyclic())
def test_a_phase_is_in_the_batch_after_its_longest_chain(edges):
    made = plan(workflow(edges))

    level = {name: number for number, batch in enumerate(made.batches, 1) for name in batch}
    assert {name: longest(name, edges) for name in edges} == level
    assert all(list(edges).index(a) < list(edges).index(b) for batch in made.batches for a, b in pairwise(batch))


@given(acyclic())
def test_the_critical_path_is_a_chain_as_long_as_the_plan_is_deep(edges):
    made = plan(workflow(edges))

    assert made.depth == len(made.critical_path)
    assert all(earlier in edges[later] for earlier, later in pairwise(made.critical_path))


@given(acyclic())
def test_counting_down_dependencies_runs_every_phase_after_what_it_needs(edges):
    made = plan(workflow(edges))

    waiting = {name: len(deps) for name, deps in made.dependencies.items()}
    ready = [name for name, count in waiting.items() if not count]
    done = []
    while ready:
        done.append(ready.pop())
        for name in made.dependents[done[-1]]:
            waiting[name] -= 1
            if not waiting[name]:
                ready.append(name)
    assert sorted(edges) == sorted(done)
    assert all(done.index(dep) < done.index(name) for name, deps in edges.items() for dep in deps)
    assert sorted(edges) == sorted(made.order)


@given(any_graph())
def test_every_knot_is_reported_with_one_real_cycle(edges):
    found = cycles(edges)

    knots = {
        frozenset(b for b in edges if b == a or (b in reachable(a, edges) and a in reachable(b, edges))) for a in edges
    }
    knots = {knot for knot in knots if any(name in reachable(name, edges) for name in knot)}
    assert len(knots) == len(found)
    assert knots == {next(knot for knot in knots if cycle[0] in knot) for cycle in found}
    for cycle in found:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(other in edges[name] for name, other in pairwise(cycle))
    assert (measure(edges)["depth"] == 0) == bool(found)


def test_a_cycle_reads_as_depends_on():
    assert [("a", "b", "c", "a")] == cycles({"a": ("b",), "b": ("c",), "c": ("a",)})


def test_several_cycles_are_all_reported_in_the_order_of_the_file():
    edges = {"x": ("y",), "y": ("x",), "a": ("a",), "free": ("x",), "m": ("n",), "n": ("m", "x")}

    assert [("x", "y", "x"), ("a", "a"), ("m", "n", "m")] == cycles(edges)


def test_unknown_dependencies_are_no_cycle():
    assert [] == cycles({"a": ("zzz",)})


def test_a_long_cycle_is_found_without_recursion_and_shown_short():
    size = 100_000
    (cycle,) = cycles({f"p{n}": (f"p{(n + 1) % size}",) for n in range(size)})

    assert size + 1 == len(cycle)
    assert show_cycle(cycle).startswith("p0 → p1 → ")
    assert show_cycle(cycle).endswith("→ … 99,990 more … → p99999 → p0")


def test_a_short_cycle_is_shown_whole():
    assert "research → specification → research" == show_cycle(("research", "specification", "research"))


def test_a_chain_of_100_000_phases_is_planned():
    edges = {f"p{n}": (f"p{n - 1}",) if n else () for n in range(100_000)}

    made = plan_edges(edges)

    assert {"nodes": 100_000, "edges": 99_999, "depth": 100_000} == made.graph()
    assert tuple(edges) == made.order == made.critical_path


def test_100_000_parallel_phases_are_one_batch():
    assert 1 == plan_edges({f"p{n}": () for n in range(100_000)}).depth


def test_disconnected_trees_share_batches():
    assert (("a", "c"), ("b", "d")) == plan_edges({"a": (), "b": ("a",), "c": (), "d": ("c",)}).batches


def test_nothing_has_a_plan_too():
    assert ((), ()) == (plan_edges({}).batches, plan_edges({}).critical_path)


def test_a_plan_is_frozen():
    with pytest.raises(FrozenInstanceError):
        setattr(plan_edges({}), "edges", 1)  # noqa: B010 - mypy refuses the plain form
