"""What a supervisor is asked to run: one operation, everything about it already decided."""

from __future__ import annotations

from typing import Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Limits, Policy


@frozen
class Job:
    """One operation, ready for a sandbox.

    ``policy`` holds absolute, real paths. ``params`` and ``inputs`` are JSON text (UTF-8). ``env`` holds the values of
    the granted names and what the runner adds (``SAGE_ATTEMPT``, ``SAGE_IDEMPOTENCY_KEY``). ``project`` is the absolute
    path the operation sees as its working directory. Artifacts are put below ``artifacts`` (a folder that need not
    exist yet; empty: none are collected). A job of type ``mcp`` is no sandbox's: its worker has ``tool`` called with
    ``params``; one of type ``llm`` has ``model`` asked what is in them.
    """

    type: Literal["python", "command", "mcp", "llm"]
    code: str = ""
    file: str = "<operation>"
    files: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    tool: str = ""
    model: str = ""
    output: Literal["text", "lines", "json"] = "text"
    ok_codes: tuple[int, ...] = (0,)
    params: bytes = b"null"
    inputs: bytes = b"{}"
    policy: Policy = Policy()
    limits: Limits = Limits()
    env: tuple[tuple[str, str], ...] = ()
    project: str = "/"
    artifacts: str = ""
    require_cgroup: bool = False
