"""Runs that last minutes: through real sandboxes, checked phase by phase."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dags import PRIME, SUM, expected, random_dag, returned, workflow
from workflows import flow, many, op

from sage_sandbox.runner import Runner

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("phases", "edges"), [(2_000, 6_000), (10_000, 20_000)])
@pytest.mark.parametrize("seed", [2, 3])
def test_every_phase_of_a_large_graph_returns_its_sum(tmp_path: Path, phases: int, edges: int, seed: int) -> None:
    graph = random_dag(phases, edges, seed)
    result = Runner(workflow(graph), feature="f", project=str(tmp_path)).run()

    assert "completed" == result.status
    assert expected(graph) == returned(result)


def test_a_thousand_operations_settle_while_workers_are_killed_at_random(tmp_path: Path) -> None:
    operations = [op(f"op-{number}", SUM, params=number) for number in range(1_000)]
    runner = Runner(
        flow(many("all", *operations, success_threshold=0.5), timeout_s=1200.0), feature="f", project=str(tmp_path)
    )
    with killing_workers(seed=4) as killed:
        result = runner.run()
    outcomes = {operation.id: operation.outcome for operation in result.phases[0].operations}
    lost = {name: outcome for name, outcome in outcomes.items() if not outcome.ok}

    assert len(killed) >= 5
    assert 1_000 == len(outcomes)
    assert {"worker lost"} >= {outcome.reason for outcome in lost.values()}, lost
    # An operation is lost for good only if its worker is killed under it twice.
    assert len(lost) < len(killed) / 2
    assert [number % PRIME for number in range(1_000) if f"op-{number}" not in lost] == [
        outcome.value() for outcome in outcomes.values() if outcome.ok
    ]
    assert not workers()


def workers() -> list[psutil.Process]:
    """The worker processes beneath us, by what they were started with."""
    found = []
    for process in psutil.Process().children():
        try:
            if "loky.backend.popen_loky_posix" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def killing_workers(seed: int) -> Iterator[list[int]]:
    """Kill one worker after the other while the block lasts, with random pauses; gives the pids killed so far."""
    chance = random.Random(seed)
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not over.wait(chance.uniform(0.05, 0.4)):
            if alive := workers():
                victim = chance.choice(alive)
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(20)
