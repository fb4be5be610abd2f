"""A tool server in a kernel sandbox of its own: what it cannot do, what it may, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from brokered import PUPPET, threaded, wait_for

from sage_sandbox import sandboxed_server
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.policy import Policy
from sage_sandbox.sandboxed_server import job_of, main
from sage_sandbox.toolservers.definition import Server

QUICK = {"jitter": lambda: 0.0}


@pytest.fixture
def program(project):
    """The puppet, in the project: there a policy can name it."""
    (project / "bin").mkdir()
    path = project / "bin" / "server.py"
    path.write_text(Path(PUPPET).read_text())
    return path


def server(program, *args, sandbox=True, policy=("read:bin",), **more):
    argv = (str(program), *args)
    return Server("puppet", ".mcp.json", "/usr/bin/python3", argv, sandbox=sandbox, policy=policy, **more)


def test_a_server_reads_only_what_its_definition_says(project, program):
    (project / "secret.txt").write_text("secret")
    (project.parent / "elsewhere.txt").write_text("elsewhere")
    (project / "notes.txt").write_text("notes")
    read = ("read:bin", "read:notes.txt")
    with threaded(project, server(program, sandbox=False, policy=())) as run:
        assert run.value("open", path=str(project / "secret.txt")) == "secret"
        assert run.value("open", path=str(project.parent / "elsewhere.txt")) == "elsewhere"
    with threaded(project, server(program, policy=read)) as run:
        assert run.value("open", path=str(project / "secret.txt")) == "FileNotFoundError"
        assert run.value("open", path=str(project.parent / "elsewhere.txt")) == "FileNotFoundError"
        assert run.value("open", path="notes.txt") == "notes"
        assert run.value("write", path="notes.txt") != "written"
        assert run.value("cwd") == os.path.realpath(project)


def test_what_it_writes_directly_is_there_at_once(project, program):
    (project / "notes").mkdir()
    with threaded(project, server(program, policy=("read:bin", "write-through:notes"))) as run:
        assert run.value("write", path="notes/new.txt") == "written"
        assert (project / "notes" / "new.txt").read_text() == "written"


def test_it_is_given_the_values_of_its_definition_and_nothing_of_the_users(project, program):
    environ = {**os.environ, "API_KEY": "k-1", "OTHER": "x"}
    given = server(program, env=(("KEY", "${API_KEY}"),))
    with threaded(project, given, environ=environ) as run:
        found = run.value("environ")

    assert (found["KEY"], found["PYTHONSAFEPATH"]) == ("k-1", "1")
    assert found["HOME"] != os.environ["HOME"]
    assert "OTHER" not in found


def test_what_its_definition_sets_does_not_reach_the_process_that_confines_it(project, program):
    mark = project / "loaded"
    (project / "evil").mkdir()
    (project / "evil" / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w').close()")
    with threaded(project, server(program, env=(("PYTHONPATH", str(project / "evil")),))) as run:
        assert run.value("environ")["PYTHONPATH"] == str(project / "evil")

    assert not mark.exists()


def test_it_ends_with_its_run_and_a_call_of_many_lines_comes_through(project, program):
    (project / "notes").mkdir()
    (project / "notes" / "journal").touch()
    policy = ("read:bin", "write-through:notes/journal")
    with threaded(project, server(program, "--journal", str(project / "notes" / "journal"), policy=policy)) as run:
        assert run.value("echo", text="x" * 300_000) == "x" * 300_000
        assert run.value("echo", text="again") == "again"

    wait_for(lambda: "end" in (project / "notes" / "journal").read_text())


def test_a_server_that_breaks_is_begun_anew(project, program):
    with threaded(project, server(program), settings=QUICK) as run:
        assert not run.call("drop").ok
        assert run.value("echo", text="back") == "back"


def test_what_cannot_be_granted_is_said_and_nothing_is_started(project, program):
    with threaded(project, server(program, policy=("read:bin", "read:/etc/shadow-of-nobody")), settings=QUICK) as run:
        answer = run.call("echo")

    assert answer.kind == "transport"
    assert "/etc/shadow-of-nobody" in answer.error


# -- the process by itself -----------------------------------------------------------------------------------------


def spec_fd(project, *policy):
    spec = {"argv": ["/usr/bin/true"], "env": [["A", "b"]], "policy": policy, "project": str(project)}
    fd = os.memfd_create("spec")
    os.write(fd, json.dumps(spec).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return str(fd)


def test_a_definition_becomes_an_operation_of_a_day(project):
    (project / "a").mkdir()
    spec = {"argv": ["x", "y"], "env": [["A", "b"]], "policy": ["read:a"], "project": str(project)}
    job = job_of(spec)

    assert (job.argv, job.env) == (("x", "y"), (("PYTHONSAFEPATH", "1"), ("A", "b")))
    assert job.policy == Policy(read=(os.path.realpath(project / "a"),))
    assert job.limits.timeout_s == 86400.0


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (Outcome("fulfilled"), 0, ""),
        (rejected("limit", "memory limit 1 GiB exceeded", "less"), 1, "memory limit 1 GiB exceeded (less)\n"),
        (Outcome("rejected", "error", "exit code 3", exit_code=3), 3, "exit code 3\n"),
    ],
)
def test_why_it_ended_are_its_last_words(project, capsys, monkeypatch, outcome, code, said):
    class Supervisor:
        closed = False

        def run(self, job, *, cancel_fd, relay):
            assert relay.spell(1, b"as it is") == b"as it is"
            return outcome

        def close(self):
            Supervisor.closed = True

    monkeypatch.setattr("sage_sandbox.operations.confining.supervisor", lambda _: Supervisor())
    monkeypatch.setattr("sage_sandbox.sandbox.inside.syscalls.set_dumpable", lambda _: None)

    assert (main(spec_fd(project)), capsys.readouterr().err) == (code, said)
    assert Supervisor.closed


def test_a_policy_that_cannot_be_meant_is_said(project, capsys, monkeypatch):
    monkeypatch.setattr("sage_sandbox.sandbox.inside.syscalls.set_dumpable", lambda _: None)

    assert main(spec_fd(project, "read:nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert sandboxed_server.PIDS == 128
