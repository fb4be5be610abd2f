"""From a refusal the kernel gave an operation to the grant that was missing.

Inside, what is not granted does not exist (ENOENT), or Landlock, a read-only mount or an empty network says no; the
kernel never says which rule it was. What an operation reports here is its own word: it only ever becomes a suggestion.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from sage_sandbox.outcome import Violation
from sage_sandbox.policy import Policy, is_hidden
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.steps import PROXY_PORT

_ABSENT = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR})
_UNWRITABLE = frozenset({errno.EROFS})
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.EACCES})
_BETWEEN_TOKENS = re.compile(r"[\s'\"`:()<>,;]+")
_INSIDE = ("/sandbox", "/proc", "/dev", "/packages")
_REFUSALS = (
    "No such file",
    "not found",
    "Permission denied",
    "Read-only file system",
    "cannot access",
    "Operation not permitted",
)
_UNRESOLVED = ("name resolution", "Name or service not known", "Could not resolve host", "getaddrinfo EAI_AGAIN")
_LINES_MAX = 50
_LINE_MAX = 8_192
_TOKENS_MAX = 200


def explain_error(job: Job, error: Mapping[str, Any]) -> Violation | None:
    """The violation behind an exception that a Python operation reported, or None where no grant would have helped."""
    code, path = error.get("errno"), error.get("path")
    if not isinstance(code, int):
        return None
    if isinstance(path, str) and path and "\0" not in path:
        return _explain_path(job, path, writing=code in _UNWRITABLE) if code in _ABSENT | _UNWRITABLE else None
    if code in _UNREACHABLE and job.policy.net:
        return Violation(f"tried to reach a network past the proxy at 127.0.0.1:{PROXY_PORT}")
    if code in _UNREACHABLE and not job.policy.loopback:
        return Violation("tried to reach a network", "loopback")
    return None


def explain_text(job: Job, text: str) -> Violation | None:
    """The violation behind what a command wrote to stderr, found through the paths it and its arguments name."""
    lines = [line for line in text.splitlines() if any(word in line for word in _REFUSALS)]
    tokens = [token for line in lines[:_LINES_MAX] for token in _BETWEEN_TOKENS.split(line[:_LINE_MAX]) if token]
    tokens = [token for token in tokens if "/" in token or "." in token.strip(".")]
    if lines:
        tokens += [
            argument for argument in job.argv if "/" in argument or os.path.lexists(os.path.join(job.project, argument))
        ]
    writing = any("Read-only" in line for line in lines)
    for token in tokens[:_TOKENS_MAX]:
        if found := _explain_path(job, token, writing=writing):
            return found
    return None


def outside_hint(job: Job, text: str) -> str:
    """What helps an operation that looked for a host by itself, which nothing in a sandbox can; or nothing."""
    if "transport 'ssh' not allowed" in text or "transport 'git' not allowed" in text:
        return "only http and https go through the proxy: use the repository's https:// address"
    if not any(words in text for words in _UNRESOLVED):
        return ""
    if job.policy.net:
        return f"hosts are reached through the proxy that http_proxy names, at 127.0.0.1:{PROXY_PORT}"
    return "a host is reached with --allow net:HOST:PORT"


def _explain_path(job: Job, path: str, *, writing: bool) -> Violation | None:
    absolute = os.path.normpath(os.path.join(job.project, path))
    if any(_beneath(absolute, folder) for folder in _INSIDE):
        return None
    target = absolute if os.path.lexists(absolute) else os.path.dirname(absolute)
    if writing:
        covered = _covered(absolute, (*job.policy.write, *job.policy.write_through))
        return None if covered or not os.path.lexists(target) else _violation(job, "write", target)
    if not os.path.lexists(absolute) or _visible(job.policy, absolute):
        return None
    return _violation(job, "read", absolute)


def _visible(policy: Policy, path: str) -> bool:
    """Whether the operation could see it: beneath a grant, and no hidden name on the way down from there."""
    return any(
        _beneath(path, folder) and not any(map(is_hidden, path[len(folder) :].split("/")))
        for folder in (*policy.read, *policy.write, *policy.write_through, "/usr")
    )


def _covered(path: str, folders: Iterable[str]) -> bool:
    return any(_beneath(path, folder) for folder in folders)


def _violation(job: Job, kind: str, path: str) -> Violation:
    shown = os.path.relpath(path, job.project) if _beneath(path, job.project) else path
    return Violation(f"tried to {kind} {shown}", f"{kind}:{shown}")


def allow_option(violation: Violation | None) -> str:
    """The violation's grant as the user types it, or nothing."""
    return f"--allow {shlex.quote(violation.allow)}" if violation and violation.allow else ""


def _beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
