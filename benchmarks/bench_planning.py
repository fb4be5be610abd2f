"""How long it takes to plan a loaded workflow, and to read, check and plan a template.

10,000 and 100,000 phases, three dependencies each (one in YAML, whose format ends at 1 MiB). The floors are what cannot
be saved: graphlib over the same edges, the bare parser over the same text (section 14, line 9).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from functools import partial
from graphlib import TopologicalSorter

import yaml

from benchmarks.edges import Edges, layered
from benchmarks.graphs import json_template, workflow, yaml_template
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from sage_sandbox.workflow.loading import load_text
from sage_sandbox.workflow.parsing import Format
from sage_sandbox.workflow.planning import plan

_PLAN_S = {10_000: 0.1, 100_000: 1.2}
_JSON_S = {100_000: 4.0}
_YAML_S = {10_000: 2.5}


def measure(scale: Scale) -> Iterator[Row]:
    """Planning, then JSON, then YAML."""
    sizes = pick(scale, (10_000, 100_000), (10_000, 100_000), (40, 80))
    for nodes in sizes:
        rounds = pick(scale, 15, 5, 1) if nodes < 100_000 else pick(scale, 7, 2, 1)
        edges = layered(nodes)
        loaded = workflow(edges)
        yield _compare(f"plan {nodes:,} phases, loaded", partial(plan, loaded), "graphlib", partial(_sort, edges),
                       _PLAN_S.get(nodes), rounds)  # fmt: skip
    for nodes in sizes:
        rounds = pick(scale, 9, 2, 1) if nodes < 100_000 else pick(scale, 5, 1, 1)
        text = json_template(layered(nodes))
        yield _compare(f"validate + plan {nodes:,} phases, JSON", partial(_read, text, "json"), "json.loads",
                       partial(json.loads, text), _JSON_S.get(nodes), rounds)  # fmt: skip
    text = yaml_template({name: before[:1] for name, before in layered(sizes[0]).items()})
    parse = partial(yaml.compose, text, yaml.CSafeLoader)
    yield _compare(f"validate + plan {sizes[0]:,} phases, YAML", partial(_read, text, "yaml"), "yaml.compose, C loader",
                   parse, _YAML_S.get(sizes[0]), pick(scale, 7, 1, 1))  # fmt: skip


def _compare(what: str, call: object, floor: str, bottom: object, aim_s: float | None, rounds: int) -> Row:
    assert callable(call)
    assert callable(bottom)
    arms: dict[str, Round] = {what: each(call), floor: _uncollected(each(bottom))}
    taken = take_turns(arms, rounds)
    return row(what, taken[what], "s", {floor: taken[floor]}, [Aim(f"<= {aim_s} s", aim_s)] if aim_s else [])


def _uncollected(measure: Round) -> Round:
    """Without the garbage collector, which doubles what a parser takes and is paused in our own readers, too."""

    def paused() -> Sequence[float]:
        gc.disable()
        try:
            return measure()
        finally:
            gc.enable()

    return paused


def _sort(edges: Edges) -> object:
    return list(TopologicalSorter(edges).static_order())


def _read(text: str, kind: Format) -> object:
    return plan(load_text(text, kind))


if __name__ == "__main__":
    main(__doc__ or "", measure)
