"""An interpreter that has loaded what a run loads, and forks for each command: a start then costs half.

Two sides, one file: `Warm` is the harness's hold on it, `serve` and `become` run in it. A fork has the command's own
environment, folder, descriptors and arguments, a keeper for its parent, and the shim awake: test_runs.py holds that it
makes every sort of call of one that was started the long way.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from commands import PACKAGE_FOLDER

if TYPE_CHECKING:
    from crash.harness import Command
    from crash.shim import Tools

LOADED: Final = (
    *("filelock", "loky", "loky.backend.popen_loky_posix", "yaml"),
    *(f"sage_sandbox.cli.{name}" for name in ("main", "results", "resume", "run", "stale")),
    *(f"sage_sandbox.preparing.{name}" for name in ("approving", "caches", "definitions", "journals", "notices")),
    *(f"sage_sandbox.observe.{name}" for name in ("log", "progress")),
    *(f"sage_sandbox.store.{name}" for name in ("cache", "opening", "reading", "runs")),
    *(f"sage_sandbox.workflow.{name}" for name in ("building", "checking", "loading", "templates")),
    "sage_sandbox.api",
    "sage_sandbox.caching.cache",
    "sage_sandbox.dispatch.dispatcher",
    "sage_sandbox.grants.approval",
    "sage_sandbox.operations.worker",
    "sage_sandbox.pool.loky_pool",
    "sage_sandbox.runner",
)
"""What the start of a run is made of. A name that is missing here costs time and nothing else."""
_CODE = (
    "import sys; sys.path[:0] = sys.argv[2:]; from crash import warm; warm.serve(int(sys.argv[1])); "
    "del sys.path[1]; from sage_sandbox.cli.main import main; sys.exit(main())"
)
_REQUEST_BYTES = 1 << 17
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


@dataclass(frozen=True)
class Warm:
    """The hold on one: it ends when this is closed."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    keeper: Path
    prefix: tuple[str, ...]
    """What a command begins with that it can stand in for: the command line's own words follow."""

    @classmethod
    def up(cls, tools: Tools, prefix: Sequence[str]) -> Warm:
        """Start one, the shim in it and asleep."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folders = (PACKAGE_FOLDER, str(Path(__file__).parents[1]))
        with its:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(its.fileno()), *folders],
                env={"PATH": os.environ["PATH"], "LD_PRELOAD": str(tools.shim)},
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
            )
        return cls(process, ours, tools.keeper, tuple(prefix))

    def start(
        self, command: Command, env: Mapping[str, str], kept: Sequence[str], fds: tuple[int, int, int, int]
    ) -> None:
        """Fork for a command, under a keeper told ``kept``; ``fds``: its stdout, its stderr, the keeper's two."""
        words = [str(word) for word in command.argv]
        assert words[: len(self.prefix)] == [*self.prefix], command
        asked = {
            "words": words[len(self.prefix) :],
            "cwd": str(command.cwd),
            "env": dict(env),
            "keeper": str(self.keeper),
            "kept": kept,
        }
        socket.send_fds(self.channel, [json.dumps(asked).encode()], fds)

    def close(self) -> None:
        """End it."""
        self.channel.close()
        self.process.wait()


# -- in the warm process -----------------------------------------------------------------------------------------------


def serve(number: int) -> None:
    """Fork for each request. Comes back in a fork, which is then the command."""
    for name in LOADED:
        import_module(name)
    gc.freeze()  # what every fork would otherwise copy by looking at it
    with socket.socket(fileno=number) as channel:
        while True:
            asked, fds, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 4)
            if not asked:
                sys.exit()
            if os.fork() == 0:
                break
            for fd in fds:
                os.close(fd)
            _reap()
    become(json.loads(asked), *fds)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become(asked: Mapping[str, Any], stdout: int, stderr: int, report: int, leash: int) -> None:
    """Be the keeper, and in a fork of it the command: comes back in that one only."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # outlives exec; from now on, for what the command orphans at once
    command = os.fork()
    if command:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.set_inheritable(report, True)
        os.set_inheritable(leash, True)
        os.execv(asked["keeper"], [asked["keeper"], str(report), str(leash), *asked["kept"], f"@{command}"])
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdout, stderr, report, leash):
        os.close(fd)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"], LD_PRELOAD=asked["env"]["CRASH_SHIM"], CRASH_MAIN=str(os.getpid()))
    del os.environ["CRASH_SHIM"]
    sys.argv[1:] = asked["words"]
    libc.crash_start()
