"""What is measured: a supervisor in this process, slots that stay open, the command line as a process of its own."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.graphs import NOTHING
from sage_sandbox.disk.places import project_place
from sage_sandbox.dispatch.dispatcher import Dispatcher
from sage_sandbox.dispatch.reports import Finished, Lost, Returned, Started, Withheld
from sage_sandbox.document import RunResult
from sage_sandbox.events import Event, OperationSettled, OperationStarted
from sage_sandbox.journal import Journal, utc_now
from sage_sandbox.operations.base import Task
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Policy
from sage_sandbox.runner import Runner
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.store.opening import open_keys
from sage_sandbox.store.records import Definition
from sage_sandbox.workflow.definition import Workflow

_ASLEEP: Final = "import time\ndef run():\n    time.sleep(60)\n"
_WARM_UP: Final = 60
"""Operations until a slot's pace, a moving mean, has forgotten its first ones."""


def python_job(project: str, *, code: str = NOTHING, reads: bool = False) -> Job:
    """A Python operation, without grants or with ``read: ["."]``."""
    policy = Policy(read=(project,)) if reads else Policy()
    return Job("python", code=code, project=project, policy=policy)


def fulfilled(outcome: Outcome) -> Outcome:
    """The outcome; a benchmark of something that failed measures nothing."""
    if not outcome.ok:
        raise RuntimeError(f"an operation was rejected: {outcome.reason}: {outcome.error}")
    return outcome


def in_process(supervisor: Supervisor, job: Job) -> Callable[[], object]:
    """A call that runs one operation, from submit to result."""
    return lambda: fulfilled(supervisor.run(job))


class KeptOpen(Dispatcher):
    """The slots of the runner, warm, and not closed by the runs they serve; `end` ends them.

    Every slot has a worker, a zygote and a spare before the first measurement: as many operations as there are slots
    are started side by side and cancelled once all of them run.
    """

    def __init__(self, project: str, slots: int) -> None:
        super().__init__(project, parallel=slots)
        try:
            self._occupy(project, slots)
            for _ in range(_WARM_UP):
                self.one(python_job(project))
        except BaseException:
            self.end()
            raise

    def close(self) -> None:
        """Nothing: a run ends here, the slots do not."""

    def end(self) -> None:
        """End every worker."""
        super().close()

    def one(self, job: Job) -> Outcome:
        """Run one operation through a slot, as the runner does; from submit to result."""
        self.send((Task(1, "benchmark", "op-1", 1, job),))
        while True:
            for news in self.wait(None):
                match news:
                    case Finished(_, outcome):
                        return fulfilled(outcome)
                    case Withheld(error):
                        raise error
                    case Lost() | Returned():
                        raise RuntimeError(f"the operation came back: {news}")

    def _occupy(self, project: str, slots: int) -> None:
        waiting = [Task(n, "warm-up", "op-1", 1, python_job(project, code=_ASLEEP)) for n in range(1, slots + 1)]
        started = ended = 0
        self.grow(slots)
        while ended < slots:
            if waiting and self.room(1):
                self.send((waiting.pop(0),))
            for news in self.wait(0.1):
                if isinstance(news, Withheld):
                    raise news.error
                started += isinstance(news, Started)
                ended += isinstance(news, Finished | Lost)
            if started == slots:
                self.cancel(range(1, slots + 1))


class Stopwatch:
    """An observer: when the first operation was begun and the last was settled (monotonic seconds)."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def __call__(self, event: Event) -> None:
        """Note the time of what matters."""
        if isinstance(event, OperationSettled):
            self.last = time.monotonic()
        elif isinstance(event, OperationStarted) and not self.first:
            self.first = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """From the first to the last."""
        return self.last - self.first


def run(
    workflow: Workflow, slots: KeptOpen, project: str, *, watch: Stopwatch | None = None, reads: bool = False
) -> RunResult:
    """Run a workflow on warm slots, to success."""
    read = Policy(read=(project,))
    policies = {(phase.id, operation.id): read for phase in workflow.phases for operation in phase.operations}
    result = Runner(
        workflow,
        feature="benchmark",
        project=project,
        policies=policies if reads else {},
        observers=(watch,) if watch else (),
        dispatcher=slots,
    ).run()
    if result.status != "completed":
        raise RuntimeError(f"the run ended as {result.status}: {result.errors[:1]}")
    return result


class Saved:
    """A project with a user of its own, whose runs are saved: encrypted, phase by phase, as the runner does."""

    def __init__(self, folder: Path) -> None:
        self.project = str((folder / "project").resolve())
        self.environ = {"HOME": str((folder / "home").resolve())}
        for path in (self.project, self.environ["HOME"]):
            Path(path).mkdir()

    def open(self) -> Journal:
        """The journal of the next run; what the one before left is put aside when it begins."""
        place = project_place(Path(self.project), self.environ)
        keys = open_keys(self.environ, place)
        journal, _ = Journal.open(Path(self.project), place, "benchmark", keys)
        return journal

    def run(self, workflow: Workflow, slots: KeptOpen) -> RunResult:
        """Run a workflow on warm slots, to success, everything that a real run writes included."""
        journal = self.open()
        journal.begin(definition(workflow), workflow)
        runner = Runner(workflow, feature="benchmark", project=self.project, dispatcher=slots, environ=self.environ)
        runner.saved_by(journal)
        result = runner.run()
        shutil.rmtree(Path(self.project, ".sage", "state", "aside"), ignore_errors=True)
        if result.status != "completed":
            raise RuntimeError(f"the run ended as {result.status}: {result.errors[:1]}")
        return result


def definition(workflow: Workflow, text: str = "", source: str = "") -> Definition:
    """What a run of a workflow goes by."""
    ids = tuple(phase.id for phase in workflow.phases)
    return Definition(1, workflow.name, "json", source, workflow.digest, text, ids, utc_now())


def cli_argv(*arguments: str) -> list[str]:
    """How a user starts the command line: the installed script where there is one."""
    script = Path(sys.executable).with_name("sage-sandbox")
    return [str(script), *arguments] if script.exists() else [sys.executable, "-P", "-m", "sage_sandbox", *arguments]


def cores() -> int:
    """How many processes can run at once."""
    return len(os.sched_getaffinity(0))
