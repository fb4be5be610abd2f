"""Many processes in one project at once: what they do is done once, written down whole, and never kept waiting for."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import PACKAGE_FOLDER, cli_argv, run_cli

from sage_sandbox.audit import checking
from sage_sandbox.audit.files import find_head
from sage_sandbox.disk.files import sage_folder
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import ExitCode
from sage_sandbox.store.opening import open_keys

BOUND_S = 600.0
"""What takes longer hangs: bounds are for a busy machine, not for how fast it should be."""
NOT_KEPT_WAITING_S = 30.0
"""Well above the half second that a run has for its answer: a look that waits for a lock takes for ever."""
POLL_S = 0.02
GATES = 1024
LEVELS = [
    pytest.param(4, id="few"),
    pytest.param(30, id="many", marks=[pytest.mark.stress, pytest.mark.timeout(2 * BOUND_S)]),
]

NOTE = """
import fcntl, os

def note(name):
    fd = os.open("shared/executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{name}\\n".encode())
    os.close(fd)

def pass_gate(number):
    with open("shared/gates") as gates:
        fcntl.lockf(gates, fcntl.LOCK_SH, 1, number)
"""


def operation(name: str, *then: str) -> dict[str, Any]:
    """Notes that it ran, and then does what is written here."""
    lines = [f"note({name!r})", *then, f"return {name!r}"]
    code = NOTE + "def run():\n" + "".join(f"    {line}\n" for line in lines)
    return {"type": "python", "code": code, "policy": {"write_through": ["shared"]}}


def workflow(**phases: Any) -> dict[str, Any]:
    """One phase after the other, each an operation or several by id."""
    ids = list(phases)
    return {
        "name": "Shared",
        "phases": [
            {"id": phase, "name": phase.title(), "dependencies": ids[max(at - 1, 0) : at], "operations": operations}
            for at, (phase, operations) in enumerate(phases.items())
        ],
    }


@dataclass
class Site:
    """A project with a folder that its operations share: what they ran, and gates, which this process keeps shut.

    A gate is a byte of a file that is locked here: operations wait for it in the kernel.
    """

    project: Path
    output: Path
    gates: int = -1
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        return self.project / "shared"

    def write(self, document: Mapping[str, Any], name: str = "t") -> None:
        (self.project / f"{name}.json").write_text(json.dumps(document), "utf-8")

    def shut(self) -> None:
        self.gates = os.open(self.shared / "gates", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(self.gates, fcntl.LOCK_EX, GATES)

    def open(self, first: int, count: int = 1) -> None:
        if count:  # of none, lockf makes all
            fcntl.lockf(self.gates, fcntl.LOCK_UN, count, first)

    def start(self, *argv: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        """Start a process; what it says is for `said`."""
        number = len(self.started)
        with (self.output / f"{number}.out").open("wb") as out, (self.output / f"{number}.err").open("wb") as err:
            process = subprocess.Popen(
                argv,
                cwd=self.project,
                env={**os.environ, "PYTHONPATH": PACKAGE_FOLDER},
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )
        self.started.append(process)
        return process

    def run(self, feature: str, template: str = "t") -> subprocess.Popen[bytes]:
        allowed = ["--allow", "write-through:shared", "--parallel", "1", "--timeout", "30m"]
        return self.start(*cli_argv("run", f"{template}.json", feature, *allowed))

    def resume(self, feature: str) -> subprocess.Popen[bytes]:
        return self.start(*cli_argv("resume", feature, "--parallel", "1"))

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """Its stderr."""
        return (self.output / f"{self.started.index(process)}.err").read_text("utf-8")

    def executed(self) -> Counter[str]:
        """How often each operation ran."""
        path = self.shared / "executed"
        return Counter(path.read_text("ascii").splitlines() if path.exists() else ())

    def wait_until_executed(self, count: int) -> None:
        """Nothing tells when an operation has begun; it is looked for."""
        until = time.monotonic() + BOUND_S
        while self.executed().total() < count:
            assert time.monotonic() < until, f"only {self.executed()} have begun: {self.all_said()}"
            time.sleep(POLL_S)

    def all_said(self) -> list[str]:
        return [self.said(process) for process in self.started]

    def standing(self, feature: str) -> dict[str, Any]:
        """What `status --json` says."""
        done = run_cli("status", feature, "--full", "--json", cwd=self.project, timeout=BOUND_S)
        assert (0, "") == (done.returncode, done.stderr)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def running(self) -> set[str]:
        """What the list for people has."""
        raw = json.loads((self.project / ".sage" / "state" / "ACTIVE_WORKFLOWS.json").read_text("utf-8"))
        return {item["feature"] for item in raw["workflows"]}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "project", tmp_path / "said")
    made.shared.mkdir(parents=True)
    made.output.mkdir()
    made.shut()
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    os.close(made.gates)


def wait_for(processes: Sequence[subprocess.Popen[bytes]], *, but: int = 0) -> list[subprocess.Popen[bytes]]:
    """Wait until so many processes are left; those."""
    until = time.monotonic() + BOUND_S
    with watched(processes) as left:
        poll = select.poll()
        for pidfd in left:
            poll.register(pidfd, select.POLLIN)
        while len(left) > but:
            ended = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            assert ended, f"{len(left)} processes go on after {BOUND_S} seconds"
            for pidfd, _ in ended:
                poll.unregister(pidfd)
                left.pop(pidfd).wait()
        return list(left.values())


@contextmanager
def watched(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Processes by a descriptor that is readable once they have ended."""
    with ExitStack() as stack:
        found = {os.pidfd_open(process.pid): process for process in processes}
        for pidfd in found:
            stack.callback(os.close, pidfd)
        yield dict(found)


def expect_one_goes_on(site: Site, processes: Sequence[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """All but one are refused by name, while that one waits at its gate."""
    (holder,) = wait_for(processes, but=1)
    refused = [process for process in processes if process is not holder]

    assert {ExitCode.LOCKED} == {process.returncode for process in refused}, site.all_said()
    assert all(f"pid {holder.pid} " in site.said(process) for process in refused), site.all_said()
    return holder


def expect_whole_logs(site: Site, told: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Both logs parse, the audit log verifies up to what its head knows of, and tells these of every feature."""
    place = project_place(site.project, make=False)
    assert place is not None
    with place.folder, sage_folder(site.project, "logs") as folder:
        key = open_keys(os.environ, place, make=False).audit_key(place.id)
        verdict, head = checking.verify(folder, place.folder, key), find_head(place.folder)
        entries = list(checking.entries(folder))
        lines = {name: folder.read(name, 1 << 30).splitlines() for name in ("audit.jsonl", "orchestration.jsonl")}
    heard: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        heard.setdefault(entry.feature, []).append((entry.kind, str(entry.data.get("phase", ""))))

    assert ((), False, len(lines["audit.jsonl"])) == (verdict.problems, verdict.torn, verdict.entries)
    assert head is not None
    assert verdict.entries == head.seq
    assert {feature: list(kinds) for feature, kinds in told.items()} == heard
    ended = Counter(
        line["context"]["feature"]
        for line in map(json.loads, lines["orchestration.jsonl"])
        if line["message"].startswith("run completed")
    )
    assert Counter(told.keys()) == ended
    assert all(isinstance(json.loads(line), dict) for line in lines["audit.jsonl"])


def expect_nothing_left(site: Site) -> None:
    assert set() == site.running()
    assert [] == [str(path) for path in (site.project / ".sage").rglob("*.tmp")]


# -- on one feature ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", LEVELS)
def test_of_many_that_run_or_resume_one_feature_one_does_and_the_others_are_refused(site: Site, count: int) -> None:
    better = "assert os.path.exists('shared/better')"
    second = [{"id": "x", **operation("second/x")}, {"id": "y", **operation("second/y", "pass_gate(1)", better)}]
    site.write(workflow(first=operation("first", "pass_gate(0)"), second=second, third=operation("third")))

    holder = expect_one_goes_on(site, [site.run("f") for _ in range(count)])
    site.wait_until_executed(1)
    assert {"f"} == site.running()
    assert {"first": 1} == site.executed()
    site.open(0, 2)
    wait_for([holder])
    assert ExitCode.PAUSED == holder.returncode, site.said(holder)
    assert {"first": 1, "second/x": 1, "second/y": 1} == site.executed()

    fcntl.lockf(site.gates, fcntl.LOCK_EX, 1, 1)
    (site.shared / "better").touch()
    holder = expect_one_goes_on(site, [site.resume("f") for _ in range(count)])
    site.open(1)
    wait_for([holder])

    assert ExitCode.DONE == holder.returncode, site.said(holder)
    assert {"first": 1, "second/x": 1, "second/y": 2, "third": 1} == site.executed()
    assert "completed" == site.standing("f")["status"]
    begun = [("start", ""), ("grants", ""), ("state", "first"), ("state", "second"), ("stop", "")]
    expect_whole_logs(site, {"f": [*begun, ("resume", ""), ("state", "second"), ("state", "third"), ("stop", "")]})
    expect_nothing_left(site)


# -- on different features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", LEVELS)
def test_many_features_at_once_each_run_every_phase_once(site: Site, count: int) -> None:
    features = [f"feature-{number}" for number in range(count)]
    for feature in features:
        names = {phase: f"{feature}/{phase}" for phase in ("first", "second", "third")}
        first = operation(names["first"], "pass_gate(0)")
        document = workflow(first=first, second=operation(names["second"]), third=operation(names["third"]))
        site.write(document, feature)

    processes = [site.run(feature, feature) for feature in features]
    site.wait_until_executed(count)
    together = site.running()
    site.open(0)
    wait_for(processes)

    assert set(features) == together
    assert {ExitCode.DONE} == {process.returncode for process in processes}, site.all_said()
    assert Counter(f"{feature}/{phase}" for feature in features for phase in ("first", "second", "third")) == (
        site.executed()
    )
    phases = [{"id": phase, "status": "completed"} for phase in ("first", "second", "third")]
    listed = json.loads(run_cli("list", "--json", cwd=site.project, timeout=BOUND_S).stdout)["workflows"]
    assert dict.fromkeys(features, ("completed", 100)) == {
        item["feature"]: (item["status"], item["progress"]) for item in listed
    }
    assert phases == site.standing(features[0])["phases"]
    kinds = [("start", ""), ("grants", ""), *(("state", phase["id"]) for phase in phases), ("stop", "")]
    expect_whole_logs(site, dict.fromkeys(features, kinds))
    expect_nothing_left(site)


# -- looked at meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "phases"),
    [
        pytest.param(300, 15, id="few"),
        pytest.param(10_000, 500, id="many", marks=[pytest.mark.stress, pytest.mark.timeout(2 * BOUND_S)]),
    ],
)
def test_status_is_read_while_a_run_writes_without_error_or_step_back(site: Site, looks: int, phases: int) -> None:
    names = [f"p-{number}" for number in range(phases)]
    site.write(workflow(**{name: operation(name, f"pass_gate({at})") for at, name in enumerate(names)}))
    run = site.run("f")
    site.wait_until_executed(1)

    # Phases end as the looks go on, so that all of these see a run that writes.
    heard, said = os.pipe()
    script = str(Path(__file__).with_name("status_reader.py"))
    shares = (looks // 2, looks - looks // 2)
    readers = [site.start(sys.executable, "-P", script, str(site.project), "f", str(n), stdout=said) for n in shares]
    os.close(said)
    counted = 0
    while counted < looks:
        assert select.select([heard], [], [], BOUND_S)[0], site.all_said()
        more = len(os.read(heard, 4096))
        assert more, site.all_said()
        if counted // (looks // 4) < (counted := counted + more) // (looks // 4):
            assert "running" == site.standing("f")["status"]
        site.open(0, counted * (phases - 1) // looks)
    site.open(0, phases)
    os.close(heard)
    wait_for([run, *readers])
    reports = [json.loads(site.said(reader)) for reader in readers]

    assert [] == [wrong for report in reports for wrong in report["wrong"]]
    assert looks <= sum(report["looks"] for report in reports)
    assert max(report["slowest_s"] for report in reports) < NOT_KEPT_WAITING_S
    assert ExitCode.DONE == run.returncode, site.said(run)
    assert Counter(names) == site.executed()
    assert {"completed": phases, "total": phases, "percentage": 100} == site.standing("f")["progress"]
    kinds = [("start", ""), ("grants", ""), *(("state", name) for name in names), ("stop", "")]
    expect_whole_logs(site, {"f": kinds})
    expect_nothing_left(site)
