"""One operation by itself, outside of any workflow: what the library's Sandbox and ``exec`` are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sage_sandbox.errors import UsageError
from sage_sandbox.grants.asks import asks_of
from sage_sandbox.grants.review import grant_policy
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Grant, Limits, Policy
from sage_sandbox.sandbox.job import Job

if TYPE_CHECKING:
    from sage_sandbox.grants.asking import Asker
    from sage_sandbox.sandbox.supervisor import Supervisor
    from sage_sandbox.workflow.definition import AskedLimits


class Sandbox:
    """Runs commands and source text, each in a kernel sandbox of its own, under one policy.

    The policy is what the caller grants: nothing is asked, nothing is remembered. Relative paths resolve beneath
    ``project`` (default: the working directory), which operations see as theirs. Not thread-safe; close it, or use it
    in a ``with`` block. SandboxUnavailable where confinement cannot be had; what an operation does is in its Outcome.

        with sage.Sandbox(sage.Policy(read=("src",))) as box:
            box.run(["wc", "-l", "src/main.py"]).value()
    """

    def __init__(self, policy: Policy = Policy(), *, project: str | os.PathLike[str] = ".") -> None:
        self.project = os.path.realpath(project)
        self.policy = grant_policy(asks_of(policy), Path(self.project))
        self._supervisor: Supervisor | None = None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> Outcome:
        """Run a program; its stdout is the result, as text. No shell, and no environment but the granted names."""
        if not argv:
            raise UsageError("no command was given")
        return self._run(Job("command", argv=tuple(argv), limits=limits), stdin)

    def call(self, code: str, params: Any = None, *, inputs: Mapping[str, Any] | None = None,
             limits: Limits = Limits()) -> Outcome:  # fmt: skip
        """Run Python source text that defines ``run(params, inputs, tools)``; what that returns is the result."""
        job = Job("python", code=code, limits=limits, params=_json(params), inputs=_json(inputs or {}))
        return self._run(job, b"")

    def close(self) -> None:
        """End every process of it."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, job: Job, stdin: bytes) -> Outcome:
        if self._supervisor is None:
            from sage_sandbox.operations.confining import supervisor

            self._supervisor = supervisor(self.project)
        job = replace(job, policy=self.policy, project=self.project, env=granted_values(self.policy, os.environ))
        return self._supervisor.run(job, stdin=stdin)


def granted_values(policy: Policy, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The granted names that are set, with their values."""
    return tuple((name, environ[name]) for name in policy.env if name in environ)


def command_job(argv: Sequence[str], grants: Iterable[Grant], limits: AskedLimits, timeout_s: float | None,
                project: Path) -> Job:  # fmt: skip
    """The job of ``exec``: the policy is exactly the grants."""
    from sage_sandbox.grants.limits import effective_limits, machine_ceilings

    policy = grant_policy(tuple(grants), project)
    settled = effective_limits(limits, timeout_s, limits, machine_ceilings(), owner="the command")
    return Job("command", argv=tuple(argv), policy=policy, limits=settled, env=granted_values(policy, os.environ),
               project=str(project))  # fmt: skip


def like_job(place: str, argv: Sequence[str], grants: Iterable[Grant], limits: AskedLimits, timeout_s: float | None,
             project: Path, params: Mapping[str, str], ask: Asker | None) -> Job:  # fmt: skip
    """The job of one operation of a template, under its exact policy and limits; ``argv`` runs in its place if given.

    ``place`` is ``TEMPLATE:phase/operation``. What it asks for must be granted, as in a run; it gets no inputs, for
    nothing ran before it.
    """
    from sage_sandbox.grants.approval import approve
    from sage_sandbox.grants.limits import machine_ceilings, workflow_limits
    from sage_sandbox.grants.memory import Memory
    from sage_sandbox.operations.base import Circumstances, Setting
    from sage_sandbox.operations.making import make_job
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.parameters import resolve_params
    from sage_sandbox.workflow.templates import find

    template, _, name = place.rpartition(":")
    phase_id, slash, operation_id = name.partition("/")
    if not (template and slash):
        raise UsageError(f"--like {place!r} is not TEMPLATE:phase/operation")
    workflow = load(find(template, project))
    phase = next((phase for phase in workflow.phases if phase.id == phase_id), None)
    operation = next((op for op in phase.operations if op.id == operation_id), None) if phase else None
    if phase is None or operation is None:
        known = ", ".join(f"{phase.id}/{op.id}" for phase in workflow.phases[:10] for op in phase.operations[:10])
        raise UsageError(f"{template} has no operation {name}", f"one of {known}")
    alone = replace(workflow, phases=(replace(phase, operations=(operation,), dependencies=()),))
    settled = workflow_limits(alone, limits, machine_ceilings())[phase_id, operation_id]
    if timeout_s is not None:
        settled = replace(settled, timeout_s=timeout_s)
    policy = approve(alone, tuple(grants), project, memory=Memory.of_user(), ask=ask).policies[phase_id, operation_id]
    setting = Setting("exec", str(project), "", require_cgroup=False, environ=os.environ)
    here = Circumstances(phase_id, operation_id, 1, policy, settled, b"{}")
    if argv:
        operation = replace(operation, type="command", argv=tuple(argv), output="text")
    job = make_job(operation, setting, here, {"params": resolve_params(workflow, params), "feature": "exec"})
    if job.type == "mcp":
        raise UsageError(f"{name} calls a tool: it has no sandbox that something could be run in")
    if job.type == "llm":
        raise UsageError(f"{name} asks a model: it has no sandbox that something could be run in")
    return job


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
