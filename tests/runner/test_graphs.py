"""A graph of thousands of edges through the real sandbox: every phase returns what its place in it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from dags import expected, random_dag, returned, workflow

from sage_sandbox.runner import Runner


@pytest.mark.timeout(300)
def test_every_phase_of_a_graph_of_2000_phases_and_6000_edges_returns_its_sum(tmp_path: Path) -> None:
    edges = random_dag(2000, 6000, seed=1)
    result = Runner(workflow(edges), feature="f", project=str(tmp_path)).run()

    assert (2000, 6000) == (len(edges), sum(map(len, edges.values())))
    assert "completed" == result.status
    assert expected(edges) == returned(result)
