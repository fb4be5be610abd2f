"""Whole runs with worker processes, the sandbox alone replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_supervisor
import psutil
import pytest
from fake_supervisor import inline_supervisor
from workflows import flow, many, op, single

import sage_sandbox
from sage_sandbox.dispatch.dispatcher import Dispatcher, inline_pool, loky_pool
from sage_sandbox.document import RunResult
from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.runner import Runner, warm
from sage_sandbox.workflow.definition import Workflow

ROOT = Path(sage_sandbox.__file__).parents[1]
TESTS = Path(fake_supervisor.__file__).parent


@pytest.fixture(params=[inline_pool, loky_pool], ids=["inline", "loky"])
def pool(request: pytest.FixtureRequest) -> Any:
    return request.param


def run(workflow: Workflow, pool: Any = loky_pool, make: Any = inline_supervisor, **options: Any) -> RunResult:
    dispatcher = Dispatcher("/", parallel=options.pop("parallel", 2), make_pool=pool, make_supervisor=make)
    return Runner(workflow, feature="test", dispatcher=dispatcher, **options).run()


def test_a_diamond_runs_to_its_end(pool: Any) -> None:
    phases = (
        single("a", code="echo", op_fields={"params": {"n": 1}}),
        single("b", "a", code="inputs"),
        many("c", op("x"), op("y", "fail no"), needs=("a",), success_threshold=0.5),
        single("d", "b", "c", code="inputs"),
    )
    result = run(flow(*phases), pool)

    assert result.status == "completed"
    assert [phase.status for phase in result.phases] == ["completed", "completed", "degraded", "completed"]
    assert result.outcome("d", "op-1").value() == {"b": {"a": {"n": 1}}, "c": {"x": "ok", "y": None}}


def test_hundreds_of_short_operations_all_settle(pool: Any) -> None:
    result = run(flow(many("a", *(op(f"op-{n}", "echo", params=n) for n in range(400)))), pool)

    assert [operation.outcome.value() for operation in result.phases[0].operations] == list(range(400))


def test_a_killed_workers_operation_is_repeated_and_the_rest_goes_on(tmp_path: Path) -> None:
    operations = (op("dies", f"die-once {tmp_path / 'died'}"), *(op(f"op-{n}") for n in range(20)))
    result = run(flow(many("a", *operations)))

    assert result.metrics.fulfilled == 21
    assert [attempt.reason for attempt in result.outcome("a", "dies").attempts] == ["worker lost", None]


def test_an_operation_that_always_kills_its_worker_is_alone_in_it() -> None:
    result = run(flow(many("a", op("dies", "die"), *(op(f"op-{n}") for n in range(9)))))

    assert result.status == "completed"
    assert result.outcome("a", "dies").reason == "worker lost"
    assert result.metrics.fulfilled == 9


def test_a_phase_timeout_stops_blocked_operations(pool: Any) -> None:
    phases = (many("a", op("done"), op("stuck", "block"), timeout_s=0.3), single("b", "a"), single("free"))
    result = run(flow(*phases), pool, parallel=3)

    assert [phase.status for phase in result.phases] == ["timeout", "blocked", "completed"]
    assert (result.exit_code, result.outcome("a", "done").ok) == (124, True)
    assert result.outcome("a", "stuck").error == "phase timeout exceeded (300 ms)"


def test_an_unprepared_sandbox_ends_the_run(pool: Any) -> None:
    with pytest.raises(SandboxUnavailable, match="no user namespaces"):
        run(flow(single("a")), pool, fake_supervisor.unprepared_supervisor)


def test_a_withheld_sandbox_ends_the_run(pool: Any) -> None:
    with pytest.raises(SandboxUnavailable, match="no memory cgroup"):
        run(flow(single("a", code="withheld")), pool)


def test_workers_are_told_the_secrets_of_the_environment_but_not_what_opens_the_state(tmp_path: Path) -> None:
    environ = {"CI_TOKEN": "hunter2hunter2", "SAGE_STATE_KEY": "0" * 64, "HOME": "/home/somebody"}
    dispatcher = warm(str(tmp_path), slots=0, environ=environ)
    dispatcher.close()

    assert ("hunter2hunter2",) == dispatcher._initargs[-1]


def test_warm_starts_a_worker_before_there_is_a_workflow() -> None:
    dispatcher = warm(str(ROOT), parallel=3, slots=2)
    states = [link.state for link in dispatcher._links]
    dispatcher.close()

    assert states == ["starting", "starting", "absent"]


CTRL_C = """
import sys
import fake_supervisor
from workflows import flow, many, op
from sage_sandbox.dispatch.dispatcher import Dispatcher
from sage_sandbox.events import OperationStarted
from sage_sandbox.runner import Runner
from sage_sandbox.signals import cancelled_by_signals

def observe(event):
    if isinstance(event, OperationStarted):
        print("started", flush=True)

def main():
    codes = sys.argv[1:]
    dispatcher = Dispatcher("/", parallel=2, make_supervisor=fake_supervisor.inline_supervisor)
    workflow = flow(many("a", *(op(f"op-{n}", code) for n, code in enumerate(codes))))
    runner = Runner(workflow, feature="f", dispatcher=dispatcher, observers=[observe])
    with cancelled_by_signals(runner.cancel):
        result = runner.run()
    print(result.status, result.exit_code.value, [o.outcome.reason for o in result.phases[0].operations])

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("codes", [["block", "block", "ok"], ["deaf", "block"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_soon_and_leaves_no_process(tmp_path: Path, codes: list[str], number: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(CTRL_C)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    command = [sys.executable, "-P", str(script), *codes]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == "started\n"
        family = psutil.Process(process.pid).children(recursive=True)
        for _ in range(2):  # as a terminal does it: the whole foreground group, and an impatient user
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        out, err = process.communicate(timeout=30)  # far from the ten minutes a run may take

    assert out == f"cancelled 130 {['cancelled'] * len(codes)}\n"
    assert err == ""
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not alive


def test_a_coordinator_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CTRL_C)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    with subprocess.Popen(
        [sys.executable, "-P", str(script), "block", "block"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=5)

    assert not alive


def test_a_worker_that_comes_up_after_its_coordinator_was_killed_ends(tmp_path: Path) -> None:
    code = f"from sage_sandbox.operations import worker; worker.enter(0, {str(tmp_path / 'nobody')!r}, b'', '/')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; print('it stays')"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
