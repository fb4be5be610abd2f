"""From what was seen to the outcome: a table of every reason and limit, and anything a child may send."""

from __future__ import annotations

import errno
import json
import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.outcome import Capabilities, Contact, Violation
from sage_sandbox.policy import KiB, Limits, MiB
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.untrusted import check_json
from sage_sandbox.sandbox.verdict import Ending, judge, limit_text

PYTHON = Job(
    "python", file="op.py", limits=Limits(memory=100 * MiB, cpu_s=2.5, pids=8, disk=3 * MiB // 2, timeout_s=90)
)
COMMAND = replace(PYTHON, type="command", argv=("tool", "x"), project="/nowhere")
KILLED = int(signal.SIGKILL)
NO_RESULT = "the operation wrote to its result channel what is no result"


def exited(code):
    return wire.EXITED, wire.EXIT_STATUS.pack(code << 8)


def signalled(number):
    return wire.EXITED, wire.EXIT_STATUS.pack(int(number))


def raised(kind="ValueError", message="no", **more):
    return wire.ERROR, json.dumps({"type": kind, "message": message, "line": None, **more}).encode()


def ending(job=PYTHON, frame=None, *, stderr=b"", stdout=b"", cgroup=True, **seen):
    plain = {"stopped": None, "status": 0, "duration_s": 1.0, "cpu_s": 0.1, "max_rss": 1 << 20}
    return Ending(
        job=job, frame=frame, stdout=stdout, stdout_kept=stdout, stderr_kept=stderr,
        capabilities=Capabilities("cgroup" if cgroup else "sampled"), **{**plain, **seen},
    )  # fmt: skip


MEMORY = "memory limit 100 MiB exceeded", "--limit memory=200M"
CPU = "cpu limit 2.5 s exceeded", "--limit cpu=5s"
PIDS = "pids limit 8 exceeded", "--limit pids=16"
DISK = "disk limit 1.5 MiB exceeded", "--limit disk=3M"
OUTPUT = "output limit 16 MiB exceeded", ""
RESULT = "result limit 16 MiB exceeded", ""


@pytest.mark.parametrize(
    ("seen", "limit"),
    [
        (ending(stopped="memory", status=KILLED), MEMORY),
        (ending(stopped="cpu", status=KILLED), CPU),
        (ending(stopped="output", status=KILLED), OUTPUT),
        (ending(oom_kills=1, frame=(wire.VALUE, b"1")), MEMORY),
        (ending(oom_kills=1, status=KILLED), MEMORY),
        (ending(cpu_s=2.5, status=KILLED), CPU),
        (ending(cpu_s=9, status=int(signal.SIGXCPU)), CPU),
        (ending(COMMAND, signalled(signal.SIGXCPU), cpu_s=3), CPU),
        (ending(COMMAND, signalled(signal.SIGKILL), cpu_s=3), CPU),
        (ending(status=int(signal.SIGXFSZ)), DISK),
        (ending(COMMAND, signalled(signal.SIGXFSZ)), DISK),
        (ending(COMMAND, exited(1), work_full=True), DISK),
        (ending(frame=raised("OSError", errno=errno.ENOSPC)), DISK),
        (ending(frame=raised("OSError", errno=errno.EDQUOT)), DISK),
        (ending(frame=raised("OSError", errno=errno.EFBIG)), DISK),
        (ending(frame=raised("sqlite3.OperationalError", "disk I/O error"), work_full=True), DISK),
        (ending(frame=raised("MemoryError", "")), MEMORY),
        (ending(frame=raised("OSError", errno=errno.ENOMEM)), MEMORY),
        (ending(frame=raised("BlockingIOError", errno=errno.EAGAIN)), PIDS),
        (ending(frame=raised("RuntimeError", "can't start new thread")), PIDS),
        (ending(frame=raised("OSError"), pids_refused=1), PIDS),
        (ending(frame=raised("ResultTooLarge", "")), RESULT),
        (ending(COMMAND, raised("SpawnError", errno=errno.EAGAIN)), PIDS),
        (ending(COMMAND, exited(254), pids_refused=3), PIDS),
        (ending(COMMAND, exited(254), stderr=b"sh: 1: Cannot fork"), PIDS),
        (ending(COMMAND, exited(1), stderr=b"fork: Resource temporarily unavailable"), PIDS),
        (ending(COMMAND, exited(1), stderr=b"Cannot allocate memory", cgroup=False), MEMORY),
        (ending(COMMAND, signalled(signal.SIGABRT), stderr=b"std::bad_alloc", cgroup=False), MEMORY),
        (ending(status=int(signal.SIGSEGV), stderr=b"MemoryError", cgroup=False), MEMORY),
    ],
)  # fmt: skip
def test_a_limit_is_named_with_the_option_that_doubles_it(seen, limit):
    outcome = judge(seen)

    assert ("rejected", "limit", *limit) == (outcome.status, outcome.reason, outcome.error, outcome.hint)
    assert b"null" == outcome.result


@pytest.mark.parametrize(
    ("seen", "reason", "error"),
    [
        (ending(stopped="timeout", status=KILLED), "timeout", "timeout 90 s exceeded"),
        (ending(stopped="cancelled", status=KILLED), "cancelled", "cancelled"),
        (ending(stopped="protocol", status=KILLED), "error", NO_RESULT),
        (ending(frame=(wire.READY, b"{}")), "error", NO_RESULT),
        (ending(frame=(wire.EXITED, wire.EXIT_STATUS.pack(0))), "error", NO_RESULT),
        (ending(COMMAND, (wire.VALUE, b"1")), "error", NO_RESULT),
        (ending(frame=(wire.ERROR, b"[]")), "error", NO_RESULT),
        (ending(frame=(wire.ERROR, b"{")), "error", "the result is not JSON: "),
        (ending(), "error", "ended without a result (exit status 0)"),
        (ending(status=7 << 8), "error", "ended without a result (exit status 7)"),
        (ending(status=KILLED), "error", "killed by SIGKILL"),
        (ending(status=int(signal.SIGSEGV), stderr=b"Fatal: x\n\n"), "error", "killed by SIGSEGV: Fatal: x"),
        (ending(status=int(signal.SIGRTMIN) + 1), "error", "killed by signal 35"),
        (ending(cpu_s=9, status=int(signal.SIGTERM)), "error", "killed by SIGTERM"),
        (ending(frame=raised()), "error", "ValueError: no"),
        (ending(frame=raised(message="")), "error", "ValueError"),
        (ending(frame=raised(line=3)), "error", "ValueError: no (op.py, line 3)"),
        (ending(frame=raised(message="", line=3)), "error", "ValueError (op.py, line 3)"),
        (ending(frame=(wire.ERROR, b"{}")), "error", ""),
        (ending(COMMAND, exited(1)), "error", "exit code 1"),
        (ending(COMMAND, exited(2), stderr=b"one\ntwo\n \n"), "error", "exit code 2: two"),
        (ending(COMMAND, signalled(signal.SIGTERM)), "error", "killed by SIGTERM"),
        (ending(COMMAND, exited(1), stderr=b"Cannot allocate memory"), "error", "exit code 1: Cannot allocate memory"),
        (ending(COMMAND, raised("SpawnError", "x", errno=errno.ENOENT)), "error", "tool: command not found"),
        (ending(COMMAND, raised("SpawnError", "bad format", errno=errno.ENOEXEC)), "error", "tool: bad format"),
        (ending(frame=raised("OSError", errno=errno.ENETUNREACH)), "denied", "OSError: no"),
    ],
)  # fmt: skip
def test_an_ending_has_its_reason_and_its_words(seen, reason, error):
    outcome = judge(seen)

    assert ("rejected", reason) == (outcome.status, outcome.reason)
    assert error == outcome.error or (error.endswith(": ") and outcome.error.startswith(error))
    assert b"null" == outcome.result


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        (ending(COMMAND, exited(3)), 3),
        (ending(COMMAND, signalled(signal.SIGTERM)), 128 + 15),
        (ending(COMMAND, raised("SpawnError", errno=errno.ENOENT)), 127),
        (ending(COMMAND, raised("SpawnError", errno=errno.EACCES)), 126),
        (ending(COMMAND, exited(0)), 0),
        (ending(frame=(wire.VALUE, b"1")), None),
    ],
)
def test_the_exit_code_is_a_shells(seen, code):
    assert code == judge(seen).exit_code


@pytest.mark.parametrize(
    ("output", "stdout", "result"),
    [
        ("text", b"a\nb\n", "a\nb\n"),
        ("text", b"", ""),
        ("text", b"\xff", "�"),
        ("lines", b"a\nb\n", ["a", "b"]),
        ("lines", b"a\n\n", ["a", ""]),
        ("lines", b"", []),
        ("lines", b"\n", []),
        ("json", b' {"a": 1}\n', {"a": 1}),
        ("json", b"\n", None),
    ],
)
def test_a_commands_stdout_is_its_result(output, stdout, result):
    outcome = judge(ending(replace(COMMAND, output=output), exited(0), stdout=stdout))

    assert outcome.ok
    assert result == outcome.value()


def test_stdout_that_grows_beyond_a_result_as_json_is_a_limit():
    outcome = judge(ending(COMMAND, exited(0), stdout=b"\0" * (4 << 20)))

    assert ("limit", "result limit 16 MiB exceeded") == (outcome.reason, outcome.error)


def test_stdout_that_is_not_the_json_it_should_be_rejects():
    outcome = judge(ending(replace(COMMAND, output="json"), exited(0), stdout=b"hello"))

    assert ("rejected", "error") == (outcome.status, outcome.reason)
    assert outcome.error.startswith("the result is not JSON")


def test_a_result_that_is_no_json_says_what_is_in_it():
    outcome = judge(ending(frame=(wire.VALUE, b"[NaN]")))

    assert "error" == outcome.reason
    assert outcome.error.endswith("the result holds NaN, which is no JSON number")


def test_an_exit_code_that_is_named_as_good_is_good():
    assert judge(ending(replace(COMMAND, ok_codes=(0, 1)), exited(1))).ok


def test_what_run_returned_is_the_result():
    outcome = judge(ending(frame=(wire.VALUE, b'{"a": [1]}'), stderr=b"said"))

    assert outcome.ok
    assert {"a": [1]} == outcome.value()
    assert (b"said", "full", 1.0, 0.1, 1 << 20) == (
        outcome.stderr,
        outcome.level,
        outcome.duration_s,
        outcome.cpu_s,
        outcome.max_rss,
    )


def test_a_result_sent_before_it_was_killed_for_time_does_not_count():
    assert "timeout" == judge(ending(frame=(wire.VALUE, b"1"), stopped="timeout")).reason


REFUSED = Contact("example.org", 443, "refused", "not granted", "net:example.org:443", times=1)
LET = Contact("api.example.org", 443, "allowed", times=1)


@pytest.mark.parametrize(
    ("seen", "reason", "error", "hint"),
    [
        (
            ending(frame=raised("OSError", "Tunnel connection failed: 403")),
            "denied",
            "OSError: Tunnel connection failed: 403; tried to reach example.org:443: not granted",
            "--allow net:example.org:443",
        ),
        (
            ending(frame=raised("OSError", "403 Forbidden: example.org:443: not granted")),
            "denied",
            "OSError: 403 Forbidden: example.org:443: not granted",
            "--allow net:example.org:443",
        ),
        (
            ending(COMMAND, exited(22), stderr=b"curl: (56) CONNECT tunnel failed, response 403\n"),
            "denied",
            "exit code 22: curl: (56) CONNECT tunnel failed, response 403; tried to reach example.org:443: not granted",
            "--allow net:example.org:443",
        ),
        (ending(frame=raised("ValueError", "no")), "error", "ValueError: no", "--allow net:example.org:443"),
        (ending(frame=(wire.VALUE, b"1")), None, "", ""),
        (ending(stopped="timeout"), "timeout", "timeout 90 s exceeded", ""),
    ],
)
def test_what_the_proxy_refused_is_told_with_the_grant_that_was_missing(seen, reason, error, hint):
    outcome = judge(replace(seen, contacts=(LET, REFUSED)))

    assert (reason, error, hint) == (outcome.reason, outcome.error, outcome.hint)
    assert (Violation("tried to reach example.org:443: not granted", "net:example.org:443"),) == outcome.violations
    assert (LET, REFUSED) == outcome.contacts


def test_what_the_proxy_let_through_changes_nothing():
    seen = ending(frame=raised("OSError", "HTTP Error 403: Forbidden"))

    assert replace(judge(seen), contacts=(LET,)) == judge(replace(seen, contacts=(LET,)))


def test_a_host_that_was_looked_for_is_hinted():
    message = "<urlopen error [Errno -3] Temporary failure in name resolution>"
    seen = ending(frame=raised("URLError", message))

    assert "a host is reached with --allow net:HOST:PORT" == judge(seen).hint
    said = b"curl: (6) Could not resolve host: example.org\n"
    assert "--allow net:HOST:PORT" in judge(ending(COMMAND, exited(6), stderr=said)).hint


def test_a_missing_module_is_hinted_as_a_package():
    assert "packages: [numpy]" == judge(ending(frame=raised("ModuleNotFoundError", module="numpy"))).hint
    assert "" == judge(ending(frame=raised("ModuleNotFoundError", module="a b"))).hint
    assert "" == judge(ending(frame=raised("ModuleNotFoundError", module=["numpy"]))).hint


def test_a_path_that_could_be_granted_is_denied_with_the_option(tmp_path):
    (tmp_path / "a file").write_text("")
    job = replace(PYTHON, project=str(tmp_path))
    outcome = judge(ending(job, raised("FileNotFoundError", errno=errno.ENOENT, path="a file")))

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "--allow 'read:a file'" == outcome.hint
    assert (Violation("tried to read a file", "read:a file"),) == outcome.violations


def test_a_command_that_could_not_read_is_denied_with_the_option(tmp_path):
    (tmp_path / "file").write_text("")
    job = replace(COMMAND, argv=("cat", "file"), project=str(tmp_path))
    outcome = judge(ending(job, exited(1), stderr=b"cat: file: No such file or directory\n"))

    assert ("denied", "--allow read:file", 1) == (outcome.reason, outcome.hint, outcome.exit_code)


def test_a_program_outside_usr_is_denied_with_the_option(tmp_path):
    (tmp_path / "tool").write_text("")
    job = replace(COMMAND, argv=("./tool",), project=str(tmp_path))
    outcome = judge(ending(job, raised("SpawnError", errno=errno.ENOENT)))

    assert ("denied", "--allow read:tool", 127) == (outcome.reason, outcome.hint, outcome.exit_code)


def test_an_unknown_program_says_where_programs_are():
    outcome = judge(ending(COMMAND, raised("SpawnError", errno=errno.ENOENT)))

    assert "a program outside /usr needs --allow read:FOLDER and its full path" == outcome.hint


def test_an_error_is_cut():
    assert 2000 == len(judge(ending(frame=raised(message="x" * 5000))).error)


@pytest.mark.parametrize(("memory", "option"), [(300 * KiB, "600K"), (MiB // 2, "1M"), (1000, "2K")])
def test_a_doubled_size_is_spelled_in_whole_units(memory, option):
    job = replace(PYTHON, limits=Limits(memory=memory))

    assert f"--limit memory={option}" == judge(ending(job, stopped="memory")).hint


def test_every_limit_has_words():
    assert {
        "memory limit 100 MiB exceeded", "cpu limit 2.5 s exceeded", "pids limit 8 exceeded",
        "disk limit 1.5 MiB exceeded", "output limit 16 MiB exceeded", "result limit 16 MiB exceeded",
    } == {limit_text(PYTHON, what) for what in ("memory", "cpu", "pids", "disk", "output", "result")}  # fmt: skip


KINDS = st.sampled_from([wire.VALUE, wire.ERROR, wire.READY, wire.WORK_FOLDER, wire.REFUSED])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
DESCRIBED = st.fixed_dictionaries(
    {},
    optional={
        "type": SCALARS | st.sampled_from(["SpawnError", "OSError", "MemoryError", "ResultTooLarge"]),
        "message": SCALARS, "line": SCALARS, "errno": SCALARS | st.sampled_from(sorted(errno.errorcode)),
        "path": SCALARS | st.lists(SCALARS), "module": SCALARS,
    },
)  # fmt: skip
FRAMES = st.one_of(
    st.none(),
    st.tuples(KINDS, st.binary(max_size=50)),
    st.tuples(KINDS, DESCRIBED.map(json.dumps).map(str.encode)),
    st.integers(-(1 << 31), (1 << 31) - 1).map(lambda status: (wire.EXITED, wire.EXIT_STATUS.pack(status))),
)
STATUSES = st.integers(0, 255).map(lambda code: code << 8) | st.integers(1, 64) | st.integers(129, 192)


def survives(job, frame, status, stdout=b"", stderr=b"", stopped=None):
    outcome = judge(ending(job, frame, status=status, stdout=stdout, stderr=stderr, stopped=stopped, cpu_s=5.0))

    assert outcome.result == check_json(outcome.result)
    assert outcome.ok == (outcome.reason is None)
    assert len(outcome.error) <= 2000
    return outcome


@given(FRAMES, STATUSES, st.binary(), st.binary(), st.sampled_from(["text", "lines", "json"]), st.booleans())
def test_judges_whatever_a_child_sends(frame, status, stdout, stderr, output, python):
    exact = frame is None or frame[0] != wire.EXITED or 0 <= wire.EXIT_STATUS.unpack(frame[1])[0] < 1 << 16
    if exact:
        survives(PYTHON if python else replace(COMMAND, output=output), frame, status, stdout, stderr)


@pytest.mark.parametrize(
    "body",
    [b"", b"123", b"12345", *(wire.EXIT_STATUS.pack(n) for n in (0x7F, 0xFFFF, -1))],
)
def test_judges_a_forged_exit_status(body):
    survives(COMMAND, (wire.EXITED, body), 0)


def test_judges_a_forged_exit_of_a_python_operation_over_its_cpu_limit():
    survives(PYTHON, (wire.EXITED, b""), 0)
