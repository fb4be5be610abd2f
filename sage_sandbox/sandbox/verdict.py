"""From what was seen of an operation to its outcome: pure, and every limit has its own words."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Capabilities, Contact, Outcome, Reason, Violation
from sage_sandbox.policy import CALLS_MAX, RESULT_MAX, STREAM_MAX, KiB, Limits, MiB, format_duration, format_size
from sage_sandbox.sandbox import explain, outside
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.untrusted import UntrustedData, check_json

Stopped = Literal["timeout", "cancelled", "memory", "cpu", "output", "protocol", "calls", "garbled"]
"""Why the supervisor killed the operation."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OUT_OF_MEMORY: Final = ("Cannot allocate memory", "MemoryError", "bad_alloc", "out of memory", "Out of memory")
_OUT_OF_PIDS: Final = ("Resource temporarily unavailable", "can't start new thread", "Cannot fork")
_MESSAGE_MAX: Final = 2_000
_SAID_MAX: Final = 1_000
_NAMED_MAX: Final = 3
_REFUSED_BY_PROXY: Final = ("403", "forbidden", "proxy", "tunnel")


@frozen
class Ending:
    """Everything seen of one operation once it is dead: times in seconds, sizes in bytes.

    ``frame`` is the last thing it sent, ``status`` the wait status of its first process, ``work_full`` whether its work
    folder had no room left, ``oom_kills`` and ``pids_refused`` what its cgroup counted. ``calls`` is how many tool
    calls were carried out, ``denied`` what the operation was told of others, and the violation that each is.
    """

    job: Job
    stopped: Stopped | None
    frame: tuple[bytes, bytes] | None
    status: int
    duration_s: float
    cpu_s: float
    max_rss: int
    stdout: bytes
    stdout_kept: bytes
    stderr_kept: bytes
    capabilities: Capabilities
    oom_kills: int = 0
    pids_refused: int = 0
    work_full: bool = False
    contacts: tuple[Contact, ...] = ()
    calls: int = 0
    denied: tuple[tuple[str, Violation], ...] = ()


@frozen
class _Judgement:
    reason: Reason | None
    error: str = ""
    result: bytes = b"null"
    exit_code: int | None = None
    violation: Violation | None = None
    hint: str = ""


def judge(ending: Ending) -> Outcome:
    """The outcome of an operation that has ended."""
    found = _stopped(ending) or _limited(ending) or _reported(ending)
    refused = outside.violations(ending.contacts)
    if found.reason == "error" and refused:
        found = _kept_in(ending, found, refused)
    return Outcome(
        status="rejected" if found.reason else "fulfilled",
        reason=found.reason,
        error=found.error[:_MESSAGE_MAX],
        hint=found.hint or explain.allow_option(found.violation),
        result=found.result,
        stdout=ending.stdout_kept,
        stderr=ending.stderr_kept,
        exit_code=found.exit_code,
        duration_s=ending.duration_s,
        cpu_s=ending.cpu_s,
        max_rss=ending.max_rss,
        level="full",
        capabilities=ending.capabilities,
        violations=_violations(ending, found.violation) + refused,
        contacts=ending.contacts,
        calls=ending.calls,
    )


def _violations(ending: Ending, found: Violation | None) -> tuple[Violation, ...]:
    """What it failed by, and every tool it was not granted, each once."""
    denied = (violation for _text, violation in ending.denied)
    return tuple(dict.fromkeys((*((found,) if found else ()), *denied)))


def _denied_call(ending: Ending, text: str) -> Violation | None:
    """The refused tool call behind what an operation says it failed by."""
    return next((violation for told, violation in ending.denied if told in text), None)


def _kept_in(ending: Ending, found: _Judgement, refused: tuple[Violation, ...]) -> _Judgement:
    """What failed after the proxy had refused something: denied, if what it said reads as if that were why."""
    said = (found.error + ending.stderr_kept.decode("utf-8", "replace")).casefold()
    denied = any(word in said for word in _REFUSED_BY_PROXY)
    options = [explain.allow_option(violation) for violation in refused]
    hint = found.hint or " ".join(dict.fromkeys(option for option in options if option))
    if not denied:
        return replace(found, hint=hint)
    untold = [c for c in ending.contacts if c.verdict == "refused" and f"{c.host}:{c.port}: {c.why}" not in found.error]
    told = "; ".join(violation.what for violation in outside.violations(untold)[:_NAMED_MAX])
    error = f"{found.error[:_SAID_MAX]}; {told}" if told else found.error
    return replace(found, reason="denied", error=error, hint=hint)


def limit_text(job: Job, what: str) -> str:
    """``memory limit 256 MiB exceeded`` and its siblings."""
    limits = job.limits
    amount = {
        "memory": format_size(limits.memory),
        "cpu": format_duration(limits.cpu_s),
        "pids": str(limits.pids),
        "disk": format_size(limits.disk),
        "output": format_size(STREAM_MAX),
        "result": format_size(RESULT_MAX),
        "calls": f"{CALLS_MAX:,}",
    }[what]
    return f"{what} limit {amount} exceeded"


def _limit(ending: Ending, what: str) -> _Judgement:
    return _Judgement("limit", limit_text(ending.job, what), hint=_double(ending.job.limits, what))


def _double(limits: Limits, what: str) -> str:
    """The option that gives it twice as much."""
    amounts = {
        "memory": _spell(2 * limits.memory),
        "cpu": f"{2 * limits.cpu_s:g}s",
        "pids": f"{2 * limits.pids}",
        "disk": _spell(2 * limits.disk),
    }
    return f"--limit {what}={amounts[what]}" if what in amounts else ""


def _spell(size: int) -> str:
    return f"{size // MiB}M" if size % MiB == 0 else f"{-(-size // KiB)}K"


def _stopped(ending: Ending) -> _Judgement | None:
    match ending.stopped:
        case None:
            return None
        case "timeout":
            return _Judgement("timeout", f"timeout {format_duration(ending.job.limits.timeout_s)} exceeded")
        case "cancelled":
            return _Judgement("cancelled", "cancelled")
        case "protocol":
            return _Judgement("error", "the operation wrote to its result channel what is no result")
        case "garbled":
            return _Judgement("error", "the operation wrote to its tool channel what is no call")
        case what:
            return _limit(ending, what)


def _limited(ending: Ending) -> _Judgement | None:
    """Limits that the kernel enforced, told apart by what it left behind."""
    if ending.oom_kills:
        return _limit(ending, "memory")
    if ending.cpu_s >= ending.job.limits.cpu_s and _was_killed(ending):
        return _limit(ending, "cpu")
    return None


def _was_killed(ending: Ending) -> bool:
    status = ending.status
    if _says_exited(ending):
        assert ending.frame is not None
        (status,) = wire.EXIT_STATUS.unpack(ending.frame[1])
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)


def _says_exited(ending: Ending) -> bool:
    """Whether the reaper of a command reported its end; from a Python operation that is no word of the protocol."""
    frame = ending.frame
    return (
        ending.job.type == "command"
        and frame is not None
        and frame[0] == wire.EXITED
        and len(frame[1]) == wire.EXIT_STATUS.size
        and _ended(*wire.EXIT_STATUS.unpack(frame[1]))
    )


def _ended(status: int) -> bool:
    return os.WIFEXITED(status) or os.WIFSIGNALED(status)


def _reported(ending: Ending) -> _Judgement:
    """What the operation itself had to say, believed no further than that."""
    if ending.frame is None:
        return _vanished(ending)
    kind, body = ending.frame
    try:
        if kind == wire.VALUE and ending.job.type == "python":
            return _Judgement(None, result=check_json(body))
        if kind == wire.ERROR:
            return _raised(ending, json.loads(check_json(body)))
        if _says_exited(ending):
            return _exited(ending, *wire.EXIT_STATUS.unpack(body))
    except UntrustedData as error:
        return _Judgement("error", str(error))
    return _Judgement("error", "the operation wrote to its result channel what is no result")


def _vanished(ending: Ending) -> _Judgement:
    if os.WIFSIGNALED(ending.status):
        if os.WTERMSIG(ending.status) == signal.SIGXFSZ:
            return _limit(ending, "disk")
        return _failed(ending, f"killed by {_signal_name(os.WTERMSIG(ending.status))}")
    return _failed(ending, f"ended without a result (exit status {os.waitstatus_to_exitcode(ending.status)})")


def _raised(ending: Ending, error: Any) -> _Judgement:
    if not isinstance(error, dict):
        return _Judgement("error", "the operation wrote to its result channel what is no result")
    kind, message, line = str(error.get("type", "")), str(error.get("message", "")), error.get("line")
    if limit := _limit_behind(ending, kind, error):
        return _limit(ending, limit)
    if kind == "SpawnError" and ending.job.type == "command":
        return _not_spawned(ending, error)
    where = f" ({ending.job.file}, line {line})" if isinstance(line, int) else ""
    text = f"{kind}: {message}{where}" if message else f"{kind}{where}"
    violation = _denied_call(ending, message) or explain.explain_error(ending.job, error)
    hint = _package_hint(error) or explain.outside_hint(ending.job, text)
    return _Judgement("denied" if violation else "error", text, violation=violation, hint=hint)


def _limit_behind(ending: Ending, kind: str, error: Mapping[str, Any]) -> str | None:
    """The limit that an exception of the operation's came from, if one did."""
    code = error.get("errno") if isinstance(error.get("errno"), int) else None
    if kind == "ResultTooLarge":
        return "result"
    if kind == "MemoryError" or code == errno.ENOMEM:
        return "memory"
    if code in _NO_ROOM or ending.work_full:
        return "disk"
    if ending.pids_refused or code == errno.EAGAIN or "can't start new thread" in str(error.get("message", "")):
        return "pids"
    return None


def _package_hint(error: Mapping[str, Any]) -> str:
    module = error.get("module")
    return f"packages: [{module.split('.')[0]}]" if isinstance(module, str) and module.isidentifier() else ""


def _not_spawned(ending: Ending, error: Mapping[str, Any]) -> _Judgement:
    program = ending.job.argv[0]
    code = error.get("errno")
    violation = explain.explain_error(ending.job, {"errno": code, "path": program}) if "/" in program else None
    text = f"{program}: {'command not found' if code == errno.ENOENT else error.get('message', '')}"
    exit_code = 127 if code == errno.ENOENT else 126
    hint = "" if violation else "a program outside /usr needs --allow read:FOLDER and its full path"
    return _Judgement("denied" if violation else "error", text, exit_code=exit_code, violation=violation, hint=hint)


def _exited(ending: Ending, status: int) -> _Judgement:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXFSZ:
            return _limit(ending, "disk")
        return _failed(ending, f"killed by {_signal_name(number)}", 128 + number)
    code = os.waitstatus_to_exitcode(status)
    if code in ending.job.ok_codes:
        return _command_result(ending, code)
    return _failed(ending, f"exit code {code}", code)


def _failed(ending: Ending, text: str, exit_code: int | None = None) -> _Judgement:
    """A command, or a Python operation without a last word: the reason may stand in what it wrote to stderr."""
    stderr = ending.stderr_kept.decode("utf-8", "replace")
    if ending.pids_refused or any(words in stderr for words in _OUT_OF_PIDS):
        return _limit(ending, "pids")
    if ending.work_full:
        return _limit(ending, "disk")
    if ending.capabilities.memory == "sampled" and any(words in stderr for words in _OUT_OF_MEMORY):
        return _limit(ending, "memory")
    violation = _denied_call(ending, stderr) or explain.explain_text(ending.job, stderr)
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    error = f"{text}: {last}" if last else text
    hint = "" if violation else explain.outside_hint(ending.job, stderr)
    return _Judgement("denied" if violation else "error", error, exit_code=exit_code, violation=violation, hint=hint)


def _command_result(ending: Ending, exit_code: int) -> _Judgement:
    text = ending.stdout.decode("utf-8", "replace")
    if ending.job.output == "json":
        return _Judgement(None, result=check_json(ending.stdout.strip() or b"null"), exit_code=exit_code)
    value = text.removesuffix("\n").split("\n") if ending.job.output == "lines" else text
    if value == [""]:
        value = []
    result = json.dumps(value, ensure_ascii=False).encode()
    if len(result) > RESULT_MAX:
        return _limit(ending, "result")
    return _Judgement(None, result=check_json(result), exit_code=exit_code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
