"""How one sandboxed run of Python compares with starting the interpreter, bare and in bubblewrap.

A Python operation is a call into a child that was forked ahead; a command operation starts the same interpreter as the
peers do, so the second row compares like with like. Each peer does nothing but start and end (section 14, line 1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.floors.programs import BARE, bubblewrap_argv, program, works
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import in_process, python_job
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

_AIM = Aim(">= 10x faster than bwrap + python", 0.1, of="ratio")
_OPERATION, _COMMAND = "one Python operation, warm", "one command operation, the same interpreter"
_BARE, _BWRAP = "python3 -I -S -c pass", "bwrap + python3 -I -S"


def measure(scale: Scale) -> Iterator[Row]:
    """Two rows, each beside both peers."""
    times = pick(scale, 20, 10, 1)
    wrapped = bubblewrap_argv(BARE)
    missing = works(wrapped)
    with tempfile.TemporaryDirectory() as folder:
        project = str(Path(folder).resolve())
        # Where the interpreter is not beneath /usr, a command has to be granted the folder of the program it runs.
        policy = Policy() if BARE[0].startswith("/usr/") else Policy(read=(str(Path(BARE[0]).parents[1]),))
        command = Job("command", argv=BARE, policy=policy, project=project)
        with closing(Supervisor(project)) as python, closing(Supervisor(project)) as other:
            arms: dict[str, Round] = {
                _OPERATION: each(in_process(python, python_job(project)), times),
                _COMMAND: each(in_process(other, command), times),
                _BARE: each(program(BARE), times),
            }
            if wrapped is not None and not missing:
                arms[_BWRAP] = each(program(wrapped), times)
            taken = take_turns(arms, pick(scale, 15, 5, 1))
    floors = {_BWRAP: missing or taken[_BWRAP], _BARE: taken[_BARE]}
    yield row(_OPERATION, taken[_OPERATION], "ms", floors, [_AIM])
    yield row(_COMMAND, taken[_COMMAND], "ms", floors)


if __name__ == "__main__":
    main(__doc__ or "", measure)
