"""What a node of a graph costs, and whether it costs the same in a large graph.

Graphs of 50, 1,000 and 10,000 nodes in layers of 20, three dependencies each, every node a sandboxed operation that
gets the results of the nodes before it; warm slots, one a core; from planning to the result document. The floor is the
plainest loop over the same graph on as many warm loky workers, which appends and fsyncs a line of JSON for each node;
beside it the same runs without saving (section 14, line 4).
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
from benchmarks.subjects import KeptOpen, Saved, cores, run

_PER_NODE = Aim("<= 1.5 ms a node (then 0.85)", 1.5)
_FLAT = Aim("flat (<= 1.2x)", 1.2, of="ratio")
_LOKY = "raw loky + one fsynced line a node"
_UNSAVED = "the same, not saved"


def measure(scale: Scale) -> Iterator[Row]:
    """A row for each size."""
    sizes = pick(scale, {50: 30, 1000: 9, 10_000: 3}, {50: 10, 1000: 3, 3000: 1}, {5: 1, 40: 1})
    smaller: tuple[str, list[float]] | None = None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        saved = Saved(folder)
        slots = KeptOpen(saved.project, cores())
        stack.callback(slots.end)
        loky = stack.enter_context(warm_executor(cores()))
        for nodes, rounds in sizes.items():
            edges = layered(nodes)
            name = f"graph of {nodes:,} nodes, ms a node (sandboxed, encrypted, durable)"
            graph = workflow(edges)
            arms: dict[str, Round] = {
                name: partial(_per_node, nodes, lambda graph=graph: saved.run(graph, slots)),
                _UNSAVED: partial(_per_node, nodes, lambda graph=graph: run(graph, slots, saved.project)),
                _LOKY: partial(_per_node, nodes, lambda edges=edges: run_graph(loky, edges, folder / "log")),
            }
            taken = take_turns(arms, rounds, warm_up=1 if nodes <= 1000 else 0)
            yield row(
                name,
                taken[name],
                "ms",
                {other: taken[other] for other in (_LOKY, _UNSAVED)},
                [_PER_NODE] if nodes >= 1000 else [],
            )
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
