"""How much memory the process tree of a run of 10,000 nodes takes, and whether it grows.

``sage-sandbox run`` of a generated template, from start to end; the proportional set size (each page counted once,
shared out among who maps it) of the process and all its descendants, sampled. The highest sample counts, and for growth
the median of the last quarter of the run over that of the second. Only root may read this of processes that are not
dumpable. The floor is a process tree that does nothing but run the same graph on raw loky (section 14, line 10).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.edges import layered
from benchmarks.fresh import module
from benchmarks.graphs import json_template
from benchmarks.harness import Scale, percentile, pick
from benchmarks.machine import HERE
from benchmarks.records import Aim, Row, not_measured, row
from benchmarks.script import main
from benchmarks.subjects import cli_argv

_SLOTS_MB = {2: 120, 4: 170}
_GROWTH = Aim("no growth (<= 1.1x)", 1.1, of="ratio")
_SAMPLE_S = 0.1


def measure(scale: Scale) -> Iterator[Row]:
    """Peak and growth for each number of slots."""
    nodes = pick(scale, 10_000, 2_000, 100)
    sizes = {slots: _SLOTS_MB[slots] for slots in pick(scale, (2, 4), (2, 4), (2,))}
    if os.geteuid():
        for slots, most in sizes.items():
            aims = [Aim(f"<= {most} MB", most)]
            yield not_measured(f"peak PSS of the tree, {slots} slots", "MB", "needs root", aims)
        return
    with tempfile.TemporaryDirectory() as project:
        template = Path(project, "large.json")
        template.write_text(json_template(layered(nodes)), encoding="utf-8")
        for slots, most in sizes.items():
            argv = cli_argv("run", str(template), "--parallel", str(slots), "--timeout", "1h")
            ours = [_samples(argv, project) for _ in range(pick(scale, 3, 1, 1))]
            loky = [_samples(module("floors.loky_graph", str(nodes), str(slots)), str(HERE.parent)) for _ in ours]
            what = f"{nodes:,} nodes, {slots} slots"
            floor = {"raw loky, same graph": [max(one) for one in loky]}
            yield row(f"peak PSS of the tree, {what}", [max(one) for one in ours], "MB", floor,
                      [Aim(f"<= {most} MB", most)])  # fmt: skip
            yield row(f"PSS in the last quarter, {what}", [_quarter(one, 3) for one in ours], "MB",
                      {"in the second": [_quarter(one, 1) for one in ours]}, [_GROWTH])  # fmt: skip


def _samples(argv: Sequence[str], cwd: str) -> list[float]:
    """The tree's PSS over the life of a process, in bytes."""
    samples: list[float] = []
    with subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            samples.append(_tree(process.pid))
            time.sleep(_SAMPLE_S)
    if process.returncode:
        raise RuntimeError(f"{argv[0]} ended with {process.returncode}")
    return samples


def _tree(pid: int) -> float:
    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):  # it ended meanwhile
                total += process.memory_full_info().pss
    return float(total)


def _quarter(samples: Sequence[float], number: int) -> float:
    size = len(samples)
    return percentile(samples[number * size // 4 : max((number + 1) * size // 4, number * size // 4 + 1)], 0.5)


if __name__ == "__main__":
    main(__doc__ or "", measure)
