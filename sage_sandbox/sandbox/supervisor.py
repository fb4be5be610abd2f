"""The supervisor: in a worker, over one zygote; confines, feeds, watches and ends one operation at a time.

It trusts nothing that comes back. Whatever happens to an operation is an Outcome; only a sandbox that cannot be had is
an exception.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from sage_sandbox.errors import NotGranted, SandboxUnavailable, UsageError
from sage_sandbox.outcome import Contact, Outcome, rejected
from sage_sandbox.policy import RESULT_MAX, Limits, MiB, format_size
from sage_sandbox.sandbox import cgroup, collect, packages, steps
from sage_sandbox.sandbox.calling import Desk, ToolCalls
from sage_sandbox.sandbox.calls import CallHandler, Lister
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.masks import Masker
from sage_sandbox.sandbox.nursery import BrokenProtocol, Child, ChildGone, Zygote
from sage_sandbox.sandbox.outside import Gate, environment
from sage_sandbox.sandbox.verdict import judge, limit_text
from sage_sandbox.sandbox.watch import Relay, Watch

ZYGOTE_OPERATIONS: Final = 1_000
ZYGOTE_AGE_S: Final = 600.0
"""A zygote is replaced after so many operations or seconds: its children share address layout and hash seed."""

MEMORY_LEAST: Final = 16 * MiB
"""Below this an interpreter does not even get confined."""

BACK_TO_BACK_S: Final = 0.003
REFILL_DELAY_S: Final = 0.001
"""When operations come back to back, the next child is made while one runs. After a rest a short operation shall not
share the processors and the zygote with that: it waits so long, or until the operation is over."""


class Supervisor:
    """Runs one operation after the other, each in a child of its own. Not thread-safe; lives as long as its worker.

    ``project`` is the absolute path that operations see as their working directory, ``gate`` makes the way out of
    those with a net grant when the first one comes; without it there are none. ``handle_call`` carries out the tool
    calls that their policies grant, in threads of this process; ``list_tools`` names the tools there are.
    """

    def __init__(
        self,
        project: str,
        *,
        slot: int = 0,
        gate: Callable[[], Gate] | None = None,
        handle_call: CallHandler | None = None,
        list_tools: Lister | None = None,
    ) -> None:
        self.project = os.path.realpath(project)
        self.slot = slot
        self._make_gate = gate
        self._gate: Gate | None = None
        self._desk = Desk(handle_call, list_tools)
        self._masker = Masker()
        self._plain: dict[tuple[object, ...], steps.Blueprint] = {}
        self._who: steps.Identity | None = None
        self._home: cgroup.CgroupHome | None = None
        self._groups: list[cgroup.Cgroup] = []
        self._zygote: Zygote | None = None
        self._packages: tuple[str, ...] = ()
        self._spare: Child | None = None
        self._idle_since = 0.0

    def prepare(self) -> None:
        """Start the zygote and a spare ahead of the first operation. SandboxUnavailable if that cannot be."""
        self._zygote_for(())
        if self._spare is None:
            job = Job("python", project=self.project)
            self._spare = self._spawn(self._blueprint(job), job.limits)

    def run(self, job: Job, *, cancel_fd: int = -1, stdin: bytes | None = None, relay: Relay | None = None) -> Outcome:
        """Run one operation to its end, whatever that is; SandboxUnavailable if it cannot be confined as asked.

        ``cancel_fd`` becomes readable when it is to end. ``stdin`` is what a command reads, its parameters unless
        given; a ``relay`` takes the place of both it and of what is kept of the output.
        """
        if job.limits.memory < MEMORY_LEAST:
            least = format_size(MEMORY_LEAST)
            return rejected(
                "limit",
                f"{limit_text(job, 'memory')}: a sandbox takes {least}",
                f"--limit memory={MEMORY_LEAST // MiB}M",
            )
        if job.policy.net and self._make_gate is None:
            raise SandboxUnavailable("there is no proxy that net grants could go through", "", "egress proxy")
        started = time.monotonic()
        terminal = relay.terminal if relay is not None else -1
        try:
            child = self._confined_child(job, terminal)
        except NotGranted as error:
            return rejected("denied", error.message, error.hint)
        except UsageError as error:
            return rejected("error", error.message, error.hint)
        if job.require_cgroup and child.group is None:
            self._bury(child)
            raise SandboxUnavailable(
                "memory=cgroup is required, and no cgroup can be written", "sage-sandbox doctor", "cgroup"
            )
        if stdin is None:
            stdin = job.params if job.type == "command" else b""
        calls = ToolCalls(job.policy, self._desk, expected=job.type == "command" or bool(job.policy.tool))
        return self._serve(child, job, Watch(child, job, started, cancel_fd, stdin, relay, calls), terminal)

    def close(self) -> None:
        """End the zygote and everything beneath it; remove the cgroups."""
        if self._zygote is not None:
            self._zygote.close()
        self._zygote = self._spare = None
        if self._gate is not None:
            self._gate.close()
        if self._home is not None:
            self._home.close()
        # What was found out holds for what was closed: a later run looks again.
        self._home = self._who = None
        self._groups.clear()
        self._plain.clear()

    # The zygote.

    def _zygote_for(self, names: tuple[str, ...]) -> Zygote:
        worn = self._zygote is not None and (
            self._packages != names
            or self._zygote.served > ZYGOTE_OPERATIONS
            or time.monotonic() - self._zygote.born > ZYGOTE_AGE_S
        )
        if worn:
            self._drop_zygote()
        if self._zygote is None:
            if self._who is None:
                self._who = steps.identity()
                self._home = cgroup.find()
            base = steps.foundation(self._who, self.project, packages.binds(names), cgroup=self._home is not None)
            self._zygote = Zygote(base)
            self._packages = names
        return self._zygote

    def _drop_zygote(self) -> None:
        if self._zygote is not None:
            children = list(self._zygote.children.values())
            self._zygote.close()
            self._groups += [child.group for child in children if child.group is not None]
        self._zygote = self._spare = None

    def _blueprint(self, job: Job) -> steps.Blueprint:
        if job.policy.grants_paths:
            # Compiled anew each time: what is hidden in a folder may have changed.
            return self._compile(job)
        network = (job.policy.loopback, bool(job.policy.net))
        key = (network, job.limits.disk, job.limits.memory, job.limits.cpu_s, job.limits.pids, job.packages)
        if key not in self._plain:
            self._plain[key] = self._compile(job)
        return self._plain[key]

    def _compile(self, job: Job) -> steps.Blueprint:
        assert self._who is not None
        assert self._zygote is not None
        return steps.compile_steps(
            job.policy,
            job.limits,
            self._who,
            self._zygote.foundation,
            project=self.project,
            masker=self._masker,
            cgroup=self._home is not None,
        )

    # Children.

    def _confined_child(self, job: Job, terminal: int) -> Child:
        """A child with every step applied: the spare where it fits, else a new one; tried again if the zygote died."""
        for attempt in (1, 2):
            zygote = self._zygote_for(job.packages)
            blueprint = self._blueprint(job)
            try:
                self._map_owners(zygote, blueprint)
                child = self._take_spare(blueprint) if terminal < 0 else None
                return self._wait_ready(zygote, child or self._spawn(blueprint, job.limits, terminal))
            except SandboxUnavailable:
                self._drop_zygote()
                raise
            except (ChildGone, BrokenProtocol, TimeoutError, OSError):
                self._drop_zygote()
                if attempt == 2:
                    break
        raise SandboxUnavailable("the sandbox's zygote died", "sage-sandbox doctor", "zygote")

    def _wait_ready(self, zygote: Zygote, child: Child) -> Child:
        zygote.wait_born(child)
        try:
            child.wait_ready()
        except NotGranted:
            self._bury(child)
            raise
        # What a spare said may be older than the end of its zygote.
        zygote.check()
        return child

    def _map_owners(self, zygote: Zygote, blueprint: steps.Blueprint) -> None:
        foreign = [owner for owner in blueprint.owners if owner not in zygote.mapped_owners]
        if foreign and self._spare is not None:
            # A child has the maps that its zygote had when it was forked.
            self._bury(self._spare)
            self._spare = None
        for owner in foreign:
            zygote.map_owner(owner)

    def _take_spare(self, blueprint: steps.Blueprint) -> Child | None:
        spare = self._spare
        if spare is None:
            return None
        self._spare = None
        ready = spare.blueprint
        assert ready is not None
        if ready != blueprint if spare.whole else ready.ahead != blueprint.ahead:
            self._bury(spare)
            return None
        if not spare.whole:
            spare.confine(blueprint)
        return spare

    def _spawn(self, blueprint: steps.Blueprint, limits: Limits, terminal: int = -1, *, whole: bool = True) -> Child:
        assert self._zygote is not None
        child = self._zygote.spawn(self._free_group(limits), terminal)
        child.confine(blueprint, whole=whole)
        return child

    def _free_group(self, limits: Limits) -> cgroup.Cgroup | None:
        if self._home is None:
            return None
        group = self._groups.pop() if self._groups else self._home.make(f"{self.slot}-{time.monotonic_ns()}")
        group.limit(limits.memory, limits.pids)
        return group

    def _refill(self, used: steps.Blueprint | None, limits: Limits) -> None:
        """Have the next child ready: locked where the next operation likely has no grants either, else half-open."""
        if self._spare is None and self._zygote is not None and used is not None:
            self._spare = self._spawn(used, limits, whole=not used.bound)

    def _bury(self, child: Child) -> None:
        """Kill and reap a child, and keep its cgroup for the next."""
        zygote = self._zygote
        assert zygote is not None
        try:
            zygote.wait_born(child)
            child.kill()
            zygote.wait_gone(child)
        except ChildGone:
            self._drop_zygote()
            return
        if child.group is not None:
            self._groups.append(child.group)
        child.close()

    # One operation.

    def _serve(self, child: Child, job: Job, watch: Watch, terminal: int) -> Outcome:
        zygote = self._zygote
        assert zygote is not None
        try:
            if child.group is not None:
                child.group.begin(job.limits.memory, job.limits.pids)
            self._open_gate(child, job)
            watch.start(wire.pack(_request(job, terminal >= 0)))
            rested = watch.started - self._idle_since > BACK_TO_BACK_S
            watch.until_gone(
                zygote, lambda: self._refill(child.blueprint, job.limits), REFILL_DELAY_S if rested else 0.0
            )
        except SandboxUnavailable:
            self._bury(child)
            raise
        except (ChildGone, BrokenProtocol, BrokenPipeError, ConnectionResetError):
            self._drop_zygote()
            lost = rejected("worker lost", "the sandbox's zygote died under the operation")
            return replace(lost, contacts=self._shut_gate(job))
        finally:
            watch.calls.close()
        try:
            outcome = judge(watch.ending(self._shut_gate(job)))
            return self._collect(child, job, outcome) if child.work_fd >= 0 else outcome
        finally:
            if child.group is not None:
                self._groups.append(child.group)
            child.close()
            self._idle_since = time.monotonic()

    def _open_gate(self, child: Child, job: Job) -> None:
        """Let what comes to the child's listener out, before it is told what to run."""
        if self._make_gate is None or not job.policy.net:
            return
        if self._gate is None:
            self._gate = self._make_gate()
        self._gate.open(child.listener, job.policy.net)
        os.close(child.listener)
        child.listener = -1

    def _shut_gate(self, job: Job) -> tuple[Contact, ...]:
        return self._gate.shut() if self._gate is not None and job.policy.net else ()

    def _collect(self, child: Child, job: Job, outcome: Outcome) -> Outcome:
        """Take over what a fulfilled operation left in files; if that cannot be, it is not fulfilled."""
        if not outcome.ok or child.blueprint is None:
            return outcome
        try:
            # Both are looked over before the first file outside is touched.
            box, policy = child.blueprint.box, job.policy
            files = collect.find_artifacts(child.work_fd, box) if job.artifacts else []
            named = frozenset((*policy.read, *policy.write, *policy.write_through))
            changes = collect.plan_commit(
                child.work_fd, child.blueprint.stages, named, policy.unprotected, job.limits.disk
            )
            artifacts = collect.take_artifacts(child.work_fd, box, files, job.artifacts)
            written = collect.commit(child.work_fd, changes)
        except collect.Uncollectable as error:
            return replace(
                outcome, status="rejected", reason="denied", error=error.message, hint=error.hint, result=b"null"
            )
        except OSError as error:
            text = f"taking over files: {error.strerror}: {error.filename or ''}".rstrip(": ")
            return replace(outcome, status="rejected", reason="error", error=text, result=b"null")
        return replace(outcome, artifacts=artifacts, written=written)


def _request(job: Job, terminal: bool) -> wire.PythonRequest | wire.CommandRequest:
    # A granted variable does not lead past the proxy.
    env = (*job.env, *environment(job.policy))
    if job.type == "command":
        return wire.CommandRequest(job.argv, env, terminal)
    return wire.PythonRequest(
        job.code, job.file, job.files, job.params, job.inputs, env, RESULT_MAX, bool(job.policy.tool)
    )
