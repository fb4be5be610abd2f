"""How long a feature's graph of six phases and nine operations takes on warm slots.

From planning to the result document, with a slot a core; every operation sandboxed, every phase encrypted and durable
before the next. The floor is the same nine nodes on as many warm loky workers with one fsynced line each (section 14,
line 5).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.floors.raw_loky import run_graph, warm_executor
from benchmarks.graphs import feature, feature_edges
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen, Saved, cores, run

_WHAT = "6 phases, 9 operations, warm (sandboxed, encrypted, durable)"
_LOKY, _UNSAVED = "raw loky + one fsynced line a node", "the same, not saved"


def measure(scale: Scale) -> Iterator[Row]:
    """One row."""
    times = pick(scale, 10, 5, 1)
    workflow, edges = feature(), feature_edges()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        saved = Saved(folder)
        slots = KeptOpen(saved.project, cores())
        stack.callback(slots.end)
        loky = stack.enter_context(warm_executor(cores()))
        arms: dict[str, Round] = {
            _WHAT: each(lambda: saved.run(workflow, slots), times),
            _UNSAVED: each(lambda: run(workflow, slots, saved.project), times),
            _LOKY: each(lambda: run_graph(loky, edges, folder / "log"), times),
        }
        taken = take_turns(arms, pick(scale, 15, 5, 1))
    yield row(
        _WHAT, taken[_WHAT], "ms", {other: taken[other] for other in (_LOKY, _UNSAVED)}, [Aim("<= 15 ms (then 10)", 15)]
    )


if __name__ == "__main__":
    main(__doc__ or "", measure)
