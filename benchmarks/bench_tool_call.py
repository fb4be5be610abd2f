"""How long one tool call takes from inside the sandbox, from `tools.call` to its return.

The handler is in the supervisor's process and answers at once; the floor is the same handler called directly, in turns.
An operation makes many calls and returns how long each took by its own clock, so its own start is not in the figure.
The program `sage-tool` starts an interpreter for its call: its floor is that interpreter doing nothing, measured inside
too. The budget: the sandbox adds no more than 1.5 ms to what a call takes by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing

from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import fulfilled
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.calls import Answer, Call
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

_ADDED = Aim("<= 1.5 ms above the call itself", 1.5)
_DIRECT = "the handler called directly"
_BARE = "an interpreter inside that does nothing"
_CALLS = """
import time
def run(params, tools):
    taken = []
    for _ in range(params["times"]):
        started = time.perf_counter()
        tools.call("bench/echo", text="x" * params["size"])
        taken.append(time.perf_counter() - started)
    return taken
"""
_PROGRAMS = """
import subprocess, sys, time
def run(params):
    taken = []
    for _ in range(params["times"]):
        started = time.perf_counter()
        subprocess.run(params["argv"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return taken
"""
_POLICY = Policy(tool=("bench/*",))


def _echo(call: Call) -> Answer:
    return Answer(ok=True, value=call.arguments)


def measure(scale: Scale) -> Iterator[Row]:
    """Small and large arguments from a Python operation; the program."""
    rounds = pick(scale, 12, 5, 1)
    times = pick(scale, 100, 50, 2)
    starts = pick(scale, 10, 5, 1)
    with tempfile.TemporaryDirectory() as project, closing(Supervisor(project, handle_call=_echo)) as supervisor:
        call = Call("bench/echo", b'{"text":"x"}')
        arms: dict[str, Round] = {
            _DIRECT: each(lambda: _echo(call), times),
            "tools.call, 10 bytes": _inside(supervisor, _CALLS, f'{{"times":{times},"size":10}}'),
            "tools.call, 64 KiB each way": _inside(supervisor, _CALLS, f'{{"times":{times},"size":65536}}'),
            _BARE: _inside(supervisor, _PROGRAMS, _argv(starts, "/sandbox/bin/.python", "-IS", "-c", "")),
            "sage-tool call": _inside(supervisor, _PROGRAMS, _argv(starts, "sage-tool", "call", "bench/echo")),
        }
        taken = take_turns(arms, rounds)
    direct, bare = taken.pop(_DIRECT), taken.pop(_BARE)
    for name, values in taken.items():
        program = name.startswith("sage-tool")
        floors = {_BARE: bare} if program else {_DIRECT: direct}
        yield row(name, values, "ms", floors, [] if program else [_ADDED])


def _argv(times: int, *argv: str) -> str:
    words = ",".join(f'"{word}"' for word in argv)
    return f'{{"times":{times},"argv":[{words}]}}'


def _inside(supervisor: Supervisor, code: str, params: str) -> Round:
    """What an operation measured of itself, in seconds."""
    job = Job("python", code=code, params=params.encode(), policy=_POLICY, project=supervisor.project)

    def measured() -> list[float]:
        values: list[float] = fulfilled(supervisor.run(job)).value()
        return values

    return measured


if __name__ == "__main__":
    main(__doc__ or "", measure)
