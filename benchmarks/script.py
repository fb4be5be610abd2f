"""What every ``bench_*.py`` does when it is run: measure at the scale that was asked for and print one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable

from benchmarks.harness import SCALES, Scale
from benchmarks.machine import compile_byte_code, load, machine
from benchmarks.records import Row


def main(question: str, measure: Callable[[Scale], Iterable[Row]]) -> None:
    """Answer one question; ``question`` is the docstring of the benchmark."""
    reader = argparse.ArgumentParser(description=question)
    reader.add_argument("--scale", choices=SCALES, default="full")
    scale: Scale = reader.parse_args().scale
    compile_byte_code()
    started, before = time.monotonic(), load()
    rows = [row.plain() for row in measure(scale)]
    answer = {
        "question": question.partition("\n")[0],
        "scale": scale,
        "rows": rows,
        "machine": machine(),
        "load": {"before": before, "after": load()},
        "duration_s": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
