"""How long after ``sage-sandbox resume`` is typed the first operation of a large run goes on.

A run of 10,000 phases of which all but the last are committed, and whose process was killed: a whole new process finds
the key, opens every checkpoint, says what is kept, starts workers and runs the last phase, which returns the time at
which its own code ran. The floor is a cold ``run`` of one operation, which has none of that to read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_cold_run import moment
from benchmarks.fresh import until_printed
from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import Saved, cli_argv, definition
from sage_sandbox.document import OperationResult, PhaseResult
from sage_sandbox.outcome import Outcome
from sage_sandbox.workflow.loading import load

_CLOCK = "import time\ndef run():\n    return time.monotonic()\n"
_COLD = "cold run of one operation"
_AT_ONCE = 100


def measure(scale: Scale) -> Iterator[Row]:
    """One row."""
    phases, rounds = pick(scale, 10_000, 10_000, 50), pick(scale, 9, 3, 1)
    what = f"resume of {phases:,} phases: first operation running"
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(Path(folder))
        template = _template(Path(saved.project, "large.json"), phases)
        single = _template(Path(saved.project, "single.json"), 1)
        _leave_unfinished(saved, template)
        argv = cli_argv("resume", "benchmark", "--from", f"p{phases - 1}", "--json", "--no-cache")
        cold = cli_argv("run", str(single), "cold", "--restart", "--json", "--no-cache")
        arms: dict[str, Round] = {
            what: until_printed(argv, cwd=saved.project, moment=moment, environ=saved.environ),
            _COLD: until_printed(cold, cwd=saved.project, moment=moment, environ=saved.environ),
        }
        taken = take_turns(arms, rounds)
    yield row(what, taken[what], "ms", {_COLD: taken[_COLD]}, [Aim("<= 1,000 ms", 1000)])


def _template(path: Path, phases: int) -> Path:
    listed: list[dict[str, Any]] = [
        {
            "id": f"p{number}",
            "name": f"p{number}",
            "dependencies": [f"p{number - 1}"] if number else [],
            "operations": {"type": "python", "code": _CLOCK},
        }
        for number in range(phases)
    ]
    path.write_text(json.dumps({"name": "benchmark", "phases": listed}), encoding="utf-8")
    return path


def _leave_unfinished(saved: Saved, template: Path) -> None:
    """The state of a run that was killed before its last phase."""
    workflow = load(template)
    journal = saved.open()
    outcome = Outcome("fulfilled", result=b"1.5", level="full")
    operations = (OperationResult("op-1", outcome),)
    journal.begin(definition(workflow, template.read_text(encoding="utf-8"), str(template)), workflow)
    done = [PhaseResult(phase.id, phase.name, "completed", True, operations) for phase in workflow.phases[:-1]]
    for start in range(0, len(done), _AT_ONCE):
        journal.commit(done[start : start + _AT_ONCE])
    journal.close()


if __name__ == "__main__":
    main(__doc__ or "", measure)
