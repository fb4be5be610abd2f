"""loky by itself: warm executors, and the plainest loop that runs a graph on one. No sandbox, no limits."""

from __future__ import annotations

import json
import operator
import os
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

from loky import ProcessPoolExecutor


def warm_executor(workers: int) -> Executor:
    """An executor whose workers all run; shut it down."""
    executor: Executor = ProcessPoolExecutor(workers, timeout=None)
    for future in [executor.submit(time.sleep, 0.2) for _ in range(2 * workers)]:
        future.result()
    return executor


def nothing(executor: Executor) -> object:
    """Have a worker do nothing; from submit to result."""
    return executor.submit(operator.index, 1).result()


def wait_together(executor: Executor, waits: Sequence[float]) -> float:
    """Sleep in as many workers at once; how long it took."""
    started = time.monotonic()
    for future in [executor.submit(time.sleep, wait) for wait in waits]:
        future.result()
    return time.monotonic() - started


def end_warm(workers: int) -> float:
    """End workers that rest, and wait until they are gone; how long it took."""
    executor = warm_executor(workers)
    started = time.monotonic()
    executor.shutdown(wait=True)
    return time.monotonic() - started


def kill_asleep(workers: int) -> float:
    """Kill workers that sleep, and wait until they are gone; how long it took."""
    executor = warm_executor(workers)
    for _ in range(workers):
        executor.submit(time.sleep, 600)
    started = time.monotonic()
    executor.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg] # loky's own
    return time.monotonic() - started


def run_graph(executor: Executor, edges: Mapping[str, tuple[str, ...]], log: Path | None = None) -> dict[str, Any]:
    """Run every node as soon as its dependencies are done, with their results; all results.

    ``log``: a line of JSON for each node is appended there and fsynced before its dependents start.
    """
    lines = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    missing = {node: len(dependencies) for node, dependencies in edges.items()}
    dependents: dict[str, list[str]] = {node: [] for node in edges}
    for node, dependencies in edges.items():
        for dependency in dependencies:
            dependents[dependency].append(node)
    ended: queue.SimpleQueue[tuple[str, Future[int]]] = queue.SimpleQueue()
    results: dict[str, int] = {}

    def start(node: str) -> None:
        future = executor.submit(sum, [results[dependency] for dependency in edges[node]], 1)
        future.add_done_callback(partial(_put, ended, node))

    for node, count in missing.items():
        if not count:
            start(node)
    while len(results) < len(edges):
        node, future = ended.get()
        results[node] = future.result()
        _note(lines, node, results[node])
        for dependent in dependents[node]:
            missing[dependent] -= 1
            if not missing[dependent]:
                start(dependent)
    if lines is not None:
        os.close(lines)
    return results


def _note(lines: int | None, node: str, result: int) -> None:
    """Make a result durable in the plainest way."""
    if lines is not None:
        os.write(lines, json.dumps({node: result}).encode() + b"\n")
        os.fsync(lines)


def _put(ended: queue.SimpleQueue[tuple[str, Future[int]]], node: str, future: Future[int]) -> None:
    ended.put((node, future))
