from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_supervisor
import pytest
from fake_supervisor import InlineSupervisor, task

from sage_sandbox.operations import channel, worker
from sage_sandbox.operations.channel import Ready, Report, Returned, Withdraw
from sage_sandbox.operations.worker import Worker
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Policy
from sage_sandbox.results.scrub import Scrubber


class Line:
    """The coordinator's end of a worker that lives in this process."""

    def __init__(self, supervisor: InlineSupervisor, known: tuple[str, ...] = ()) -> None:
        self.socket, far = socket.socketpair()
        self.socket.settimeout(20)
        self.worker = Worker(far, supervisor, Scrubber(known), own_process=False)
        self.listener = threading.Thread(target=self.worker.listen)
        self.listener.start()
        self._frames = channel.Frames()
        self._heard: list[channel.Frame] = []

    def hear(self) -> channel.Frame:
        while not self._heard:
            data = self.socket.recv(1 << 16)
            assert data, "the worker hung up"
            self._heard += self._frames.feed(data)
        return self._heard.pop(0)

    def hear_outcome(self) -> Outcome:
        """What the one task that runs leaves."""
        assert self.hear() == Report((), 1)
        report = self.hear()
        assert isinstance(report, Report)
        return report.ended[0].outcome

    def hear_ended(self) -> dict[int, str]:
        frame = self.hear()
        assert isinstance(frame, Report)
        return {ended.ticket: ended.outcome.reason or "ok" for ended in frame.ended}

    def withdraw(self, *tickets: int, kill: bool = True) -> None:
        self.socket.sendall(channel.encode(Withdraw(tickets, kill)))

    def start(self, *codes: str) -> threading.Thread:
        thread = threading.Thread(target=self.worker.run, args=([task(n, c) for n, c in enumerate(codes, 1)],))
        thread.start()
        return thread

    def cut(self) -> None:
        self.socket.close()
        self.listener.join(20)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(InlineSupervisor("/p"))
    line.worker.prepare()
    assert line.hear() == Ready()
    yield line
    line.cut()


def test_each_outcome_leaves_with_the_start_of_the_next(line: Line) -> None:
    line.worker.run([task(1, "ok"), task(2, "fail no"), task(3, "ok")])
    reports = [line.hear() for _ in range(4)]

    assert [report.started for report in reports if isinstance(report, Report)] == [1, 2, 3, 0]
    ended = [(e.ticket, e.outcome.ok) for r in reports if isinstance(r, Report) for e in r.ended]
    assert ended == [(1, True), (2, False), (3, True)]


def test_a_running_task_is_cancelled_and_the_next_is_not(line: Line) -> None:
    thread = line.start("block", "ok")
    assert line.hear() == Report((), 1)
    line.withdraw(1)

    assert line.hear_ended() == {1: "cancelled"}
    assert line.hear_ended() == {2: "ok"}
    thread.join(20)


def test_withdrawing_without_kill_leaves_the_running_task_alone(line: Line) -> None:
    thread = line.start("block", "ok", "ok")
    line.hear()
    line.withdraw(1, 2, kill=False)

    assert line.hear() == Returned((2,))
    line.withdraw(1)
    assert line.hear_ended() == {1: "cancelled"}
    assert line.hear_ended() == {3: "ok"}
    thread.join(20)


def test_a_task_can_be_withdrawn_before_it_arrives(line: Line) -> None:
    line.withdraw(1, kill=False)
    assert line.hear() == Returned((1,))
    line.worker.run([task(1, "ok"), task(2, "ok")])

    assert line.hear() == Report((), 2)


def test_withdrawing_what_has_ended_is_nothing(line: Line) -> None:
    line.worker.run([task(1, "ok")])
    line.withdraw(1)
    line.worker.run([task(2, "ok")])
    reports = [line.hear() for _ in range(4)]

    assert all(isinstance(report, Report) for report in reports)


def test_a_fault_of_the_supervisor_costs_one_operation(line: Line) -> None:
    line.worker.run([task(1, "raise oops"), task(2, "ok")])
    line.hear()
    report = line.hear()

    assert isinstance(report, Report)
    assert report.ended[0].outcome.error == "the supervisor failed: ValueError: oops"
    assert line.hear_ended() == {2: "ok"}


def test_a_sandbox_that_is_withheld_is_said(line: Line) -> None:
    line.worker.run([task(1, "withheld")])
    line.hear()

    assert line.hear() == Ready(("no memory cgroup", "run doctor", "cgroup"))
    assert line.hear_ended() == {1: "error"}


@pytest.fixture
def knowing() -> Iterator[Line]:
    line = Line(InlineSupervisor("/p"), known=("hunter2hunter2",))
    line.worker.prepare()
    line.hear()
    yield line
    line.cut()


def test_no_secret_leaves_the_worker(knowing: Line) -> None:
    knowing.worker.run([task(1, "fail no hunter2hunter2 for " + "npm_" + "aB3" * 12)])
    outcome = knowing.hear_outcome()

    assert outcome.error == "no [secret:known] for [secret:npm-token]"
    assert outcome.scrubbed == 2


def test_what_the_supervisor_fails_with_is_scrubbed_too(knowing: Line) -> None:
    knowing.worker.run([task(1, "raise hunter2hunter2")])

    assert knowing.hear_outcome().error == "the supervisor failed: ValueError: [secret:known]"


def test_the_value_of_a_granted_name_does_not_leave(knowing: Line) -> None:
    env = (("DSN", "sesame-sesame"), ("SAGE_IDEMPOTENCY_KEY", "0123456789abcdef"))
    knowing.worker.run([task(1, "env", env=env, policy=Policy(env=("DSN",)))])

    assert knowing.hear_outcome().value() == {"DSN": "[secret:known]", "SAGE_IDEMPOTENCY_KEY": "0123456789abcdef"}


def test_a_granted_value_is_the_secret_of_its_own_operation_only(knowing: Line) -> None:
    knowing.worker.run([task(1, "env", env=(("DSN", "sesame-sesame"),), policy=Policy(env=("DSN",)))])
    knowing.hear_outcome()
    knowing.worker.run([task(1, "fail sesame-sesame")])

    assert knowing.hear_outcome().error == "sesame-sesame"


def test_what_cannot_be_scrubbed_is_not_shown(knowing: Line) -> None:
    knowing.worker.run([task(1, "echo", params=b'["hunter2hunter2')])
    outcome = knowing.hear_outcome()

    assert outcome.error == "what it left could not be scrubbed: ValueError"
    assert outcome.result == b"null"


def test_a_worker_that_loses_its_coordinator_kills_its_child_and_cleans_up() -> None:
    supervisor = InlineSupervisor("/p")
    line = Line(supervisor)
    line.worker.prepare()
    line.hear()
    thread = line.start("block", "block")
    line.hear()
    line.cut()
    thread.join(20)

    assert not thread.is_alive()
    assert supervisor.closed


def test_leaving_cleans_up_once_and_runs_nothing_more() -> None:
    supervisor = InlineSupervisor("/p")
    line = Line(supervisor)
    line.worker.prepare()
    line.worker.leave()
    line.worker.leave()
    line.worker.run([task(1, "block")])
    line.cut()

    assert supervisor.closed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fake_supervisor.UnpreparedSupervisor, "no user namespaces"),
        (fake_supervisor.BrokenSupervisor, "the sandbox cannot be prepared: ZeroDivisionError: a fault of ours"),
    ],
)
def test_a_sandbox_that_cannot_be_prepared_is_said(make: type[InlineSupervisor], message: str) -> None:
    line = Line(make("/p"))
    line.worker.prepare()
    frame = line.hear()
    line.cut()

    assert isinstance(frame, Ready)
    assert frame.error is not None
    assert frame.error[0] == message


def test_a_worker_whose_coordinator_is_gone_before_it_starts_gives_up(tmp_path: Path) -> None:
    def work() -> None:
        worker.enter(0, str(tmp_path / "nobody"), b"t" * channel.TOKEN_BYTES, "/p", fake_supervisor.inline_supervisor)
        worker.leave()
        left.append(True)

    # In a thread, as the inline pool has it: in the main thread it would make this process undumpable and deaf.
    left: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)

    assert left


def test_what_a_worker_loads_is_light() -> None:
    code = "import sage_sandbox.operations.worker, sys; print([m for m in %r if m in sys.modules])"
    heavy = ["pydantic", "yaml", "rich", "click", "jinja2", "mcp", "sage_sandbox.grants", "sage_sandbox.pool"]
    env = os.environ | {"PYTHONPATH": str(Path(worker.__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code % heavy], env=env, capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "[]"
