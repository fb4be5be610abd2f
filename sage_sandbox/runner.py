"""Run a workflow: the public face of the loop that joins the rooms."""

from __future__ import annotations

import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.control.server import Server
from sage_sandbox.dispatch.base import Slots
from sage_sandbox.dispatch.dispatcher import Dispatcher
from sage_sandbox.dispatch.memory import MemoryGate, MemoryReader, read_memory
from sage_sandbox.document import Metrics, PhaseResult, RunError, RunResult
from sage_sandbox.errors import SageError, UsageError
from sage_sandbox.events import Event, Notice, Observer, PhaseSettled, RunSettled, RunStarted
from sage_sandbox.journal import Journal, utc_now
from sage_sandbox.loop import Earlier, Key, Loop, Terms
from sage_sandbox.observe.listeners import Listeners
from sage_sandbox.operations.base import Setting
from sage_sandbox.operations.inputs import Results
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Limits, Policy, format_duration, parse_duration
from sage_sandbox.results.leaving import weigh
from sage_sandbox.results.scrub import known_values
from sage_sandbox.settling import GOES_ON, Frontier, Stop, run_status
from sage_sandbox.spending import Ledger
from sage_sandbox.store.artifacts import publish
from sage_sandbox.store.records import progress
from sage_sandbox.workflow.definition import Keep, Workflow
from sage_sandbox.workflow.planning import plan

if TYPE_CHECKING:
    from sage_sandbox.broker.runs import Keeping
    from sage_sandbox.brokering import AskStale, Needs, Tools
    from sage_sandbox.caching.cache import Cache

__all__ = ["RunResult", "Runner", "parallel_limit", "warm", "workflow_timeout"]

FEATURE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
PARALLEL_DEFAULT: Final = 4
TIMEOUT_DEFAULT_S: Final = 600.0


def parallel_limit(environ: Mapping[str, str]) -> int:
    """``SAGE_PARALLEL_LIMIT``, or 4; UsageError if it is no positive number."""
    text = environ.get("SAGE_PARALLEL_LIMIT") or str(PARALLEL_DEFAULT)
    if not re.fullmatch("[1-9][0-9]{0,2}", text):
        raise UsageError(f"SAGE_PARALLEL_LIMIT is {text!r}, not a number from 1 to 999", "set it to 4, for instance")
    return int(text)


def workflow_timeout(asked_s: float | None, workflow: Workflow, environ: Mapping[str, str]) -> float:
    """Seconds: as the user asked, else as the template says, else ``SAGE_WORKFLOW_TIMEOUT``, else 10 minutes."""
    if asked_s is not None:
        return asked_s
    if workflow.timeout_s is not None:
        return workflow.timeout_s
    text = environ.get("SAGE_WORKFLOW_TIMEOUT")
    try:
        return parse_duration(text) if text else TIMEOUT_DEFAULT_S
    except ValueError as error:
        raise UsageError(f"SAGE_WORKFLOW_TIMEOUT: {error}", "set it to 600000, for instance") from error


def warm(
    project: str, *, parallel: int = PARALLEL_DEFAULT, slots: int = 1, environ: Mapping[str, str] | None = None
) -> Dispatcher:
    """Start workers before the template is read, or none; give the dispatcher to `Runner`, or close it."""
    dispatcher = Dispatcher(os.path.realpath(project), parallel=parallel, secrets=_secrets(environ))
    if slots:
        dispatcher.grow(slots)
    return dispatcher


def _secrets(environ: Mapping[str, str] | None) -> tuple[str, ...]:
    """What workers look for in all that leaves them. What opens the state they are not told: it stays in here."""
    return known_values(os.environ if environ is None else environ, state_keys=False)


class Runner:
    """One run of a workflow for a feature; used once.

    ``policies`` and ``limits`` say what each operation (by phase id and operation id) was granted: absolute real paths;
    an operation that is not in them gets nothing, and the default limits. ``params`` holds the value of every parameter
    of the workflow. With ``artifacts`` files go to ``.sage/artifacts/feature/phase/operation`` of the project. A
    ``dispatcher`` that is given decides about ``parallel`` and is closed at the end of the run, too. ``earlier`` is
    what does not run again. ``needs`` are the tool servers and models it may use, every server approved. ``ledger``
    holds it to its budgets, by default the template's. Nothing is saved unless `saved_by` was called.
    """

    def __init__(
        self,
        workflow: Workflow,
        *,
        feature: str,
        params: Mapping[str, Any] | None = None,
        policies: Mapping[Key, Policy] | None = None,
        limits: Mapping[Key, Limits] | None = None,
        project: str = ".",
        parallel: int = PARALLEL_DEFAULT,
        sequential: bool = False,
        timeout_s: float | None = None,
        observers: Iterable[Observer] = (),
        artifacts: bool = False,
        require_cgroup: bool = False,
        dispatcher: Slots | None = None,
        earlier: Earlier | None = None,
        needs: Needs | None = None,
        ledger: Ledger | None = None,
        environ: Mapping[str, str] | None = None,
        memory: MemoryReader = read_memory,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not FEATURE.fullmatch(feature):
            raise UsageError(f"{feature!r} is not a feature name", "use 1 to 64 of a-z, 0-9 and -, not - first")
        environ = os.environ if environ is None else environ
        self.workflow_id = secrets.token_hex(16)
        self._workflow = workflow
        self._feature = feature
        self._tell = Listeners((self._count, *observers))
        self._journal: Journal | None = None
        self._server: Server | None = None
        self._cache: Cache | None = None
        self._keeping: Keeping | None = None
        self._ask_stale: AskStale | None = None
        self._earlier = earlier or Earlier()
        self._needs = needs
        self._ledger = ledger or Ledger(workflow.budgets)
        self._completed = len(self._earlier.phases)
        self._phase = ""
        real = os.path.realpath(project)
        self._project = Path(real)
        self._clock = clock
        setting = Setting(
            run=self.workflow_id,
            project=real,
            artifacts=f"{real}/.sage/artifacts/{feature}" if artifacts else "",
            require_cgroup=require_cgroup,
            environ=environ,
        )
        self._terms = Terms(policies or {}, limits or {}, setting, workflow_timeout(timeout_s, workflow, environ))
        self._order = plan(workflow)
        self._results = Results(
            params or {}, feature, {phase: len(set(names)) for phase, names in self._order.dependents.items()}
        )
        self._gate = MemoryGate(memory, clock)
        self._jitter = jitter
        self._parallel = 1 if sequential else parallel
        self._slots = dispatcher
        self._loop: Loop | None = None
        self._cancelled = False

    def saved_by(self, journal: Journal) -> None:
        """Save what ends in a journal that has begun, or gone on with, a run; it is closed at the end.

        From now on other processes can ask and cancel the run.
        """
        self._journal = journal
        journal.spent = self._ledger.note
        self._server = self._serve(journal)
        self._tell.add(journal.log())
        self.workflow_id = journal.run
        self._terms = replace(self._terms, setting=replace(self._terms.setting, run=journal.run))

    def cached_by(self, cache: Cache, keeping: Keeping | None = None, ask_stale: AskStale | None = None) -> None:
        """Ask a cache before anything is run, and have it keep what comes of it; it is closed at the end.

        ``keeping`` says how answers are kept beside it, ``ask_stale`` is asked whether one may stand in.
        """
        self._cache = cache
        self._keeping = keeping
        self._ask_stale = ask_stale

    def run(self) -> RunResult:
        """Run to the end. Raises SandboxUnavailable if this machine cannot confine; leaves no process in any case."""
        if self._journal is None:
            return self._run()
        try:
            result = self._run()
            if self._server is not None:
                self._server.finish(_farewell(result, saved=self._journal.saves))
            return result
        except SageError as error:
            self._journal.fail(error)
            raise
        finally:
            if self._server is not None:
                self._server.close()
            self._journal.close()

    def _run(self) -> RunResult:
        started = self._clock()
        self._ledger.begin(self._clock)
        workflow, kept = self._workflow, len(self._earlier.phases)
        operations = sum(len(phase.operations) for phase in workflow.phases)
        self._tell(RunStarted(self.workflow_id, self._feature, workflow.name, len(workflow.phases), operations, kept))
        setting = self._terms.setting
        slots = self._slots or Dispatcher(setting.project, parallel=self._parallel, secrets=_secrets(setting.environ))
        tools: Tools | None = None
        try:
            tools = self._open_tools()
            loop = self._loop = self._make_loop(slots)
            if self._cancelled:
                loop.cancel()
            if self._cache is not None:
                self._cache.start(slots.wake)
            loop.run()
            self._finish_cache(loop)
        finally:
            slots.close()
            if tools is not None:
                tools.close()
            if self._cache is not None:
                self._cache.close(finish=False)
        result = self._result(loop, self._clock() - started)
        if self._journal is not None:
            self._journal.end(result)
        resumable = self._journal is not None and not result.ok
        if lacked := _lacked(_failed(result.phases)):
            saved = " · ✓ progress saved" if resumable else ""
            self._tell(Notice("warning", f"External API unavailable ({lacked}) · no cached data stands in{saved}"))
        if result.ok:
            self._say_what_was_passed()
        metrics = result.metrics
        self._tell(
            RunSettled(
                self.workflow_id,
                self._feature,
                result.status,
                metrics.duration_s,
                resumable,
                metrics.weight,
                metrics.usage,
            )
        )
        return result

    def _say_what_was_passed(self) -> None:
        """A budget that was reached when nothing was left to start ends no run, and is not passed over in silence."""
        with suppress(UsageError):  # a cost that is not known
            if excess := self._ledger.exceeded():
                self._tell(Notice("warning", f"{excess.text}; the last phase had begun, and the run is complete"))

    def _open_tools(self) -> Tools | None:
        """Register with the broker, which comes up while the first operations start."""
        if self._needs is None:
            return None
        from sage_sandbox import brokering  # most runs call no tool

        setting = self._terms.setting
        tools = brokering.Tools.open(
            setting.project,
            self._needs,
            run=self.workflow_id,
            feature=self._feature,
            audit_key=self._journal.audit_key if self._journal is not None else b"",
            keeping=self._keeping,
            ask=self._ask_stale,
            environ=setting.environ,
            tell=self._tell,
        )
        self._terms = replace(self._terms, setting=replace(setting, tools=tools.line))
        return tools

    def _finish_cache(self, loop: Loop) -> None:
        """Have what was left kept; not where somebody waits for the run to be over."""
        if self._cache is not None:
            self._cache.close(finish=loop.stop is None)
            for text in self._cache.notices():
                self._tell(Notice("warning", text))

    def cancel(self, save: bool = True) -> None:
        """End the run soon, its operations killed; from any thread, and more than once.

        Where signals shall do it, use `signals.cancelled_by_signals`: a handler may have to wait for the run to move.
        Without ``save`` nothing is kept of the phases that are cut short; what was committed stays.
        """
        if self._journal is not None and not save:
            self._journal.saves = False
        self._cancelled = True
        if self._loop is not None:
            self._loop.cancel()

    def status(self) -> dict[str, Any]:
        """Where the run is, under the names of the specification; from any thread."""
        return {
            "feature": self._feature,
            "template": self._workflow.name,
            "workflowId": self.workflow_id,
            "phase": self._phase,
            "status": "running",
            "progress": progress(self._completed, len(self._workflow.phases)),
        }

    def _serve(self, journal: Journal) -> Server | None:
        """Be there for `cancel` and `status` of other processes; where that cannot be, the run goes on all the same."""
        try:
            return Server.open(journal.project_id, self._feature, handler=self)
        except (OSError, SageError) as error:
            self._tell(Notice("warning", f"other processes cannot ask or cancel this run: {error}"))
            return None

    def _count(self, event: Event) -> None:
        if isinstance(event, PhaseSettled):
            self._phase = event.phase
            self._completed += event.status in GOES_ON

    def _commit(self, phases: Sequence[PhaseResult]) -> None:
        if self._journal is None:
            for phase in phases:
                publish(self._project, self._feature, phase.id, ((item.id, item.outcome) for item in phase.operations))
        elif hits := self._journal.commit(phases):
            text = f"{hits} secrets were taken out of what is saved; that should have happened before"
            self._tell(Notice("warning", text))

    def _make_loop(self, slots: Slots) -> Loop:
        return Loop(
            {phase.id: phase for phase in self._workflow.phases},
            Frontier(self._order.dependencies, self._order.dependents),
            self._results,
            self._terms,
            slots,
            earlier=self._earlier,
            ledger=self._ledger,
            commit=self._commit,
            tell=self._tell,
            gate=self._gate,
            cache=self._cache,
            clock=self._clock,
            jitter=self._jitter,
        )

    def _result(self, loop: Loop, duration_s: float) -> RunResult:
        phases = tuple(loop.settled[phase.id] for phase in self._workflow.phases)
        keeps = _keeps(self._workflow)
        hits, asked = _calls_saved(self._workflow, phases)
        stop = loop.stop
        status, exit_code = run_status(
            ((phase.status, phase.single and not _lacks_a_service(phase)) for phase in phases),
            cancelled=stop is not None and stop.reason == "cancelled",
            timed_out=stop is not None and stop.reason == "timeout",
            out_of_budget=stop is not None and stop.reason == "budget_exceeded",
        )
        return RunResult(
            workflow_id=self.workflow_id,
            feature=self._feature,
            workflow=self._workflow.name,
            status=status,
            exit_code=exit_code,
            phases=phases,
            metrics=replace(
                _metrics(phases, duration_s, loop.parallel_max),
                restored=len(self._earlier.phases),
                cached=hits + (self._cache.hits if self._cache is not None else 0),
                cache_asked=asked + (self._cache.asked if self._cache is not None else 0),
                weight=weigh(_leaving(phases, keeps)),
                usage=self._ledger.spent.usage,
                cost=self._ledger.cost,
            ),
            errors=tuple(_errors(self._workflow, phases, stop)),
            hint="" if status == "completed" else self._hint(_lacked(_failed(phases))),
            keeps=keeps,
        )

    def _hint(self, lacked: str) -> str:
        back = f"once {lacked} is back, " if lacked else ""
        if self._journal is None:
            return f"nothing was saved: {back}run it again"
        return f"{back}resume it with: sage-sandbox resume {self._feature}"


def _calls_saved(workflow: Workflow, phases: tuple[PhaseResult, ...]) -> tuple[int, int]:
    """How many operations that are a call were answered from what is kept, and how many might have been."""
    hits = asked = 0
    for phase, defined in zip(phases, workflow.phases, strict=True):
        calls = {one.id: one.cache for one in defined.operations if one.type == "mcp" and not phase.restored}
        for operation in phase.operations:
            hit = operation.id in calls and operation.outcome.cached_s is not None
            hits += hit
            asked += hit or calls.get(operation.id) is True
    return hits, asked


def _lacks_a_service(phase: PhaseResult) -> bool:
    """Whether a phase failed for want of something that may be back later: its run is paused then, not failed."""
    outcomes = (operation.outcome for operation in phase.operations)
    return any(outcome.reason == "unavailable" or outcome.lacked for outcome in outcomes)


def _failed(phases: Iterable[PhaseResult]) -> list[PhaseResult]:
    """Those that came to an end after which nothing goes on."""
    return [phase for phase in phases if phase.status == "failed"]


def _lacked(phases: Iterable[PhaseResult]) -> str:
    """The names of the tool servers for want of which operations of these phases were rejected."""
    outcomes = (operation.outcome for phase in phases for operation in phase.operations)
    return ", ".join(sorted({name for outcome in outcomes for name in outcome.lacked}))


def _farewell(result: RunResult, *, saved: bool) -> dict[str, Any]:
    """What whoever cancelled or waited is told."""
    return {"status": result.status, "cancelledAt": utc_now(), "checkpointSaved": saved}


def _metrics(phases: tuple[PhaseResult, ...], duration_s: float, parallel_max: int) -> Metrics:
    outcomes = [operation.outcome for phase in phases for operation in phase.operations]
    fulfilled = sum(outcome.ok for outcome in outcomes)
    return Metrics(
        duration_s=duration_s,
        phases=len(phases),
        operations=len(outcomes),
        fulfilled=fulfilled,
        rejected=len(outcomes) - fulfilled,
        retries=sum(max(0, len(outcome.attempts) - 1) for outcome in outcomes),
        parallel_max=parallel_max,
    )


def _keeps(workflow: Workflow) -> dict[Key, Keep]:
    return {
        (phase.id, operation.id): operation.keep
        for phase in workflow.phases
        for operation in phase.operations
        if operation.keep is not None
    }


def _leaving(phases: tuple[PhaseResult, ...], keeps: Mapping[Key, Keep]) -> Iterator[tuple[Outcome, Keep | None]]:
    """Every outcome that is handed back, and what is kept of it."""
    for phase in phases:
        for operation in phase.operations:
            yield operation.outcome, keeps.get((phase.id, operation.id))


def _errors(workflow: Workflow, phases: tuple[PhaseResult, ...], stop: Stop | None) -> Iterator[RunError]:
    """What the user should read: the run's own end first, then each phase in the order of the template."""
    if stop is not None:
        yield RunError("", "", stop.reason, stop.text, stop.hint)
    statuses = {phase.id: phase.status for phase in phases}
    for phase, defined in zip(phases, workflow.phases, strict=True):
        for operation in phase.operations:
            outcome = operation.outcome
            if outcome.reason is not None:
                yield RunError(phase.id, operation.id, outcome.reason, outcome.error, outcome.hint)
        if phase.status == "timeout" and stop is None:
            text = f"phase timeout exceeded ({phase.id} > {format_duration(defined.timeout_s)})"
            yield RunError(phase.id, "", "timeout", text)
        if phase.status == "blocked":
            ended = [name for name in defined.dependencies if statuses[name] not in GOES_ON]
            yield RunError(phase.id, "", "blocked", f"not started: {', '.join(ended) or 'the run'} did not complete")
