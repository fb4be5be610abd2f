"""The life of a broker: started on first use, found by others, ended with its last user, started again once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from brokered import Registered, puppet, registered, threaded, wait_for
from commands import loaded_by

from sage_sandbox.audit.log import open_audit
from sage_sandbox.broker.calling import NoRecord
from sage_sandbox.broker.client import BrokerClient, Connection, Hungup, Late
from sage_sandbox.broker.frames import SIZES, BadFrame, pack, read_head, read_sizes
from sage_sandbox.broker.runs import Registration
from sage_sandbox.broker.server import Broker
from sage_sandbox.broker.sessions import connected
from sage_sandbox.broker_process import main
from sage_sandbox.brokering import Tools, needs_of, notice_of, socket_name
from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.places import project_place
from sage_sandbox.disk.sockets import bind, connect
from sage_sandbox.errors import SageError
from sage_sandbox.sandbox.calls import Call


def environ_of(pid):
    return dict(part.split("=", 1) for part in Path(f"/proc/{pid}/environ").read_text().split("\0") if part)


def test_the_process_begins_with_the_first_run_and_ends_with_the_last(project):
    with registered(project) as first:
        assert first.call("echo").ok
        path, pid = Path(first.tools.line.path), first.pid
        with registered(project, run="run-2") as second:
            assert second.tools._process is None
            first.tools.close()
            assert second.call("echo").ok
            assert path.exists()
        first.tools._process.wait(20)

    assert not path.exists()
    assert not Path(f"/proc/{pid}/exe").exists()


def test_a_server_ends_with_the_run_it_was_started_for(project, tmp_path):
    journal = tmp_path / "journal"
    server = puppet("puppet", "--journal", str(journal))
    with registered(project, server) as first, registered(project, server, run="run-2") as second:
        assert first.value("pid") != second.value("pid")
        first.tools.close()
        wait_for(lambda: "end" in journal.read_text())
        assert second.call("echo").ok
    wait_for(lambda: journal.read_text().count("end") == 2)


def test_a_shared_server_serves_all_runs_that_give_it_the_same_values(project):
    server = puppet(env=(("KEY", "${API_KEY:-none}"),))
    grants = {"a/b": ("puppet/*",)}
    same = needs_of([server], grants, {**os.environ, "API_KEY": "1"}, ["puppet"])
    other = needs_of([server], grants, {**os.environ, "API_KEY": "2"}, ["puppet"])
    with threaded(project, needs=same) as first, registered(project, needs=same, run="2") as second:
        assert first.value("pid") == second.value("pid")
        with registered(project, needs=other, run="3") as third:
            assert third.value("pid") != first.value("pid")
            assert third.value("environ")["KEY"] == "2"


def test_what_one_run_broke_another_run_knows(project):
    with threaded(project) as first, registered(project, run="run-2") as second:
        for _ in range(5):
            first.call("drop")

        assert "it failed 5 times in a row" in second.call("echo").error


def test_the_process_has_no_secret_in_its_environment_and_cannot_be_looked_into(project):
    secret = {"SAGE_STATE_KEY": "0" * 64, "ANTHROPIC_API_KEY": "sk-1", "API_KEY": "k-1", "SOME_TOKEN": "t"}
    with registered(project, puppet(env=(("K", "${API_KEY}"),)), environ={**os.environ, **secret}) as run:
        assert run.value("environ")["K"] == "k-1"
        status = Path(f"/proc/{run.pid}/status").read_text()
        owner = Path(f"/proc/{run.pid}/environ").stat().st_uid
        given = environ_of(run.pid) if os.geteuid() == 0 else {}
        command = Path(f"/proc/{run.pid}/cmdline").read_text()

    assert owner == 0  # not dumpable: its files below /proc are root's
    assert not secret.keys() & given.keys()
    assert run.tools.line.token not in command
    assert "k-1" not in status


def test_a_broker_that_dies_is_started_again_once_and_calls_under_way_fail_retryable(project):
    with registered(project) as run:
        run.value("echo")
        answers = []
        calling = threading.Thread(target=lambda: answers.append(run.call("sleep", seconds=60, timeout_s=60)))
        calling.start()
        time.sleep(0.2)
        os.kill(run.pid, signal.SIGKILL)
        calling.join(20)
        wait_for(lambda: run.told)
        again = run.value("echo", text="again")
        os.kill(run.pid, signal.SIGKILL)
        wait_for(lambda: len(run.told) == 2)

    assert answers[0].error == "the tool broker died during the call"
    assert (answers[0].kind, answers[0].retryable) == ("transport", True)
    assert again == "again"
    assert "it was started again, calls under way have failed" in run.told[0].text
    assert "no tool can be called any more" in run.told[1].text


def test_servers_do_not_outlive_a_broker_that_was_killed(project, tmp_path):
    journal = tmp_path / "journal"
    with registered(project, puppet("puppet", "--journal", str(journal))) as run:
        run.value("echo")
        os.kill(run.pid, signal.SIGKILL)
        wait_for(lambda: "end" in journal.read_text())


def test_a_broker_whose_only_run_was_killed_ends(project):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from brokered import registered\n"
        "with registered(Path(sys.argv[2])) as run:\n"
        "    assert run.call('echo').ok\n"
        "    print(run.pid, flush=True); os.read(0, 1)\n"
    )
    argv = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(project)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()

    def is_gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    wait_for(is_gone)


def test_runs_that_come_and_go_at_once_all_find_a_broker(project):
    failures = []

    def come_and_go(number):
        for turn in range(3):
            try:
                with registered(project, run=f"{number}-{turn}") as run:
                    assert run.client.call("x/y", Call("puppet/echo", b"{}")).kind == "denied"
            except BaseException as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_process_that_cannot_start_says_why(project, monkeypatch):
    monkeypatch.setattr("sage_sandbox.broker.booting._BOOT", "raise SystemExit('no such thing as a broker')")
    with registered(project) as run:
        wait_for(lambda: len(run.told) == 2)

    assert "(no such thing as a broker)" in run.told[0].text


def test_an_interpreter_that_is_gone_is_an_error(project, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    with pytest.raises(SageError, match="cannot be started"):
        Tools.open(str(project), needs_of([], {}, {}), run="r", feature="f")


def test_nothing_of_the_project_becomes_the_brokers_code(project):
    (project / "json.py").write_text("raise SystemExit('planted')")
    (project / "mcp").mkdir()
    (project / "mcp" / "__init__.py").write_text("raise SystemExit('planted')")
    with registered(project) as run:
        assert run.call("echo", text="x").ok


# -- the audit log -------------------------------------------------------------------------------------------------

KEY = b"k" * 32


def entries(project):
    lines = (project / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("how", [threaded, registered])
def test_calls_denials_and_transitions_are_in_the_audit_log(project, how):
    with how(project, grants={"a/b": ("puppet/drop", "puppet/echo")}, audit_key=KEY) as run:
        run.call("echo", secret="never written down")
        run.call("fail")
        for _ in range(5):
            run.call("drop")

    found = entries(project)
    assert [(entry["kind"], entry["text"]) for entry in found] == [
        ("call", "puppet/echo"),
        ("violation", "a/b called puppet/fail"),
        *[("call", "puppet/drop")] * 5,
        ("breaker", "puppet: closed to open"),
    ]
    assert found[0]["data"] == {"operation": "a/b", "server": "puppet", "tool": "puppet/echo", "attempt": 1}
    assert found[0]["run"] == "run-1"
    assert "never written down" not in json.dumps(found)


def test_the_entry_comes_before_the_act_and_without_it_there_is_none(project, tmp_path):
    journal = tmp_path / "journal"
    with threaded(project, puppet("puppet", "--journal", str(journal)), audit_key=KEY) as run:
        run.value("echo")
        (project / ".sage" / "logs" / "audit.jsonl").unlink()
        (project / ".sage" / "logs" / "audit.jsonl").mkdir()
        answer = run.call("echo")

    assert "is not a regular file" in answer.error
    assert (answer.kind, answer.retryable) == ("transport", False)
    assert journal.read_text().count("call echo") == 1


def test_a_log_that_cannot_be_opened_refuses_the_run(project):
    with registered(project, run="first"):
        (project / ".sage" / "logs").mkdir(parents=True)
        os.mkfifo(project / ".sage" / "logs" / "audit.jsonl")
        with pytest.raises(SageError, match="the tool broker refused this run"):
            Tools.open(str(project), needs_of([puppet()], {}, {}), run="r", feature="f", audit_key=KEY)


def test_the_broker_and_a_run_write_one_chain(project):
    place = project_place(project)
    log, _ = open_audit(project, place, KEY)
    with registered(project, audit_key=KEY) as run:
        log.write("start", "one")
        run.value("echo")
        log.write("stop", "two", durable=True)
    log.close()

    found = entries(project)
    assert [entry["kind"] for entry in found] == ["start", "call", "stop"]
    assert [entry["previous"] for entry in found[1:]] == [entry["mac"] for entry in found[:-1]]


# -- who may come --------------------------------------------------------------------------------------------------


def test_a_visitor_that_speaks_garbage_is_dropped_and_the_broker_lives(run):
    for data in (b"GET / HTTP/1.1\r\n\r\n", SIZES.pack(3, 0) + b"[1]", SIZES.pack(1, 0) + b"{", b"\xff" * 100):
        sock = connect(run.tools.line.path)
        sock.sendall(data)
        sock.settimeout(20)
        assert sock.recv(10) == b""
        sock.close()

    assert run.value("echo", text="alive") == "alive"


@pytest.mark.parametrize(
    "request_", [{"do": "call"}, {"do": "look", "server": "x", "start": False}, {"do": 1}, {}, {"do": "reset"}]
)
def test_a_request_that_is_none_is_refused(run, request_):
    said, _ = run.tools.ask(request_, 5)

    assert said["error"] == "that is not a request"


@pytest.mark.parametrize("registration", [{}, {"token": "short"}, {"servers": [{}]}])
def test_a_registration_that_is_none_is_dropped(run, registration):
    connection = Connection(connect(run.tools.line.path))
    full = {"token": "t" * 64, "run": "r", "feature": "f", "project": "/", "grants": {}, "servers": [], "values": {},
            "environ": {}, "shared": [], "auditKey": ""}  # fmt: skip
    request = {**full, **registration} if registration else {}
    with pytest.raises(Hungup):
        connection.ask({"do": "register", **request}, until=time.monotonic() + 20)
    connection.close()


def test_nobody_else_can_use_a_socket_that_is_open_to_others(run):
    path = Path(run.tools.line.path)
    folder = path.parent
    fake = folder / (path.name + ".fake")
    fake.write_text("")
    with pytest.raises(PermissionError):
        connect(str(fake))
    fake.unlink()
    with pytest.raises((OSError, Untrusted)):
        connect("/no/such/folder/socket")


@pytest.fixture
def listener(tmp_path):
    tmp_path.joinpath("own").mkdir(mode=0o700)
    with Folder.open(tmp_path / "own") as folder, bind(folder, "s") as sock:
        yield sock, tmp_path / "own" / "s"


async def no_record(_):
    return NoRecord()


def test_a_broker_that_nobody_registers_with_ends(listener):
    asyncio.run(Broker(listener[0], connect=connected, make_record=no_record, first_s=0.1).serve())


def test_a_broker_whose_first_visitor_is_no_run_ends(listener):
    visitor = connect(str(listener[1]))
    visitor.close()

    asyncio.run(Broker(listener[0], connect=connected, make_record=no_record).serve())


def test_a_broker_that_may_not_end_yet_tries_again(listener):
    visitor = connect(str(listener[1]))
    visitor.close()
    asked = []

    def may_end():
        asked.append(True)
        return len(asked) == 3

    asyncio.run(Broker(listener[0], connect=connected, make_record=no_record, may_end=may_end).serve())

    assert len(asked) == 3


def test_the_program_serves_what_it_is_handed_until_its_last_run_hangs_up(listener, project):
    sock, path = listener
    pid = os.fork()
    if not pid:
        try:
            os._exit(main(sock.detach(), str(path)))
        finally:
            os._exit(99)
    registration = Registration(
        "t" * 64, "r", "f", str(project), {"a/b": ("puppet/*",)}, (puppet(),), {}, {}, audit_key=KEY.hex()
    )
    connection = Connection(connect(str(path)))
    until = time.monotonic() + 30
    assert connection.ask({"do": "register", **registration.document()}, until=until)[0] == {"event": "registered"}
    client = BrokerClient(str(path), "t" * 64)
    assert client.call("a/b", Call("puppet/echo", b'{"text": "hi"}')).value == b'"hi"'
    assert client.call("x/y", Call("puppet/echo", b"{}")).kind == "denied"
    client.close()
    connection.close()

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not path.exists()
    assert [entry["kind"] for entry in entries(project)] == ["call", "violation"]


def test_a_first_run_that_is_refused_is_told_so(project):
    (project / ".sage" / "logs").mkdir(parents=True)
    os.mkfifo(project / ".sage" / "logs" / "audit.jsonl")
    with threaded(project, audit_key=KEY) as run:
        wait_for(lambda: any("refused this run" in notice.text for notice in run.told))


def test_a_fault_of_ours_costs_one_request(run, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr("sage_sandbox.broker.server.Calling.call", fail)
        answer = run.call("echo")

    assert answer.error == "the tool broker failed: ZeroDivisionError: a fault of ours"
    assert run.value("echo", text="alive") == "alive"


def test_a_client_without_a_broker_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sage_sandbox.broker.client.REACH_S", 0.0)
    client = BrokerClient(str(tmp_path / "no" / "socket"), "t")

    answer = client.call("a/b", Call("puppet/echo", b"{}"))

    assert "the tool broker cannot be reached" in answer.error
    assert (answer.kind, answer.retryable) == ("transport", True)
    assert client.list_tools("a/b") == ()


def test_a_broker_that_was_stopped_is_waited_for_no_longer_than_was_said(project, monkeypatch):
    monkeypatch.setattr("sage_sandbox.broker.client.LATE_S", 0.2)
    with registered(project) as run:
        run.value("echo")
        os.kill(run.pid, signal.SIGSTOP)
        try:
            answer = run.call("echo", timeout_s=0.1)
            with pytest.raises(SageError, match="does not answer"):
                run.tools.ask({"do": "look", "server": "puppet", "start": False}, 0.1)
        finally:
            os.kill(run.pid, signal.SIGCONT)

    assert answer.error == "the tool broker gave no answer in 0 s"
    assert not answer.retryable


def test_a_worker_that_gives_up_does_not_wait_for_a_broker_that_is_not_there(tmp_path):
    gate = os.eventfd(1)
    client = BrokerClient(str(tmp_path / "no" / "socket"), "t")

    assert client.call("a/b", Call("p/t", b"{}"), cancel_fd=gate).kind == "cancelled"
    os.close(gate)


def test_a_look_says_how_a_server_stands_without_starting_it(project, tmp_path):
    journal = tmp_path / "journal"
    with threaded(project, puppet("puppet", "--journal", str(journal))) as run:
        quiet = run.look()
        assert not journal.exists()
        loud = run.look(start=True)

    assert (quiet["state"], quiet["open"], quiet["tools"]) == ("closed", False, [])
    assert loud["open"]
    assert loud["about"] == {"name": "puppet", "version": "7", "protocol": "2025-11-25"}
    assert "echo" in [tool["name"] for tool in loud["tools"]]


def test_a_look_at_a_server_that_cannot_be_had_says_why(project):
    with threaded(project, puppet("puppet", "--refuse-start"), settings={"jitter": lambda: 0.0}) as run:
        said = run.look(start=True)

    assert "it ended its output" in said["error"]


# -- frames --------------------------------------------------------------------------------------------------------


def test_frames_have_an_end():
    with pytest.raises(BadFrame):
        pack({}, b"x" * ((16 << 20) + 1))
    with pytest.raises(BadFrame):
        read_sizes(SIZES.pack(1 << 30, 0))
    with pytest.raises(BadFrame):
        read_head(b"[" * 100_000)


def test_the_name_of_a_socket_is_short_and_the_projects_own():
    assert socket_name("/a") != socket_name("/b")
    assert len(socket_name("/" + "x" * 4000)) < 40


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "refused", "error": "why"}, "the tool broker refused this run: why"),
        ({"event": "progress", "operation": "a/b", "tool": "p/t", "done": 5, "total": None}, "a/b: p/t: 5"),
    ],
)
def test_events_are_told_in_a_line(event, text):
    notice = notice_of(event)

    assert notice is not None
    assert notice.text == text


def test_what_is_no_event_is_not_told():
    assert notice_of({"event": "registered"}) is None
    assert notice_of({}) is None


def test_neither_coordinator_nor_worker_nor_help_load_the_protocol():
    modules = (
        "sage_sandbox.api, sage_sandbox.runner, sage_sandbox.brokering, sage_sandbox.broker.client, "
        "sage_sandbox.operations.worker, sage_sandbox.cli.main, sage_sandbox.cli.tools, sage_sandbox.cli.run"
    )
    heavy = {"mcp", "mcp_types", "httpx2", "anyio", "asyncio", "pydantic"}

    assert not heavy & loaded_by(f"import {modules}")


def test_late_is_told_from_gone(run):
    connection = Connection(connect(run.tools.line.path))
    with pytest.raises(Late):
        connection.receive(until=time.monotonic())
    connection.close()
    assert isinstance(run, Registered)
