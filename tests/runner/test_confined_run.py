"""Runs over the real sandbox: the seam holds on both sides. What the sandbox denies is tested in `escape/`."""

from __future__ import annotations

import http.server
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
from workflows import flow, many, op, single

from sage_sandbox.dispatch.dispatcher import Dispatcher
from sage_sandbox.document import RunResult, document
from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.events import Event, OperationStarted
from sage_sandbox.policy import Policy
from sage_sandbox.runner import Runner, warm
from sage_sandbox.workflow.definition import Workflow

SPIN = "def run():\n    while True:\n        pass\n"


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        run(flow(single("a", code="def run():\n    return 1\n")), "/tmp")
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")


def run(workflow: Workflow, project: str, **options: object) -> RunResult:
    return Runner(workflow, feature="f", project=project, parallel=2, **options).run()  # type: ignore[arg-type]


def test_results_flow_through_confined_operations(tmp_path: Path) -> None:
    add = "def run(params):\n    return params['n'] + 1\n"
    pair = many("a", op("x", add, params={"n": 1}), op("y", "def run():\n    1 / 0\n"), success_threshold=0.5)
    result = run(flow(pair, single("b", "a", code="def run(inputs):\n    return inputs\n")), str(tmp_path))
    phases = document(result)["results"]["phases"]

    assert result.outcome("b", "op-1").value() == {"a": {"x": 2, "y": None}}
    assert {operation["sandboxLevel"] for phase in phases for operation in phase["operations"]} == {"full"}


def test_a_phase_timeout_stops_a_spinning_child(tmp_path: Path) -> None:
    result = run(
        flow(single("a", code=SPIN, timeout_s=0.3), single("free", code="def run():\n    return 1\n")), str(tmp_path)
    )

    assert (result.exit_code, result.outcome("a", "op-1").reason) == (124, "timeout")
    assert result.phase("free").status == "completed"


def test_a_cancel_stops_spinning_children_and_leaves_no_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    dispatcher: Dispatcher = warm(str(tmp_path), parallel=2)
    family: set[psutil.Process] = set()

    def observe(event: Event) -> None:
        if isinstance(event, OperationStarted):
            family.update(psutil.Process().children(recursive=True))
            os.kill(os.getpid(), signal.SIGUSR1)

    runner = Runner(
        flow(many("a", op("x", SPIN), op("y", SPIN))), feature="f", dispatcher=dispatcher, observers=[observe]
    )
    previous = signal.signal(signal.SIGUSR1, lambda *_: runner.cancel())
    try:
        result = runner.run()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    _, alive = psutil.wait_procs(family - before - {process for process in family if is_tracker(process)}, timeout=5)

    assert (result.status, result.exit_code) == ("cancelled", 130)
    assert not alive


def test_a_granted_host_is_reached_from_two_workers_and_no_proxy_is_left(tmp_path: Path) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        def log_message(self, *_: object) -> None:
            pass

    before = set(psutil.Process().children(recursive=True))
    family: set[psutil.Process] = set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        get = (
            f"import urllib.request\ndef run():\n    return urllib.request.urlopen('http://{host}/').read().decode()\n"
        )
        other = get.replace(host, "127.0.0.1:1")
        policy = Policy(net=(host,))
        workflow = flow(many("a", op("x", get, policy=policy), op("y", other, policy=policy), success_threshold=0.5))
        policies = {("a", name): policy for name in "xy"}
        result = run(
            workflow,
            str(tmp_path),
            policies=policies,
            observers=[lambda _: family.update(psutil.Process().children(recursive=True))],
        )
        server.shutdown()
    x, y = (result.outcome("a", name) for name in "xy")
    _, alive = psutil.wait_procs(family - before - {process for process in family if is_tracker(process)}, timeout=20)

    assert ("ok", ["allowed"]) == (x.value(), [contact.verdict for contact in x.contacts])
    assert ("denied", "--allow net:127.0.0.1:1") == (y.reason, y.hint)
    assert not alive


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's resource tracker, which stays as long as we do."""
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ZombieProcess is one of these
        return False
