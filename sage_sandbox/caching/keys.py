"""The key of an operation: one digest of everything that could make its outcome another. Pure.

It is a MAC under a key of the user's, so that a file's name tells nobody which parameters or values it stands for. What
tells one run of the same operation from another (`SAGE_IDEMPOTENCY_KEY`, `SAGE_ATTEMPT`) is no part of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from sage_sandbox.sandbox.job import Job

FORMAT: Final = 1
"""Another number for another meaning of the fields: what was kept before is not found any more."""
OF_ONE_RUN: Final = frozenset({"SAGE_IDEMPOTENCY_KEY", "SAGE_ATTEMPT"})


def operation_key(
    job: Job,
    *,
    shown: Mapping[str, str],
    software: object,
    version: str,
    secret: bytes,
    ids: tuple[int, int] | None = None,
) -> str:
    """The key (hex). ``shown`` are the digests of what it may read, by path; ``software`` says what it can run."""
    parts = ingredients(job, shown=shown, software=software, version=version, ids=ids or (os.geteuid(), os.getegid()))
    # JSON is one way to write plain data, so two operations with one text have the same ingredients.
    return hmac.new(secret, json.dumps(parts, sort_keys=True).encode("ascii"), "sha256").hexdigest()


def ingredients(
    job: Job, *, shown: Mapping[str, str], software: object, version: str, ids: tuple[int, int]
) -> dict[str, Any]:
    """Everything that the key is made of, as plain data; long texts by their digests."""
    return {
        "format": FORMAT,
        "version": version,
        "type": job.type,
        "code": _digest(job.code.encode("utf-8", "surrogatepass")),
        "file": job.file,
        "files": [[name, _digest(text.encode("utf-8", "surrogatepass"))] for name, text in job.files],
        "packages": list(job.packages),
        "argv": list(job.argv),
        "tool": job.tool,
        "model": job.model,
        "output": job.output,
        "okCodes": list(job.ok_codes),
        "params": _digest(job.params),
        "inputs": _digest(job.inputs),
        "policy": asdict(job.policy),
        "limits": asdict(job.limits),
        "env": [list(pair) for pair in job.env if pair[0] not in OF_ONE_RUN],
        "project": job.project,
        "leavesFiles": bool(job.artifacts),
        "requireCgroup": job.require_cgroup,
        "ids": list(ids),
        "shown": dict(shown),
        "software": software,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
