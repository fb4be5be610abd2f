"""How a run becomes a process of its own: `start` here, `main` over there.

What it needs goes through a pipe, for it holds keys and the values of granted names, which neither a command line nor
an environment keeps to itself. Over another pipe comes back, once, that the run has begun or why it has not.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import sage_folder
from sage_sandbox.errors import ExitCode, SageError, UsageError
from sage_sandbox.escaping import escape_lines
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import SECRET_NAMES

REQUEST_MAX: Final = 64 << 20
ANSWER_MAX: Final = 1 << 20
START_S: Final = 120.0
"""How long a run may take to begin: it waits for locks, reads a template and starts workers, each within bounds."""
END_S: Final = 10.0
PATIENCE_S: Final = 2.0
"""How long systemd may take to answer."""

_ALLOWED: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TERM", "TMPDIR"})
_ALLOWED_PREFIXES: Final = ("LC_", "XDG_", "SAGE_", "SSL_CERT_")
# Not by the user's PATH: what is found in a project's folder must not start, or be given, a run.
_SYSTEM_PATH: Final = "/usr/bin:/bin:/run/current-system/sw/bin"
_LOGIND: Final = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_SYSTEMD: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")

_HOME: Final = str(Path(__file__).resolve().parents[1])
# The new process runs the code that this one runs. A fresh interpreter finds an installed package by itself; if it
# would find none, or another one, the folder ours was loaded from goes first. Nothing else of our path is passed on.
_BOOT: Final = """\
import sys
from importlib.util import find_spec
from os.path import realpath
home, handshake = sys.argv[1:]
found = find_spec("sage_sandbox")
if found is None or realpath(found.origin or "") != realpath(home + "/sage_sandbox/__init__.py"):
    sys.path.insert(0, home)
from sage_sandbox.detached import main
from sage_sandbox.frozen import frozen
sys.exit(main(int(handshake)))
"""

Which = Callable[[str], str | None]


@frozen
class Handle:
    """A run that has begun elsewhere: what it says of itself, and what its user should know (or nothing)."""

    document: dict[str, Any]
    notice: str = ""


class Refused(SageError):
    """The new process ended before its run began, with the exit code ``code`` and for the reason it gave."""

    def __init__(self, message: str, hint: str = "", code: int = ExitCode.FAILED) -> None:
        Exception.__init__(self, message, hint, code)
        self.message = message
        self.hint = hint
        self.code = code

    @property
    def exit_code(self) -> ExitCode:  # type: ignore[override] # of each instance, not of the class
        """What the new process ended with."""
        try:
            return ExitCode(self.code)
        except ValueError:
            return ExitCode.FAILED


# -- here ----------------------------------------------------------------------------------------------------------


def find_tool(name: str) -> str | None:
    """The path of one of the system's own programs."""
    return shutil.which(name, path=_SYSTEM_PATH)


def launch(request: Mapping[str, Any], *, environ: Mapping[str, str]) -> tuple[Handle, str]:
    """As `start`, its output appended to a log of the feature's in its project; the path of that, too."""
    name = f"{request['feature']}.out"
    with sage_folder(Path(request["project"]), "logs", make=True) as folder:
        path = f"{folder.path}/{name}"
        log = folder.open_file(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return start(request, log=log, environ=environ, log_path=path), path
        finally:
            os.close(log)


def start(
    request: Mapping[str, Any],
    *,
    log: int,
    environ: Mapping[str, str],
    log_path: str = "",
    which: Which = find_tool,
    timeout_s: float = START_S,
) -> Handle:
    """Have ``sage_sandbox.api.run_detached`` do what a request says, in a process that outlives this one.

    Returns once the run holds its lock and its first state is durable; else raises what kept it from that, and no
    process is left. Its output goes to the descriptor ``log``. No key is in the environment of the new process:
    ``request["environ"]`` holds those that the run needs.
    """
    data = json.dumps(request).encode()
    if len(data) > REQUEST_MAX:
        raise UsageError(f"what a run of its own is to do has {REQUEST_MAX >> 20} MiB at most")
    environment = _environment(environ, request)
    prefix, notice = _outliving_logout(environment, which)
    process, answering = _spawn(prefix, log, environment)
    try:
        answer = _converse(process, data, answering, time.monotonic() + timeout_s)
    except TimeoutError:
        _end(process, at_once=True)
        raise SageError("the run did not begin in time, and was ended", _see(log_path)) from None
    except BaseException:  # Ctrl-C ends this process only: the other one is in a session of its own
        _end(process, at_once=True)
        raise
    finally:
        os.close(answering)
    match answer:
        case {"ready": dict(document)}:
            _reap_later(process)
            return Handle(document, notice)
        case {"failed": {"message": str(message), "hint": str(hint), "exit_code": int(code)}}:
            _end(process)
            raise Refused(message, hint, code)
    _end(process)
    raise SageError(f"the run's process ended before the run began: {_spell_end(process.returncode)}", _see(log_path))


def _environment(environ: Mapping[str, str], request: Mapping[str, Any]) -> dict[str, str]:
    # A granted SAGE_… may be a secret as well. The others are needed here, too, whether granted or not.
    withheld = {*SECRET_NAMES, *(name for name in request.get("environ", ()) if name.startswith("SAGE_"))}
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)) and name not in withheld
    }
    return {**kept, "PYTHONSAFEPATH": "1"}


def _spawn(prefix: list[str], log: int, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start it; what it will answer on."""
    answering, handshake = os.pipe()
    try:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-c", _BOOT, _HOME, str(handshake)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(handshake,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(answering)
        raise SageError(f"the run's process cannot be started: {error.strerror}") from error
    finally:
        os.close(handshake)
    return process, answering


def _converse(process: subprocess.Popen[bytes], request: bytes, answering: int, until: float) -> dict[str, Any]:
    """Hand over the request, and hear what became of it; nothing if the process has gone without a word."""
    assert process.stdin is not None
    with process.stdin as stdin, suppress(BrokenPipeError):
        _send(stdin.fileno(), request, until)
    try:
        answer = json.loads(_receive(answering, until))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _send(fd: int, data: bytes, until: float) -> None:
    os.set_blocking(fd, False)
    left = memoryview(data)
    while left:
        _await(fd, select.POLLOUT, until)
        left = left[os.write(fd, left) :]


def _receive(fd: int, until: float) -> bytes:
    """A line, or what there was of it at the end."""
    data = b""
    while b"\n" not in data and len(data) <= ANSWER_MAX:
        _await(fd, select.POLLIN, until)
        if not (more := os.read(fd, 1 << 16)):
            break
        data += more
    return data


def _await(fd: int, event: int, until: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(until - time.monotonic(), 0) * 1000):
        raise TimeoutError


def _end(process: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """See to it that it has ended: by itself, by SIGTERM, which a run that has begun obeys in order, or by force."""
    for number in (*(() if at_once else (0,)), signal.SIGTERM):
        process.send_signal(number)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    """Wait for it aside: one that starts many runs, and lives on, must not collect zombies."""
    with suppress(RuntimeError):  # no thread is free: then it does
        threading.Thread(target=process.wait, name="sage-reaper", daemon=True).start()


def _see(log_path: str) -> str:
    return f"see {log_path}" if log_path else ""


def _spell_end(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    return f"exit code {code}"


# -- logind --------------------------------------------------------------------------------------------------------


def _outliving_logout(environment: Mapping[str, str], which: Which) -> tuple[list[str], str]:
    """What to put before a command so that logind does not end it with this session, and what to tell the user."""
    busctl, scope, loginctl = which("busctl"), which("systemd-run"), which("loginctl")
    if (
        busctl is None
        or _output(environment, busctl, "--system", "get-property", *_LOGIND, "KillUserProcesses") != "b true"
    ):
        return [], ""
    if scope is None or not _output(environment, busctl, "--user", "get-property", *_SYSTEMD, "Version"):
        return [], "this machine ends your processes at logout, this run too"
    lingering = ("show-user", str(os.geteuid()), "--property=Linger", "--value")
    lasts = loginctl is not None and _output(environment, loginctl, *lingering) == "yes"
    notice = (
        "" if lasts else "the run ends when you have logged out everywhere, unless you allow: loginctl enable-linger"
    )
    return [scope, "--user", "--scope", "--quiet", "--collect", "--"], notice


def _output(environment: Mapping[str, str], *argv: str) -> str:
    """What a program prints, in time and with success; else nothing."""
    try:
        done = subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


# -- over there ----------------------------------------------------------------------------------------------------


def main(handshake: int) -> int:
    """Carry out the request that stdin holds, as the process that `start` made; the exit code.

    This process has no terminal and nobody to ask: it reports on ``handshake``, later in its log and in the state.
    """
    from sage_sandbox.sandbox.inside.syscalls import set_dumpable

    os.set_inheritable(handshake, False)  # it would stay open in every process that is started from here
    set_dumpable(False)  # keys will be in its memory: nobody may look there (prctl(2))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = _Parent(handshake)
    try:
        request = _take_request()
        from sage_sandbox.handover import run_detached

        return run_detached(request, ready=parent.tell_ready)
    except SageError as error:
        _log(error.message, error.hint)
        parent.tell_failed(error.exit_code, error.message, error.hint)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last one who can say what it was
        traceback.print_exc()
        parent.tell_failed(ExitCode.FAILED, f"internal error: {type(error).__name__}: {error}", "")
        return ExitCode.FAILED


def _take_request() -> dict[str, Any]:
    """Read stdin to its end; it is /dev/null from then on."""
    data = bytearray()
    while len(data) <= REQUEST_MAX and (more := os.read(0, 1 << 16)):
        data += more
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if len(data) > REQUEST_MAX:
        raise UsageError(f"a request has {REQUEST_MAX >> 20} MiB at most")
    request = json.loads(data)
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object")
    return request


class _Parent:
    """Whoever started this process, and waits for one line: the first thing that is told, and nothing after it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell_ready(self, document: Mapping[str, Any]) -> None:
        """The run has begun."""
        self._tell({"ready": dict(document)})

    def tell_failed(self, code: int, message: str, hint: str) -> None:
        """It has not, and will not."""
        self._tell({"failed": {"exit_code": int(code), "message": message, "hint": hint}})

    def _tell(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:  # it has gone; the run goes on
                pipe.write(data)


def _log(message: str, hint: str) -> None:
    text = f"✗ {message}\nhint: {hint}" if hint else f"✗ {message}"
    print(escape_lines(text), file=sys.stderr, flush=True)  # noqa: T201 - this is its log
