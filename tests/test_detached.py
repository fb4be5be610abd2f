"""A run as a process of its own: what it is given, what it is not, and that it begins or leaves nothing."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from commands import PACKAGE_FOLDER

from sage_sandbox import detached
from sage_sandbox.cli.main import report
from sage_sandbox.detached import Refused, find_tool, start
from sage_sandbox.errors import ExitCode, SageError, UsageError
from sage_sandbox.policy import SECRET_NAMES

# The real `main`; what it calls in place of a run is in the request.
ENTRY = """\
import os, signal, sys
from types import ModuleType
sys.path.insert(0, sys.argv[1])
from sage_sandbox import detached
from sage_sandbox.errors import *
handover = sys.modules["sage_sandbox.handover"] = ModuleType("sage_sandbox.handover")

def run_detached(request, ready):
    names = {**globals(), "request": request, "ready": ready}
    exec(request["code"], names)
    return names.get("code", 0)

handover.run_detached = run_detached
"""
MAIN = "sys.exit(detached.main(int(sys.argv[2])))"

BOOT = detached._BOOT

FACTS = """
ready({
    "pid": os.getpid(),
    "session": os.getsid(0),
    "stdin": os.readlink("/proc/self/fd/0"),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "inheritable": [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)],
    "deaf": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    "environ": dict(os.environ),
    "argv": sys.orig_argv,
    "request": request,
    "safe": sys.flags.safe_path,
    "private": __import__("ctypes").CDLL(None).prctl(3) == 0,
})
"""


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """The new process does what the request's code says; `entry("…")` has it do something else altogether."""

    def instead(code):
        monkeypatch.setattr(detached, "_BOOT", ENTRY + code)

    # Coverage measures processes that are told to by their environment.
    monkeypatch.setattr(detached, "_ALLOWED_PREFIXES", (*detached._ALLOWED_PREFIXES, "COVERAGE_"))
    instead(MAIN)
    return instead


@pytest.fixture
def log(tmp_path):
    """A file for the output, as a path; its descriptor is `log.fd`."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield Log(tmp_path / "log", fd)
    os.close(fd)


class Log:
    def __init__(self, path, fd):
        self.path = path
        self.fd = fd

    @property
    def text(self):
        return self.path.read_text()


@pytest.fixture
def begin(log):
    """Start a process; those that run on are ended."""
    pids = []

    def call(code="ready({})", *, environ=None, which=lambda _: None, timeout_s=30.0, **request):
        given = {"PATH": os.environ["PATH"], **covered(), **(environ or {})}
        full = {"code": code, **request}
        handle = start(full, log=log.fd, environ=given, log_path=str(log.path), which=which, timeout_s=timeout_s)
        pids.append(handle.document.get("pid", 0))
        return handle

    yield call
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def covered():
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def children():
    """The processes this one has, zombies too."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def descriptors():
    """What this process has open; the listing itself is gone when it is looked at."""
    return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


class TestTheNewProcess:
    def test_stands_alone(self, begin):
        facts = begin(FACTS).document

        assert facts["pid"] == facts["session"]
        assert facts["pid"] != os.getsid(0)
        assert "/dev/null" == facts["stdin"]
        assert (True, True, True) == (facts["deaf"], facts["safe"], facts["private"])

    def test_inherits_its_streams_and_the_way_to_answer_only(self, begin):
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        try:
            facts = begin(FACTS).document
        finally:
            os.close(reading)
            os.close(writing)

        assert [] == facts["inheritable"]
        assert [0, 1, 2] == facts["descriptors"][:3]
        assert len(facts["descriptors"]) <= 5  # the way to answer, and the listing itself

    def test_writes_to_the_log(self, begin, log):
        begin("print('out'); print('err', file=sys.stderr, flush=True); sys.stdout.flush(); ready({})")

        assert "err\nout\n" == log.text

    def test_is_given_a_request_of_any_size(self, begin):
        facts = begin(FACTS.replace('"request": request', '"request": len(request["x"])'), x="x" * 3_000_000).document

        assert 3_000_000 == facts["request"]

    def test_is_shown_no_key_in_its_environment(self, begin):
        shown = begin(FACTS, environ=dict.fromkeys(SECRET_NAMES, "hush-hush")).document["environ"]

        assert not shown.keys() & set(SECRET_NAMES)

    def test_is_not_shown_a_granted_name_in_its_environment(self, log):
        given = {"SAGE_MY_TOKEN": "hush-hush", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        handle = start({"code": FACTS, "environ": given}, log=log.fd, environ=given, which=lambda _: None)
        shown = handle.document["environ"]

        assert given == handle.document["request"]["environ"]
        assert ("C.UTF-8", given["PATH"]) == (shown["LC_ALL"], shown["PATH"])
        assert "hush-hush" not in json.dumps([shown, handle.document["argv"]])

    def test_has_an_environment_of_what_is_allowed(self, begin):
        allowed = {
            **dict.fromkeys(
                ("HOME", "USER", "LOGNAME", "TZ", "TERM", "TMPDIR", "XDG_STATE_HOME", "SSL_CERT_FILE"), "/x"
            ),
            **dict.fromkeys(("LANG", "LC_TIME", "SAGE_CACHE_TTL"), "1"),
        }
        others = dict.fromkeys(
            ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "BASH_ENV", "SSH_AUTH_SOCK", "AWS_KEY"), "/no"
        )
        shown = begin(FACTS, environ={**allowed, **others}).document["environ"]

        assert allowed.items() <= shown.items()
        assert "1" == shown["PYTHONSAFEPATH"]
        assert not shown.keys() & others.keys()

    def test_can_be_left_alone_and_leaves_no_zombie(self, begin):
        before = children()
        begin("ready({})")
        while children() - before:
            os.sched_yield()

    def test_is_left_alone_even_if_no_thread_can_wait_for_it(self, begin, monkeypatch):
        def refuse(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.warns(ResourceWarning, match="still running"):
            handle = begin("ready({'pid': os.getpid()}); signal.pause()")
        os.kill(handle.document["pid"], signal.SIGKILL)
        os.waitpid(handle.document["pid"], 0)

    def test_runs_on_when_this_one_is_done_with_it(self, begin):
        handle = begin("ready({'pid': os.getpid(), 'a': 'ä'}); signal.pause()")

        assert "ä" == handle.document["a"]
        assert handle.document["pid"] in children()

    def test_leaves_nothing_open_here(self, begin):
        before = descriptors()
        begin()
        with pytest.raises(Refused):
            begin("raise SageError('no')")

        assert before == descriptors()


class TestARunThatDoesNotBegin:
    @pytest.mark.parametrize(
        ("code", "exit_code", "message", "hint"),
        [
            ("raise Locked('f is locked', 'wait', 'me')", 11, "f is locked", "wait"),
            ("raise WrongKey('another key')", 12, "another key", ""),
            ("raise UsageError('changed \\x1b[2J', 'again')", 2, "changed \x1b[2J", "again"),
            ("1 / 0", 1, "internal error: ZeroDivisionError: division by zero", ""),
            ("ready(object())", 1, "internal error: TypeError: 'object' object is not iterable", ""),
            ("ready({'x': {1}})", 1, "internal error: TypeError: Object of type set is not JSON serializable", ""),
        ],
    )
    def test_ends_this_command_as_it_would_have_there(self, begin, capsys, code, exit_code, message, hint):
        before = children()
        with pytest.raises(Refused) as refused:
            begin(code)

        assert (message, hint, exit_code) == (refused.value.message, refused.value.hint, refused.value.code)
        assert exit_code == refused.value.exit_code == report(refused.value)
        assert "\x1b" not in capsys.readouterr().err
        assert before == children()

    def test_is_in_the_log_too(self, begin, log):
        with pytest.raises(Refused):
            begin("raise Locked('f is \\x1b locked', 'wait')")
        with pytest.raises(Refused):
            begin("raise NoSuchRun('no f')")

        assert "✗ f is \\x1b locked\nhint: wait\n✗ no f\n" == log.text

    def test_leaves_a_trace_of_what_broke(self, begin, log):
        with pytest.raises(Refused):
            begin("1 / 0")

        assert "Traceback" in log.text

    @pytest.mark.parametrize(
        ("code", "how"),
        [("os._exit(7)", "exit code 7"), ("os.kill(os.getpid(), 9)", "Killed"), ("sys.exit(0)", "exit code 0")],
    )
    def test_because_its_process_died_points_to_the_log(self, begin, log, code, how):
        with pytest.raises(SageError, match=f"ended before the run began: {how}") as died:
            begin(code)

        assert (1, f"see {log.path}") == (died.value.exit_code, died.value.hint)

    def test_without_a_known_log_points_nowhere(self, log):
        with pytest.raises(SageError) as died:
            start({"code": "os._exit(7)"}, log=log.fd, environ={}, which=lambda _: None)

        assert "" == died.value.hint

    @pytest.mark.parametrize(
        "answer",
        [
            "b''",
            "b'\\n'",
            "b'ready'",
            "b'[]\\n'",
            "b'\\xff\\n'",
            """b'{"ready"'""",
            """b'{"ready": 1}\\n'""",
            """b'{"failed": {"message": 1, "hint": "", "exit_code": 1}}\\n'""",
            "b'x' * (detached.ANSWER_MAX + 9)",
        ],
    )
    def test_because_its_answer_is_none(self, begin, entry, answer):
        entry(f"os.read(0, 1 << 16); os.fdopen(int(sys.argv[2]), 'wb').write({answer})")

        with pytest.raises(SageError, match="ended before the run began"):
            begin()

    @pytest.mark.parametrize("code", [77, -1])
    def test_with_an_exit_code_that_is_none_has_failed(self, code):
        assert ExitCode.FAILED == Refused("m", "h", code).exit_code

    def test_is_refused_in_an_error_that_can_cross_processes(self):
        back = pickle.loads(pickle.dumps(Refused("m", "h", 11)))

        assert ("m", "h", 11, 11) == (back.message, back.hint, back.code, back.exit_code)

    @pytest.mark.parametrize("size", [10, 3_000_000])
    def test_in_time_is_ended(self, begin, entry, log, size):
        entry("signal.pause()")
        before = children()

        with pytest.raises(SageError, match="did not begin in time, and was ended") as late:
            begin(timeout_s=0.2, x="x" * size)
        assert (f"see {log.path}", before) == (late.value.hint, children())

    @pytest.mark.parametrize(("error", "raised"), [(TimeoutError, SageError), (KeyboardInterrupt, KeyboardInterrupt)])
    @pytest.mark.parametrize("stubborn", [False, True])
    def test_is_ended_by_force_if_need_be(self, begin, entry, monkeypatch, error, raised, stubborn):
        def interrupted(process, _, answering, __):
            process.stdin.close()
            assert b"!" == os.read(answering, 1)
            raise error

        monkeypatch.setattr(detached, "END_S", 0.2 if stubborn else 20)
        monkeypatch.setattr(detached, "_converse", interrupted)
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
        entry(f"{ignore}os.write(int(sys.argv[2]), b'!'); signal.pause()")
        before = children()

        with pytest.raises(raised):
            begin()
        assert before == children()

    def test_but_lingers_is_ended(self, begin, entry, monkeypatch):
        monkeypatch.setattr(detached, "END_S", 0.2)
        entry("detached._Parent(int(sys.argv[2])).tell_failed(11, 'locked', ''); signal.pause()")
        before = children()

        with pytest.raises(Refused, match="locked"):
            begin()
        assert before == children()

    def test_is_not_even_started_if_its_request_is_too_large(self, begin, monkeypatch):
        monkeypatch.setattr(detached, "REQUEST_MAX", 1 << 20)

        with pytest.raises(UsageError, match="1 MiB at most"):
            begin(x="x" * (1 << 20))

    def test_takes_no_larger_request_either(self, begin, entry):
        entry("detached.REQUEST_MAX = 1 << 20; " + MAIN)

        with pytest.raises(Refused, match="1 MiB at most") as refused:
            begin(x="x" * (1 << 20))
        assert 2 == refused.value.code

    def test_because_no_process_can_be_started_says_so(self, begin, monkeypatch):
        before = descriptors()
        monkeypatch.setattr(sys, "executable", "/nowhere/python")

        with pytest.raises(SageError, match="cannot be started: No such file"):
            begin()
        assert before == descriptors()


class TestTheWayIn:
    """The boot line and `main` by themselves, in a process that is spoken to directly."""

    def boot(self, code, request, *flags, cwd=None, env=None, deaf=False):
        reading, writing = os.pipe()
        argv = [sys.executable, *flags, "-P", "-c", code, PACKAGE_FOLDER, str(writing)]
        if deaf:
            os.close(reading)
        given = {**os.environ, **(env or {})}
        done = subprocess.run(
            argv, input=request, cwd=cwd, env=given, pass_fds=(writing,), capture_output=True, check=False
        )
        os.close(writing)
        if deaf:
            return done, b""
        with os.fdopen(reading, "rb") as pipe:
            return done, pipe.read()

    def hostile(self, folder):
        for name in ("sage_sandbox", "json", "sitecustomize", "importlib", "signal"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(f"print('{name} of the project')")
        return folder

    @pytest.mark.parametrize("flags", [[], ["-S"]])
    def test_leads_to_this_very_package_whether_it_is_installed_or_not(self, tmp_path, flags):
        done, answer = self.boot(BOOT, b"[]", *flags, cwd=self.hostile(tmp_path / "project"))

        assert (2, b"") == (done.returncode, done.stdout)
        expected = {"failed": {"exit_code": 2, "message": "a request is a JSON object", "hint": ""}}
        assert expected == json.loads(answer)

    def test_leads_past_another_package_of_that_name(self, tmp_path):
        (tmp_path / "sage_sandbox").mkdir()
        (tmp_path / "sage_sandbox/__init__.py").write_text("raise SystemExit(99)")
        done, answer = self.boot(BOOT, b"[]", env={"PYTHONPATH": str(tmp_path)})

        assert (2, b"a request is a JSON object" in answer) == (done.returncode, True)

    def test_refuses_what_is_no_json(self):
        done, answer = self.boot(ENTRY + MAIN, b"{")

        assert (1, "internal error: JSONDecodeError") == (done.returncode, json.loads(answer)["failed"]["message"][:31])

    def test_ends_with_the_exit_code_of_the_run(self):
        done, answer = self.boot(ENTRY + MAIN, json.dumps({"code": "ready({'a': 1}); code = 3"}).encode())

        assert (3, {"ready": {"a": 1}}) == (done.returncode, json.loads(answer))

    def test_says_one_thing_only(self):
        code = "ready({'a': 1}); ready({'b': 1}); raise StateUnwritable('full', 'make room')"
        done, answer = self.boot(ENTRY + MAIN, json.dumps({"code": code}).encode())

        assert (1, {"ready": {"a": 1}}) == (done.returncode, json.loads(answer))
        assert "✗ full\nhint: make room\n" == done.stderr.decode()

    def test_goes_on_if_nobody_hears_it(self):
        done, _ = self.boot(ENTRY + MAIN, json.dumps({"code": "ready({}); print('on'); code = 3"}).encode(), deaf=True)

        assert (3, b"on\n", b"") == (done.returncode, done.stdout, done.stderr)


BUSCTL = """\
#!/bin/sh
case "$*" in
"--system get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager KillUserProcesses")
    {logind} ;;
"--user get-property org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager Version")
    {manager} ;;
*) exit 99 ;;
esac
"""
SCOPE = """\
#!/bin/sh
[ "$1 $2 $3 $4 $5" = "--user --scope --quiet --collect --" ] || exit 99
shift 5
SAGE_SCOPED=yes exec "$@"
"""
LOGINCTL = """\
#!/bin/sh
[ "$*" = "show-user {uid} --property=Linger --value" ] && echo {lingers}
"""


class TestLogind:
    """Where it ends a user's processes at logout, a run is put into a scope of the user's manager."""

    @pytest.fixture
    def tools(self, tmp_path):
        def make(logind="echo 'b true'", manager="echo 's \"255\"'", lingers="yes", without=()):
            texts = {
                "busctl": BUSCTL.format(logind=logind, manager=manager),
                "systemd-run": SCOPE,
                "loginctl": LOGINCTL.format(uid=os.geteuid(), lingers=lingers),
            }
            for name in texts.keys() - set(without):
                (tmp_path / name).write_text(texts[name])
                (tmp_path / name).chmod(0o755)
            return lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None

        return make

    def test_a_run_is_put_out_of_its_reach(self, begin, tools):
        handle = begin(FACTS, which=tools())

        assert ("yes", "") == (handle.document["environ"]["SAGE_SCOPED"], handle.notice)

    @pytest.mark.parametrize(
        "given",
        [
            {"logind": "echo 'b false'"},
            {"logind": "exit 1"},
            {"logind": "echo 'b true'; exit 1"},
            {"without": ["busctl"]},
            {"without": ["busctl", "systemd-run", "loginctl"]},
        ],
    )
    def test_a_run_is_started_as_it_is_where_it_ends_nothing(self, begin, tools, given):
        handle = begin(FACTS, which=tools(**given))

        assert "SAGE_SCOPED" not in handle.document["environ"]
        assert "" == handle.notice

    @pytest.mark.parametrize("given", [{"manager": "exit 1"}, {"without": ["systemd-run"]}])
    def test_a_run_that_cannot_be_is_said_to_end_at_logout(self, begin, tools, given):
        handle = begin(FACTS, which=tools(**given))

        assert "SAGE_SCOPED" not in handle.document["environ"]
        assert "this machine ends your processes at logout, this run too" == handle.notice

    @pytest.mark.parametrize("given", [{"lingers": "no"}, {"without": ["loginctl"]}])
    def test_a_run_that_ends_with_the_users_manager_says_what_to_do(self, begin, tools, given):
        handle = begin(FACTS, which=tools(**given))

        assert "yes" == handle.document["environ"]["SAGE_SCOPED"]
        assert handle.notice.endswith("unless you allow: loginctl enable-linger")

    def test_that_does_not_answer_is_not_waited_for(self, begin, tools, monkeypatch):
        monkeypatch.setattr(detached, "PATIENCE_S", 0.1)
        handle = begin(FACTS, which=tools(logind="exec sleep 60"))

        assert ("SAGE_SCOPED" in handle.document["environ"], handle.notice) == (False, "")

    def test_a_tool_that_cannot_be_started_is_none(self, begin, tools, tmp_path):
        which = tools()
        (tmp_path / "busctl").write_text("")
        (tmp_path / "busctl").chmod(0o644)

        assert "" == begin(FACTS, which=which).notice

    def test_tools_are_the_systems_own(self, tmp_path, monkeypatch):
        for name in ("busctl", "tool-of-the-project"):
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)

        assert find_tool("tool-of-the-project") is None
        assert find_tool("busctl") in (None, "/usr/bin/busctl", "/bin/busctl", "/run/current-system/sw/bin/busctl")
        assert find_tool("sh") is not None
