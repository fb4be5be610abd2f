"""The coordinator's loop: start what may start, hear what ended, decide what follows, until nothing is left.

A phase starts as soon as its own dependencies are done. Its operations settle one by one, retried as the template says;
when the last one has, the phase is completed, degraded or failed, and its dependents start or are blocked. Everything
happens in one thread; `Loop.cancel` alone may be called from elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from sage_sandbox.caching.base import Question, Reply, may_be_cached
from sage_sandbox.dispatch.alarms import Alarms
from sage_sandbox.dispatch.base import Slots
from sage_sandbox.dispatch.memory import MemoryGate
from sage_sandbox.dispatch.reports import Finished, Lost, News, Returned, Started, Withheld
from sage_sandbox.document import OperationResult, PhaseResult
from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.events import Event, Notice, OperationSettled, OperationStarted, PhaseSettled, PhaseStarted
from sage_sandbox.frozen import frozen
from sage_sandbox.operations.base import Circumstances, Setting, Task
from sage_sandbox.operations.inputs import Results
from sage_sandbox.operations.making import make_job
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.policy import Limits, Policy, format_duration
from sage_sandbox.sandbox.job import Job
from sage_sandbox.settling import GOES_ON, Frontier, PhaseRun, Stop, Trial, backoff_s, may_retry
from sage_sandbox.spending import Excess, Ledger, time_excess
from sage_sandbox.workflow.definition import Phase

if TYPE_CHECKING:
    from sage_sandbox.caching.cache import Cache

MEMORY_AGAIN_S: Final = 0.25
"""How long to wait before looking at the machine's memory again, where nothing else happens."""

Key = tuple[str, str]
"""Phase id and operation id."""


@frozen
class Terms:
    """What a run is held to: what each operation was granted, the setting they share, the time the whole may take."""

    policies: Mapping[Key, Policy]
    limits: Mapping[Key, Limits]
    setting: Setting
    timeout_s: float


@frozen
class Earlier:
    """What earlier processes of the run left: phases that are done, and by phase the outcomes that count in others."""

    phases: Mapping[str, PhaseResult] = field(default_factory=dict)
    kept: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)


class Loop:
    """The state of a run between its first phase and its last."""

    def __init__(
        self,
        phases: Mapping[str, Phase],
        frontier: Frontier,
        results: Results,
        terms: Terms,
        slots: Slots,
        *,
        earlier: Earlier,
        ledger: Ledger,
        commit: Callable[[Sequence[PhaseResult]], None],
        tell: Callable[[Event], None],
        gate: MemoryGate,
        cache: Cache | None = None,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.settled: dict[str, PhaseResult] = dict(earlier.phases)
        self.stop: Stop | None = None
        self.parallel_max = 0
        self._phases = phases
        self._frontier = frontier
        self._results = results
        self._terms = terms
        self._slots = slots
        self._earlier = earlier
        self._ledger = ledger
        self._commit = commit
        self._tell = tell
        self._gate = gate
        self._cache = cache
        self._clock = clock
        self._jitter = jitter
        self._began = clock()
        self._alarms = Alarms(clock)
        self._tickets = count(1)
        self._open: dict[str, PhaseRun] = {}
        self._uncommitted: list[PhaseRun] = []
        self._ready: deque[Trial] = deque()
        self._sent: dict[int, Trial] = {}
        self._running: set[int] = set()
        self._asked: dict[Trial, Reply | None] = {}
        self._cancelled = False

    def run(self) -> None:
        """Run every phase to its end, or to the run's. Raises SandboxUnavailable, and what ``commit`` raises."""
        self._alarms.set(self._terms.timeout_s, self._time_is_up)
        if (left_s := self._ledger.time_left_s) is not None:
            self._alarms.set(max(left_s, 0.0), self._budget_of_time_is_up)
        self._remember_earlier()
        self._open_phases(self._frontier.first)
        while self._open:
            self._obey_cancel()
            self._send_ready()
            if self._open and not self._uncommitted:
                for news in self._slots.wait(self._alarms.wait_s()):
                    self._take(news)
                self._hear_cache()
                self._alarms.ring()
            self._settle_phases()
        self._settle_never_started(self._phases)

    def cancel(self) -> None:
        """End everything soon; from any thread."""
        self._cancelled = True
        self._slots.wake()

    # -- starting ------------------------------------------------------------------------------------------------

    def _remember_earlier(self) -> None:
        """Hold what earlier phases left, as far as anybody will ask for it."""
        for name in self._earlier.phases:
            self._results.done(self._phases[name].dependencies)
        for name, phase in self._earlier.phases.items():
            if self._results.is_awaited(name):  # what nobody asks for is not even decoded
                self._results.keep(name, [(item.id, item.outcome) for item in phase.operations], single=phase.single)

    def _open_phases(self, names: Iterable[str]) -> None:
        queue = deque(names)
        while queue:
            name = queue.popleft()
            if name in self._earlier.phases:
                queue.extend(self._frontier.settle(name, goes_on=True)[0])
                continue
            run = self._open[name] = PhaseRun(self._phases[name], self._earlier.kept.get(name, {}))
            self._ready.extend(run.trials)
            if not run.open:
                self._uncommitted.append(run)

    def _send_ready(self) -> None:
        self._keep_to_budgets()
        if self._cache is not None:
            self._ask_cache(self._cache)
        while self._ready:
            self._slots.grow(len(self._ready) + self._slots.busy)
            room = self._slots.room(len(self._ready))
            if not room:
                return
            tasks, held_back = self._make_tasks(room)
            if tasks:
                self._slots.send(tuple(tasks))
            if held_back:
                self._alarms.set(MEMORY_AGAIN_S, _look_again)
                return

    def _ask_cache(self, cache: Cache) -> None:
        """Ask for every trial that need not run if its outcome is known; it is ready again if it is not."""
        ready, self._ready = self._ready, deque()
        questions = []
        for trial in ready:
            if trial.settled:
                continue
            if trial.attempt > 1 or trial in self._asked or not self._may_be_cached(trial):
                self._ready.append(trial)
            elif (job := self._make_job(trial)) is not None:
                self._asked[trial] = None
                questions.append(Question(trial, job, trial.operation.cache_ttl_s))
        cache.ask(questions)

    def _may_be_cached(self, trial: Trial) -> bool:
        return may_be_cached(trial.operation.type, self._policy(trial), trial.operation.cache)

    def _make_tasks(self, room: int) -> tuple[list[Task], bool]:
        """Up to ``room`` tasks, and whether memory is too short for the next."""
        tasks: list[Task] = []
        while self._ready and len(tasks) < room:
            trial = self._ready.popleft()
            if trial.settled:
                continue
            if not self._memory_allows(trial, len(tasks)):
                self._ready.appendleft(trial)
                return tasks, True
            if task := self._make_task(trial):
                tasks.append(task)
        return tasks, False

    def _memory_allows(self, trial: Trial, made: int) -> bool:
        said = self._gate.said
        allowed = self._gate.allows(self._limits(trial).memory, self._slots.busy + made)
        if self._gate.said != said:
            self._tell(Notice("warning", self._gate.said))
        return allowed

    def _make_task(self, trial: Trial) -> Task | None:
        """The task for a trial's next attempt; None if it cannot start, and has settled for that."""
        job = self._make_job(trial)
        if job is None:
            return None
        trial.ticket = next(self._tickets)
        self._sent[trial.ticket] = trial
        return Task(trial.ticket, trial.run.phase.id, trial.operation.id, trial.attempt, job, self._terms.setting.tools)

    def _make_job(self, trial: Trial) -> Job | None:
        run, operation = trial.run, trial.operation
        self._begin(run)
        here = Circumstances(
            run.phase.id, operation.id, trial.attempt, self._policy(trial), self._limits(trial), self._inputs(run)
        )
        try:
            return make_job(operation, self._terms.setting, here, self._results.scope(run.phase.dependencies))
        except ReferenceMissing as error:
            self._settle(trial, trial.ended(rejected("error", error.message, error.hint)))
            return None

    def _begin(self, run: PhaseRun) -> None:
        if run.started is None:
            run.started = self._clock()
            self._tell(PhaseStarted(run.phase.id, run.phase.name, len(run.trials)))
            self._alarms.set(run.phase.timeout_s, partial(self._phase_time_is_up, run))

    def _inputs(self, run: PhaseRun) -> bytes:
        if run.inputs is None:
            run.inputs = self._results.inputs(run.phase.dependencies)
        return run.inputs

    def _policy(self, trial: Trial) -> Policy:
        return self._terms.policies.get((trial.run.phase.id, trial.operation.id), Policy())

    def _limits(self, trial: Trial) -> Limits:
        return self._terms.limits.get((trial.run.phase.id, trial.operation.id), Limits())

    # -- hearing -------------------------------------------------------------------------------------------------

    def _take(self, news: News) -> None:
        match news:
            case Started(ticket):
                self._started(ticket)
            case Finished(ticket, outcome):
                self._ended(ticket, outcome)
            case Lost(ticket):
                self._ended(ticket, rejected("worker lost", "the worker process died while it ran this operation"))
            case Returned(ticket):
                self._returned(ticket)
            case Withheld(error):
                raise error
            case Notice():
                self._tell(news)

    def _hear_cache(self) -> None:
        if self._cache is None:
            return
        for text in self._cache.notices():
            self._tell(Notice("warning", text))
        for reply in self._cache.hear():
            trial = reply.question.about
            assert isinstance(trial, Trial)
            if trial.settled:
                continue
            if reply.outcome is not None:
                self._settle(trial, reply.outcome)
            else:
                self._asked[trial] = reply
                self._ready.append(trial)

    def _started(self, ticket: int) -> None:
        trial = self._sent[ticket]
        self._running.add(ticket)
        self.parallel_max = max(self.parallel_max, len(self._running))
        self._tell(OperationStarted(trial.run.phase.id, trial.operation.id, trial.attempt))

    def _ended(self, ticket: int, outcome: Outcome) -> None:
        trial = self._take_back(ticket)
        self._ledger.add(outcome.usage)
        outcome = trial.ended(outcome)
        if self._cache is not None and trial.attempt == 1 and (reply := self._asked.get(trial)) is not None:
            self._cache.offer(reply, outcome)
        if outcome.ok or trial.run.stop is not None or not self._again(trial, outcome):
            self._settle(trial, outcome)

    def _returned(self, ticket: int) -> None:
        trial = self._take_back(ticket)
        trial.ticket = 0
        if trial.run.stop is not None:
            self._settle_stopped(trial, trial.run.stop)
        else:
            self._ready.appendleft(trial)

    def _take_back(self, ticket: int) -> Trial:
        self._running.discard(ticket)
        return self._sent.pop(ticket)

    def _again(self, trial: Trial, outcome: Outcome) -> bool:
        """Give a rejected operation another attempt, if it has one left."""
        if outcome.reason == "worker lost" and not trial.repeated and self._policy(trial).repeatable:
            trial.repeated = True
            trial.attempt += 1
            self._ready.append(trial)
            return True
        if may_retry(outcome, trial.operation.retries, trial.retries_used):
            self._alarms.set(backoff_s(trial.retries_used, self._jitter), partial(self._ready.append, trial))
            trial.retries_used += 1
            trial.attempt += 1
            return True
        return False

    # -- settling ------------------------------------------------------------------------------------------------

    def _settle(self, trial: Trial, outcome: Outcome) -> None:
        run = trial.run
        self._asked.pop(trial, None)
        run.settle(trial, outcome)
        self._tell(OperationSettled(run.phase.id, trial.operation.id, outcome))
        if not run.open:
            self._uncommitted.append(run)

    def _settle_phases(self) -> None:
        """Commit the phases that ended since the last time, together; what follows from them starts after that."""
        runs, self._uncommitted = self._uncommitted, []
        results = [self._phase_result(run) for run in runs]
        if results:
            self._commit(results)
        for run, result in zip(runs, results, strict=True):
            self._settle_phase(run, result)

    def _phase_result(self, run: PhaseRun) -> PhaseResult:
        phase, now = run.phase, self._clock()
        started = run.started if run.started is not None else now
        operations = tuple(OperationResult(name, outcome) for name, outcome in run.settled)
        return PhaseResult(
            phase.id, phase.name, run.status(), phase.single, operations, started - self._began, now - started
        )

    def _settle_phase(self, run: PhaseRun, result: PhaseResult) -> None:
        phase, status = run.phase, result.status
        del self._open[phase.id]
        self.settled[phase.id] = result
        self._results.keep(phase.id, run.settled, single=phase.single)
        self._results.done(phase.dependencies)
        self._tell(PhaseSettled(phase.id, phase.name, status, run.fulfilled, len(run.outcomes), result.duration_s))
        ready, blocked = self._frontier.settle(phase.id, goes_on=status in GOES_ON)
        self._settle_never_started(blocked)
        if self.stop is None:
            self._open_phases(ready)

    def _settle_never_started(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.settled:
                phase = self._phases[name]
                self.settled[name] = PhaseResult(phase.id, phase.name, "blocked", phase.single)
                self._results.done(phase.dependencies)
                self._tell(PhaseSettled(phase.id, phase.name, "blocked", 0, len(phase.operations), 0.0))

    # -- stopping ------------------------------------------------------------------------------------------------

    def _obey_cancel(self) -> None:
        if self._cancelled and (self.stop is None or self.stop.reason != "cancelled"):
            self._stop_run(Stop("cancelled", "cancelled"))

    def _time_is_up(self) -> None:
        if self.stop is None:
            text = f"workflow timeout exceeded ({format_duration(self._terms.timeout_s)})"
            self._stop_run(Stop("timeout", text, "give it more time with --timeout"))

    def _budget_of_time_is_up(self) -> None:
        if self.stop is None and self._ledger.budgets.time_s is not None:
            self._stop_run(self._out_of_budget(time_excess(self._ledger.budgets.time_s)))

    def _keep_to_budgets(self) -> None:
        """Before anything starts: once a budget is reached nothing does, and what runs may end, for it is paid for."""
        if self.stop is None and self._ready and (excess := self._ledger.exceeded()):
            self._pause(self._out_of_budget(excess))

    def _out_of_budget(self, excess: Excess) -> Stop:
        self._tell(Notice("warning", f"{excess.text}; {excess.hint}"))
        return Stop("budget_exceeded", excess.text, excess.hint)

    def _pause(self, stop: Stop) -> None:
        self.stop = stop
        waiting = []
        for run in self._open_and_started():
            run.stop = run.stop or stop
            for trial in run.trials:
                if trial.ticket and trial.ticket not in self._running:
                    waiting.append(trial.ticket)
                elif not trial.ticket and not trial.settled:
                    self._settle_stopped(trial, run.stop)
        self._slots.cancel(waiting)
        self._ready.clear()

    def _phase_time_is_up(self, run: PhaseRun) -> None:
        if run.open and run.stop is None:
            text = f"phase timeout exceeded ({format_duration(run.phase.timeout_s)})"
            self._stop_phase(run, Stop("timeout", text, "give the phase a longer timeout"))

    def _stop_run(self, stop: Stop) -> None:
        self.stop = stop
        for run in self._open_and_started():
            self._stop_phase(run, stop)
        self._ready.clear()

    def _open_and_started(self) -> list[PhaseRun]:
        """The open phases, without those of which nothing was started yet: these are not open any more."""
        for run in list(self._open.values()):
            if run.started is None and run.open:
                del self._open[run.phase.id]
        return list(self._open.values())

    def _stop_phase(self, run: PhaseRun, stop: Stop) -> None:
        """End what runs; settle what does not. What has finished is kept."""
        run.stop = run.stop or stop
        self._slots.cancel(trial.ticket for trial in run.trials if trial.ticket)
        for trial in run.trials:
            if not trial.ticket and not trial.settled:
                self._settle_stopped(trial, run.stop)

    def _settle_stopped(self, trial: Trial, stop: Stop) -> None:
        self._settle(trial, trial.cut(stop))


def _look_again() -> None:
    """Nothing: the loop wakes up for it and looks at the memory."""
