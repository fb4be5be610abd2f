"""How often a second a lean interpreter can give something a fresh process: a program, run with ``python -I -S``.

``bare``: fork, exit, wait. Every way to give an operation a process of its own pays at least this.
``served``: an operation without a sandbox. The child takes a request from a socket, compiles and runs its source, and
answers in JSON; the parent reads the answer, waits for the child and makes the next.

It starts at a line on stdin, so that several of it can start at once, and prints the rate.
"""

import json
import os
import sys
import time
from _socket import socketpair

_REQUEST = json.dumps({"code": "def run():\n    return 1\n", "params": None}).encode()


def bare() -> None:
    """Fork a child that ends at once."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def served() -> None:
    """Fork a child that runs one operation."""
    ours, theirs = socketpair()
    pid = os.fork()
    if not pid:
        # We are the child: whatever happens, this process must not go on as its parent.
        try:
            request = json.loads(theirs.recv(1 << 16))
            scope: dict[str, object] = {}
            exec(compile(request["code"], "<operation>", "exec"), scope)
            run = scope["run"]
            theirs.sendall(json.dumps(run() if callable(run) else None).encode())
        finally:
            os._exit(0)
    theirs.close()
    ours.sendall(_REQUEST)
    if ours.recv(1 << 16) != b"1":
        raise RuntimeError("the child did not answer")
    ours.close()
    os.waitpid(pid, 0)


def main(kind: str, seconds: float) -> float:
    """Do it for so long; how often a second."""
    act = {"bare": bare, "served": served}[kind]
    started = time.monotonic()
    acts = 0
    while time.monotonic() - started < seconds:
        act()
        acts += 1
    return acts / (time.monotonic() - started)


if __name__ == "__main__":
    sys.stdin.readline()
    print(main(sys.argv[1], float(sys.argv[2])))
