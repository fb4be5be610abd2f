"""How long after ``sage-sandbox run`` is typed the first operation runs.

A whole process: the command line, its workers, a template read and checked, the sandbox laid. The operation returns the
time at which its own code ran. The floor is the moment of loky's first task in a fresh process (section 14, line 6).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.fresh import module, until_printed
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import cli_argv

_TEMPLATE = """\
name: cold
phases:
- id: first
  name: First
  operations:
    type: python
    code: |
      import time
      def run():
          return time.monotonic()
"""
_FIRST, _WHOLE = (
    "cold `sage-sandbox run`: first operation running",
    "cold `sage-sandbox run` of one operation, to its end",
)
_LOKY = "loky's first task"


def measure(scale: Scale) -> Iterator[Row]:
    """Until the first operation, and the whole."""
    with tempfile.TemporaryDirectory() as project:
        template = Path(project, "cold.yaml")
        template.write_text(_TEMPLATE, encoding="utf-8")
        argv = cli_argv("run", str(template), "--json", "--restart", "--no-cache")
        arms: dict[str, Round] = {
            _FIRST: until_printed(argv, cwd=project, moment=moment),
            _LOKY: until_printed(module("floors.cold_loky")),
            _WHOLE: each(partial(subprocess.run, argv, cwd=project, check=True, capture_output=True)),
        }
        taken = take_turns(arms, pick(scale, 20, 5, 1))
    floors = {_LOKY: taken[_LOKY]}
    yield row(_FIRST, taken[_FIRST], "ms", floors, [Aim("<= 500 ms (then 350)", 500)])
    yield row(_WHOLE, taken[_WHOLE], "ms", floors)


def moment(stdout: str) -> float:
    """When the last operation ran, by its own result."""
    return float(json.loads(stdout)["results"]["phases"][-1]["operations"][0]["result"])


if __name__ == "__main__":
    main(__doc__ or "", measure)
