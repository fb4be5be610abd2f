"""A run and a resume, crashed: at every call that changes a file, in every way, with and without power.

By default a sample of every sort of call and of crash. All of them: ``tox -e crash``. More kills: ``tox -e stress``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import cli_argv
from crash import order, powercut
from crash.campaign import WORKERS, Base, Bench, Trial, a_sample, every_trial, sort_of, spread, tried
from crash.harness import Call, Plan
from crash.warm import Warm
from crash.workload import NEEDS

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.sandbox.supervisor import Supervisor

if TYPE_CHECKING:
    from crash.shim import Tools

pytestmark = pytest.mark.timeout(300)  # a sample takes a minute; more where other work runs beside it
every_one = pytest.mark.crash
a_long_time = pytest.mark.timeout(3000)
FAULTS = ("kill", "fail", "short")
# What a resume starts from: runs that were killed, each with something else to be put in order.
BASES = (
    Base("half a checkpoint", Plan("kill", "middle", 1, only="write", about="/digest.1.json.")),
    Base("half an audit entry", Plan("kill", "middle", 3, only="write", about="/audit.jsonl")),  # start, grants, gather
    Base("artifacts not moved", Plan("kill", "before", 1, only="rename", about="/leaves.tmp")),
)


@pytest.fixture(scope="module", autouse=True)
def _sandbox(tmp_path_factory):
    supervisor = Supervisor(str(tmp_path_factory.mktemp("project")))
    try:
        supervisor.prepare()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    finally:
        supervisor.close()


@pytest.fixture(scope="module")
def warm(tools):
    """What forks for a run, instead of starting it."""
    with closing(Warm.up(tools, cli_argv())) as warm:
        yield warm


@pytest.fixture(scope="module")
def benches(tools, warm, tmp_path_factory):
    """What trials are made on."""
    return [Bench.at(tools, tmp_path_factory.mktemp("bench"), warm=warm) for _ in range(WORKERS)]


@pytest.fixture(scope="module")
def calls(benches):
    """What a run does when nothing comes between."""
    return benches[0].calls()


def test_a_run_that_is_forked_makes_every_sort_of_call_of_one_that_is_started(tools, tmp_path_factory, calls):
    # In a folder with a name as short as the other's: sockets go elsewhere where their path would be too long.
    started = Bench.at(tools, tmp_path_factory.mktemp("bench")).calls()

    assert {sort_of(call) for call in started} == {sort_of(call) for call in calls}


# -- the order of calls ---------------------------------------------------------------------------------------------

LOCK = re.compile(r"\.lock$|/cache/lock$")
LOG = re.compile(r"/logs/\w+\.jsonl$")
AUDIT = re.compile(r"/logs(/audit\.jsonl)?$")
HEAD = re.compile(r"/projects/\w+/audit$")
ANCHOR = re.compile(r"/anchors/[^/.]+$")
CACHE = re.compile(r"/\.sage/cache(/|$)|/projects/\w+/cache-\w+$")  # losing it costs time only
FOR_PEOPLE = re.compile(r"/ACTIVE_WORKFLOWS\.json$|/orchestration\.jsonl$|/run(/|$)")


def presumes(call: Call, path: str) -> bool:
    """An anchor says how far the state is, with what its checkpoints name; the head, how far the audit log."""
    if call.name == "pwrite" and ANCHOR.search(call.path):
        return not any(pattern.search(path) for pattern in (LOCK, LOG, HEAD, ANCHOR, CACHE, FOR_PEOPLE))
    if call.name == "pwrite" and HEAD.search(call.path):
        return bool(AUDIT.search(path))
    return False


def lasts(path: str) -> bool:
    """Anchor and head may stay behind the state and the log; they are not needed to read them."""
    return not any(pattern.search(path) for pattern in (LOCK, HEAD, ANCHOR, CACHE, FOR_PEOPLE))


RULES = order.Rules(
    in_place=lambda path: any(pattern.search(path) for pattern in (LOCK, LOG, HEAD, ANCHOR)),
    lasting=lasts,
    presumes=presumes,
)


def test_a_run_makes_durable_what_it_goes_on_from(calls):
    assert [] == order.problems(calls, RULES)


def test_a_resume_makes_durable_what_it_goes_on_from(benches):
    assert {} == spread(benches, BASES, lambda bench, base: order.problems(bench.calls(base), RULES))


def test_a_phase_starts_when_those_it_needs_are_durable_and_anchored(benches):
    bench = benches[0]
    calls = bench.calls()
    started = {name.partition("/")[0]: int(when) for name, when in map(str.split, bench.site.notes()) if when != "0"}

    for phase in NEEDS.keys() & started:
        renamed = next(call for call in calls if f"/{NEEDS[phase]}.1.json." in call.path and call.name == "rename")
        after = [call for call in calls if call.number > renamed.number]
        synced = next(call for call in after if call.name == "fsync")
        anchored = next(call for call in after if call.name == "pwrite" and ANCHOR.search(call.path))
        assert str(Path(renamed.other).parent) == synced.path
        assert synced.number < anchored.number
        assert anchored.ended_ns < started[phase]


# -- every sort of crash ---------------------------------------------------------------------------------------------


def test_a_run_survives_a_crash_of_every_sort(benches, calls):
    trials = a_sample(calls, FAULTS)

    assert {} == tried(benches, trials)
    assert {"before", "middle", "after", "once", "ever"} == {trial.plan.when for trial in trials}


def test_a_resume_survives_a_crash_of_every_sort(benches, calls):
    assert {} == tried(benches, resumes(benches[0], {sort_of(call) for call in calls}, a_sample))


@every_one
@a_long_time
def test_a_run_survives_every_crash(benches, calls):
    assert {} == tried(benches, every_trial(calls, FAULTS))


@every_one
@a_long_time
def test_a_resume_survives_every_crash(benches):
    assert {} == tried(benches, resumes(benches[0], set(), every_trial))


def resumes(bench: Bench, known: set[str], choose: Callable[..., list[Trial]]) -> list[Trial]:
    """Trials that start from each base, for the sorts of calls that are not known from elsewhere."""
    trials = []
    for base in BASES:
        calls = [call for call in bench.calls(base) if sort_of(call) not in known]
        trials += choose(calls, FAULTS, base)
        known |= {sort_of(call) for call in calls}
    return trials


# -- without power ---------------------------------------------------------------------------------------------------


def power_cuts(tools: Tools, folder: Path, kind: str, choose: Callable[..., list[Trial]]) -> dict[str, list[str]]:
    """Cut the power of a file system that a run works on; what was wrong, by trial."""

    def act(disk: powercut.Disk) -> dict[str, list[str]]:
        # Neither `warm` nor `tried`, which takes threads of its own: the disk is mounted for this thread alone.
        with closing(Warm.up(tools, cli_argv())) as warm:
            bench = Bench.on(tools, folder / "bench", disk, warm)
            calls = [call for call in bench.calls() if Path(call.path).is_relative_to(disk.mount)]
            found = ((trial, bench.problems_after(trial.plan)) for trial in choose(calls, ("cut",)))
            return {str(trial): problems for trial, problems in found if problems}

    return powercut.with_disk(kind, folder, act)


def sometimes(calls: Sequence[Call], verbs: Sequence[str]) -> list[Trial]:
    """A sample of the calls that make something durable, or say that it is."""
    return a_sample([call for call in calls if call.name in {"rename", "fsync", "pwrite"}], verbs)[::5]


@pytest.mark.parametrize("kind", powercut.KINDS)
def test_a_run_survives_power_cuts(tools, tmp_path, kind):
    if reason := powercut.missing(kind):
        pytest.skip(reason)

    assert {} == power_cuts(tools, tmp_path, kind, sometimes)


@every_one
@a_long_time
def test_a_run_survives_every_power_cut(tools, tmp_path):
    if reason := next(filter(None, map(powercut.missing, powercut.KINDS)), ""):
        pytest.skip(reason)

    def on(kind: str) -> dict[str, list[str]]:
        folder = tmp_path / kind
        folder.mkdir()
        return power_cuts(tools, folder, kind, every_trial)

    with ThreadPoolExecutor(len(powercut.KINDS)) as threads:
        assert [{}] * len(powercut.KINDS) == list(threads.map(on, powercut.KINDS))


# -- kill -9, at any moment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_benches(tools, warm, tmp_path_factory):
    """As `benches`, with runs of two operations at once."""
    return [Bench.at(tools, tmp_path_factory.mktemp("bench"), parallel=2, warm=warm) for _ in range(WORKERS)]


@pytest.mark.parametrize("kills", [6, pytest.param(500, marks=[pytest.mark.stress, a_long_time])])
def test_nothing_is_lost_to_kills_at_random(wide_benches, kills):
    longest_s = 1.2 * wide_benches[0].duration_s()

    assert {} == spread(wide_benches, range(kills), lambda bench, seed: bench.problems_after_kills(seed, longest_s))
