"""What a node of a graph costs, and whether it costs the same in a large graph.

Graphs of 50, 1,000 and 10,000 nodes in layers of 20, three dependencies each, every node a sandboxed operation that
gets the results of the nodes before it; warm slots, one a core; from planning to the result document. The floor is the
plainest loop over the same graph on as many warm loky workers. Section 14, line 4, is about durable and encrypted runs:
until there is a store the figure lacks that part, and its label says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.edges import layered
from benchmarks.floors.raw_loky import run_graph, warm_executor
from benchmarks.graphs import workflow
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, cores, run

_PER_NODE = Aim("<= 1.5 ms a node (then 0.85)", 1.5)
_FLAT = Aim("flat (<= 1.2x)", 1.2, of="ratio")
_LOKY = "raw loky, same graph"


def measure(scale: Scale) -> Iterator[Row]:
    """A row for each size."""
    sizes = pick(scale, {50: 30, 1000: 9, 10_000: 3}, {50: 10, 1000: 3, 3000: 1}, {5: 1, 40: 1})
    smaller: tuple[str, list[float]] | None = None
    with ExitStack() as stack:
        project = str(Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve())
        slots = KeptOpen(project, cores())
        stack.callback(slots.end)
        loky = stack.enter_context(warm_executor(cores()))
        for nodes, rounds in sizes.items():
            edges = layered(nodes)
            name = f"graph of {nodes:,} nodes, ms a node (sandboxed, not durable yet)"
            graph = workflow(edges)
            arms: dict[str, Round] = {
                name: partial(_per_node, nodes, lambda graph=graph: run(graph, slots, project)),
                _LOKY: partial(_per_node, nodes, lambda edges=edges: run_graph(loky, edges)),
            }
            taken = take_turns(arms, rounds, warm_up=1 if nodes <= 1000 else 0)
            yield row(name, taken[name], "ms", {_LOKY: taken[_LOKY]}, [_PER_NODE] if nodes >= 1000 else [])
            if smaller is not None and nodes > 1000:
                yield row(
                    f"{nodes:,} nodes, ms a node, against the size before", taken[name], "ms", dict([smaller]), [_FLAT]
                )
            smaller = f"{nodes:,} nodes", taken[name]


def _per_node(nodes: int, call: object) -> list[float]:
    assert callable(call)
    started = time.monotonic()
    call()
    return [(time.monotonic() - started) / nodes]


if __name__ == "__main__":
    main(__doc__ or "", measure)
