"""Many crashes of the same run: which there are, a sample of every kind, and how each is tried."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from crash.harness import Call, Harness, Plan, Timer
from crash.workload import LINGER_S, Site, Story

if TYPE_CHECKING:
    from crash import powercut
    from crash.shim import Tools

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
    def at(cls, tools: Tools, folder: Path, *, top: Path | None = None, parallel: int = 1) -> Bench:
        """One below ``folder``, or with what may be lost at ``top``."""
        for name in ("harness", "shelf"):
            (folder / name).mkdir(parents=True)
        site = Site(top or folder / "top", folder / "elsewhere", parallel)
        return cls(site, Harness(tools, folder / "harness", site.watched), folder / "shelf")

    @classmethod
    def on(cls, tools: Tools, folder: Path, disk: powercut.Disk) -> Bench:
        """One whose power can be cut."""
        bench = cls.at(tools, folder, top=disk.mount)
        harness = replace(bench.harness, mount=disk.mount)
        return cls(bench.site, harness, bench.shelf, recover=disk.replay, settle=disk.sync)

    def begin(self, base: Base) -> Story:
        """Everything as it was at the base."""
        kept = self.shelf / base.name
        if base.plan is None:
            self.site.make()
        elif kept.exists():
            self.site.clear()
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
        assert [] == story.end()
        return result.calls

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
                how = {"timer": timer, "linger_s": LINGER_S if timer.scope == "process" else 0.0}
                # Whoever goes on does not wait until the workers of the dead have noticed.
                running = lingering.enter_context(self.harness.started(story.next(), **how))  # type: ignore[arg-type]
                killed = running.ended() < 0
                orphans = orphans or timer.scope == "process"
                story.look(None if killed else running.result(), orphans=orphans)
            return story.end()

    def _prepare(self, plan: Plan, kept: Path) -> None:
        self.site.make()
        result = self.harness.run(self.site.run, plan)
        assert result.fired == "crashed", result
        shutil.rmtree(self.site.runtime)  # sockets of the dead cannot be copied
        self.site.runtime.mkdir(mode=0o700)
        shutil.copytree(self.site.top, kept / "top", ignore=shutil.ignore_patterns("lost+found"))
        shutil.copytree(self.site.record.parent, kept / "record")


@dataclass(frozen=True)
class Trial:
    """One crash to try."""

    plan: Plan
    base: Base = NOTHING
    label: str = ""

    def __str__(self) -> str:
        return f"{self.base.name}: {self.plan}: {self.label}"


def tried(benches: Sequence[Bench], trials: Iterable[Trial]) -> dict[str, list[str]]:
    """Try them all, as many at once as there are benches; what was wrong, by trial."""
    return spread(benches, trials, lambda bench, trial: bench.problems_after(trial.plan, trial.base))


def spread(benches, things, act) -> dict[str, list[str]]:
    """Do something with every thing on one bench or another; what was wrong, by thing."""
    free: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        free.put(bench)

    def one(thing) -> tuple[str, list[str]]:
        bench = free.get()
        try:
            return str(thing), act(bench, thing)
        except AssertionError as error:
            return str(thing), [f"{type(error).__name__}: {error}"]
        finally:
            free.put(bench)

    with ThreadPoolExecutor(len(benches)) as threads:
        return {thing: found for thing, found in threads.map(one, things) if found}


def kind_of(call: Call) -> str:
    """A call without what differs from run to run: what sort of boundary it is."""
    path = re.sub(r"(?<=[.-])[0-9a-z_]{8}(?=[./]|$)|[0-9a-f]{32}", "*", f"{call.path} {call.other}".strip())
    return f"{call.name} {path}"
