"""Many crashes of the same run: which there are, a sample of every kind, and how each is tried."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from crash.harness import Call, Harness, Plan, Timer, plans_for
from crash.workload import LINGER_S, Site, Story

from sage_sandbox.errors import SageError

if TYPE_CHECKING:
    from crash import powercut
    from crash.shim import Tools
    from crash.warm import Warm

T = TypeVar("T")
WORKERS = 2
"""How many trials at once."""


@dataclass(frozen=True)
class Base:
    """Where a trial starts: with nothing, or with what an earlier crash left, which is put back before each trial."""

    name: str = "nothing"
    plan: Plan | None = None


NOTHING = Base()


@dataclass
class Bench:
    """A site, the harness that watches it, and what was put away to start from. For one thread at a time."""

    site: Site
    harness: Harness
    shelf: Path
    recover: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None

    @classmethod
    def at(
        cls, tools: Tools, folder: Path, *, top: Path | None = None, parallel: int = 1, warm: Warm | None = None
    ) -> Bench:
        """One below ``folder``, or with what may be lost at ``top``."""
        for name in ("harness", "shelf"):
            (folder / name).mkdir(parents=True)
        site = Site(top or folder / "top", folder / "elsewhere", parallel)
        return cls(site, Harness(tools, folder / "harness", site.watched, warm=warm), folder / "shelf")

    @classmethod
    def on(cls, tools: Tools, folder: Path, disk: powercut.Disk, warm: Warm) -> Bench:
        """One whose power can be cut."""
        bench = cls.at(tools, folder, top=disk.mount, warm=warm)
        harness = replace(bench.harness, mount=disk.mount)

        def recover() -> None:
            disk.replay()
            bench.site.reboot()

        return cls(bench.site, harness, bench.shelf, recover=recover, settle=disk.sync)

    def begin(self, base: Base) -> Story:
        """Everything as it was at the base."""
        kept = self.shelf / base.name
        if base.plan is None:
            self.site.make()
        elif kept.exists():
            self.site.clear()
            self.site.runtime.mkdir(mode=0o700)
            shutil.copytree(kept / "top", self.site.top, dirs_exist_ok=True)
            shutil.copytree(kept / "record", self.site.record.parent)
        else:
            self._prepare(base.plan, kept)
        self.settle()
        story = Story(self.site, self.harness)
        if base.plan is not None:
            story.next()
            story.look(None)
        return story

    def calls(self, base: Base = NOTHING) -> tuple[Call, ...]:
        """What is done from there to the end when nothing comes between."""
        story = self.begin(base)
        result = self.harness.run(story.next(), trace=True, linger_s=LINGER_S)
        story.look(result)
        story.problems += [] if result.code == 0 else [result.stderr]
        problems = story.end()
        assert not problems, problems
        return result.calls

    def duration_s(self) -> float:
        """How long it takes when nothing comes between."""
        story = self.begin(NOTHING)
        start = time.monotonic()
        self.harness.run(story.next())
        return time.monotonic() - start

    def problems_after(self, plan: Plan, base: Base = NOTHING) -> list[str]:
        """What is wrong after one crash or fault, and after the run has gone on to its end."""
        story = self.begin(base)
        crashes = plan.verb in {"kill", "cut"}
        result = self.harness.run(story.next(), plan, linger_s=0 if crashes else LINGER_S)
        if result.fired == "not cut":
            return ["the power was not cut"]
        if result.fired == "crashed":
            self.recover()
            story.look(None)
        else:  # a run does not make the same number of calls each time: this one may have come to its end
            story.look(result)
        return story.end(power_cut=plan.verb == "cut")

    def problems_after_kills(self, seed: int, longest_s: float) -> list[str]:
        """What is wrong after kills at random times, of the whole tree or of the first process alone."""
        chance = random.Random(seed)
        story = self.begin(NOTHING)
        with ExitStack() as lingering:
            orphans = False
            for _ in range(chance.choice((1, 1, 2, 3))):
                timer = Timer(chance.uniform(0.0, longest_s), chance.choice(("tree", "process")))
                # Whoever goes on does not wait until the workers of the dead have noticed.
                running = lingering.enter_context(self.harness.started(story.next(), timer=timer, linger_s=LINGER_S))
                killed = running.ended() < 0
                orphans = orphans or timer.scope == "process"
                story.look(None if killed else running.result(), orphans=orphans)
            return story.end()

    def _prepare(self, plan: Plan, kept: Path) -> None:
        self.site.make()
        result = self.harness.run(self.site.run, plan)
        assert result.fired == "crashed", result
        shutil.copytree(self.site.top, kept / "top", ignore=shutil.ignore_patterns("lost+found"))
        shutil.copytree(self.site.record.parent, kept / "record")


# -- which trials there are ------------------------------------------------------------------------------------------

_ROLES = {
    "lock": r"\.lock$|/cache/lock$",
    "temporary checkpoint": r"/workflow-[a-z]+/[a-z]+\.\d+\.json\.\w+\.tmp$",
    "checkpoint": r"/workflow-[a-z]+/[a-z]+\.\d+\.json$",
    "definition": r"/_definition\.",
    "backup": r"\.json\.bak",
    "list of what runs": r"/ACTIVE_WORKFLOWS\.json",
    "main file": r"/workflow-[a-z]+\.json",
    "anchor": r"/anchors/.",
    "audit's head": r"/projects/\w+/audit",
    "audit log": r"/audit\.jsonl",
    "log": r"\.jsonl$",
    "project's id": r"/projects/\w+/project",
    "key": r"/state\.key",
    "cache": r"/\.sage/cache/|/projects/\w+/cache-",
    "artifact": r"/artifacts/.*\.txt$",
    "artifacts": r"/artifacts(/|$)",
    "socket": r"/run/",
}


def sort_of(call: Call) -> str:
    """What sort of boundary a call is: what is done, and to which of the files."""
    path = call.other or call.path
    role = next((role for role, pattern in _ROLES.items() if re.search(pattern, path)), "folder")
    return f"{call.name} {role}"


@dataclass(frozen=True)
class Trial:
    """One crash to try."""

    plan: Plan
    base: Base = NOTHING
    label: str = ""

    def __str__(self) -> str:
        return f"{self.base.name}: {self.plan}: {self.label}"


def every_trial(calls: Sequence[Call], verbs: Sequence[str], base: Base = NOTHING) -> list[Trial]:
    """Every plan for every call. After one call is before the next: only the last has an after of its own."""
    return [
        Trial(plan, base, sort_of(call))
        for call in calls
        for plan in plans_for([call], verbs)
        if plan.when != "after" or call is calls[-1]
    ]


def a_sample(calls: Sequence[Call], verbs: Sequence[str], base: Base = NOTHING) -> list[Trial]:
    """One plan for a call of every sort, another plan for each: every plan has its turns."""
    by_sort = {sort_of(call): call for call in calls}
    plans = [(sort, list(plans_for([call], verbs))) for sort, call in sorted(by_sort.items())]
    return [Trial(of_sort[turn % len(of_sort)], base, sort) for turn, (sort, of_sort) in enumerate(plans)]


def spread(benches: Sequence[Bench], things: Iterable[T], act: Callable[[Bench, T], list[str]]) -> dict[str, list[str]]:
    """Do something with every thing, as many at once as there are benches; what was wrong, by thing."""
    free: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        free.put(bench)

    def one(thing: T) -> tuple[str, list[str]]:
        bench = free.get()
        try:
            return str(thing), act(bench, thing)
        except (AssertionError, SageError, OSError) as error:
            return str(thing), [f"{type(error).__name__}: {error}"]
        finally:
            free.put(bench)

    with ThreadPoolExecutor(len(benches)) as threads:
        return {thing: found for thing, found in threads.map(one, things) if found}


def tried(benches: Sequence[Bench], trials: Iterable[Trial]) -> dict[str, list[str]]:
    """Try them all; what was wrong, by trial."""
    return spread(benches, trials, lambda bench, trial: bench.problems_after(trial.plan, trial.base))
