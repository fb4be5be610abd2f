"""What a request over the egress proxy costs a sandboxed operation, beside the same request made directly.

Both are measured in turns in one run, against one server on loopback that answers at once: by an operation that was
granted the server, over the proxy, and by a plain process, straight. Each request has a connection of its own, as most
clients make one for each over a proxy in plain HTTP; a tunnel is made anew too. The times are taken where the request
is made, and come back as the operation's result.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from benchmarks.harness import Round, Scale, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from sage_sandbox.operations.confining import supervisor
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

_AIM = Aim("<= 1.2 ms, as tried", 1.2)
_DIRECT = "direct, a plain process"
_CODE = """
import socket, time
def run(params):
    head = params["head"].encode()
    taken = []
    for _ in range(params["times"]):
        started = time.perf_counter()
        with socket.create_connection(tuple(params["address"])) as made:
            if params["tunnel"]:
                made.sendall(params["tunnel"].encode())
                made.recv(4096)
            made.sendall(head)
            while made.recv(65536):
                pass
        taken.append(time.perf_counter() - started)
    return taken
"""
_PLAIN = "\nimport json, sys\nprint(json.dumps(run(json.loads(sys.stdin.read()))))\n"


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with a little, and hang up."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port
        made.shutdown()


def _params(port: int, times: int, way: str) -> dict[str, object]:
    host = f"127.0.0.1:{port}"
    path = f"http://{host}/" if way == "http" else "/"
    return {
        "address": ["127.0.0.1", port if way == "direct" else 3128],
        "tunnel": f"CONNECT {host} HTTP/1.1\r\n\r\n" if way == "tunnel" else "",
        "head": f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "times": times,
    }


def _inside(box: Supervisor, port: int, times: int, way: str) -> list[float]:
    params = json.dumps(_params(port, times, way)).encode()
    policy = Policy(net=(f"127.0.0.1:{port}",))
    outcome = box.run(Job("python", _CODE, params=params, project=box.project, policy=policy))
    assert outcome.ok, outcome.error
    taken: list[float] = outcome.value()
    return taken


def _outside(port: int, times: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CODE + _PLAIN],
        input=json.dumps(_params(port, times, "direct")).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    taken: list[float] = json.loads(done.stdout)
    return taken


def measure(scale: Scale) -> Iterator[Row]:
    """A row for plain HTTP and one for a tunnel."""
    rounds, times = pick(scale, 10, 4, 1), pick(scale, 200, 50, 3)
    with tempfile.TemporaryDirectory() as project, _server() as port, closing(supervisor(project)) as box:
        arms: dict[str, Round] = {
            _DIRECT: partial(_outside, port, times),
            "http over the proxy, inside": partial(_inside, box, port, times, "http"),
            "a tunnel over the proxy, inside": partial(_inside, box, port, times, "tunnel"),
        }
        taken = take_turns(arms, rounds)
    floor = taken.pop(_DIRECT)
    for name, values in taken.items():
        yield row(name, values, "ms", {_DIRECT: floor}, [_AIM])


if __name__ == "__main__":
    main(__doc__ or "", measure)
