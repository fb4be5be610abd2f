"""From an operation to a job for a sandbox: what all kinds share. Workers load this: nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sage_sandbox.broker.client import Line
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox.job import Job


@frozen
class Task:
    """One attempt at one operation, as it crosses to a worker; ``ticket`` is unique in its run and grows."""

    ticket: int
    phase: str
    operation: str
    attempt: int
    job: Job
    tools: Line | None = None
    """Where the run's tools are called; None where none was granted."""


@frozen
class Setting:
    """What all operations of a run share.

    ``environ`` is where the values of granted names are read: here, in the coordinator, so that they travel in the job
    of the operation they were granted to and in nothing else. ``artifacts`` is the folder of the feature, or empty.
    ``tools`` is where tools are called, once that is known.
    """

    run: str
    project: str
    artifacts: str
    require_cgroup: bool
    environ: Mapping[str, str]
    tools: Line | None = None


@frozen
class Circumstances:
    """What one attempt adds: ``inputs`` is JSON text."""

    phase: str
    operation: str
    attempt: int
    policy: Policy
    limits: Limits
    inputs: bytes


def idempotency_key(run: str, phase: str, operation: str) -> str:
    """The same for every attempt at an operation of a run, and for no other (hex SHA-256)."""
    return hashlib.sha256(f"{run}\0{phase}\0{operation}".encode()).hexdigest()


def granted_env(setting: Setting, here: Circumstances) -> tuple[tuple[str, str], ...]:
    """The granted names that are set, and what tells an operation which attempt it is."""
    given = tuple((name, setting.environ[name]) for name in here.policy.env if name in setting.environ)
    return (
        *given,
        ("SAGE_ATTEMPT", str(here.attempt)),
        ("SAGE_IDEMPOTENCY_KEY", idempotency_key(setting.run, here.phase, here.operation)),
    )


def params_json(params: Any) -> bytes:
    """Parameters as JSON text."""
    return b"null" if params is None else json.dumps(params, ensure_ascii=False, separators=(",", ":")).encode()


def common(setting: Setting, here: Circumstances, params: Any) -> dict[str, Any]:
    """The fields of a Job that do not depend on the operation's kind."""
    return {
        "params": params_json(params),
        "inputs": here.inputs,
        "policy": here.policy,
        "limits": here.limits,
        "env": granted_env(setting, here),
        "project": setting.project,
        "artifacts": f"{setting.artifacts}/{here.phase}/{here.operation}" if setting.artifacts else "",
        "require_cgroup": setting.require_cgroup,
    }
