"""The run that is crashed, and what must hold after a crash and after the resume that follows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import cli_argv
from crash.harness import Command, Harness, Result

from sage_sandbox.audit import checking
from sage_sandbox.audit.log import FALLBACK
from sage_sandbox.disk.files import Folder, sage_folder
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import NoSuchRun
from sage_sandbox.store.layout import state_folder
from sage_sandbox.store.opening import open_keys
from sage_sandbox.store.reading import Found, read_run

FEATURE = "crashed"
SECRET_NAME = "CRASH_SECRET"
SECRET = "correct-horse-battery-staple"
"""What an operation is given by --allow env:, and returns: no file may hold it."""
PHASES = {
    "gather": ("gather/returns", "gather/leaves"),
    "apart": ("apart/op-1",),
    "digest": ("digest/op-1",),
    "report": ("report/op-1",),
}
NEEDS = {"digest": "gather", "report": "digest"}
LEFT = {"gather/leaves": {"one.txt", "below/two.txt"}, "report/op-1": {"report.txt"}}
OPERATIONS = frozenset(name for names in PHASES.values() for name in names)
LINGER_S = 10.0
"""How long processes may take to notice that the run has ended."""
_CHECKPOINT = re.compile(r"([a-z0-9-]+)\.\d+\.json")

_RECORD = """
import os, time

def record(name):
    fd = os.open({record!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{{name}} {{time.monotonic_ns()}}\\n".encode())
    os.close(fd)
"""
_RETURNS = f"""
def run():
    record("gather/returns")
    return {{"length": len(os.environ["{SECRET_NAME}"]), "value": os.environ["{SECRET_NAME}"]}}
"""
_LEAVES = """
def run():
    record("gather/leaves")
    out = os.environ["SAGE_OUT"]
    os.makedirs(f"{out}/below")
    for name in ("one.txt", "below/two.txt"):
        with open(f"{out}/{name}", "w") as file:
            file.write(name * 1000)
    return "left"
"""
_APART = """
def run():
    record("apart/op-1")
    return 1
"""
_DIGEST = """
def run(inputs):
    record("digest/op-1")
    return inputs["gather"]["returns"]["length"]
"""
_REPORT = 'echo report/op-1 0 >> {record}; echo of {feature} > "$SAGE_OUT/report.txt"; echo said'


def template(record: Path) -> dict[str, Any]:
    """Four phases, five operations: each notes in ``record`` that it ran, two leave files, one returns a secret."""
    policy = {"write_through": [str(record.parent)]}

    def python(code: str, **fields: Any) -> dict[str, Any]:
        return {"type": "python", "code": _RECORD.format(record=str(record)) + code, "policy": policy, **fields}

    def phase(name: str, operations: Any) -> dict[str, Any]:
        needs = [NEEDS[name]] if name in NEEDS else []
        return {"id": name, "name": name.title(), "dependencies": needs, "operations": operations}

    report = _REPORT.format(record=record, feature=FEATURE)
    return {
        "name": FEATURE,
        "phases": [
            phase(
                "gather",
                [
                    python(_RETURNS, id="returns", policy={**policy, "env": [SECRET_NAME]}),
                    python(_LEAVES, id="leaves"),
                ],
            ),
            phase("apart", python(_APART)),
            phase("digest", python(_DIGEST)),
            phase("report", {"type": "command", "argv": ["/bin/sh", "-c", report], "policy": policy}),
        ],
    }


@dataclass(frozen=True)
class Site:
    """A project and a user's folders, below ``top``, which may lose power; and what operations noted, elsewhere."""

    top: Path
    elsewhere: Path
    parallel: int = 1

    @property
    def project(self) -> Path:
        return self.top / "project"

    @property
    def home(self) -> Path:
        return self.top / "home"

    @property
    def runtime(self) -> Path:
        """For sockets: what is there does not outlive a power cut, so it is not where the power is cut."""
        return self.elsewhere / "run"

    @property
    def record(self) -> Path:
        return self.elsewhere / "notes" / "executed"

    @property
    def watched(self) -> tuple[Path, ...]:
        """Where calls count."""
        return self.project, self.home, self.runtime

    @property
    def env(self) -> dict[str, str]:
        """A user's environment with nothing of the tests' own in it."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            SECRET_NAME: SECRET,
        }

    def make(self) -> None:
        """Nothing has ever run here."""
        self.clear()
        for folder in (*self.watched, self.record.parent):
            folder.mkdir(parents=True, mode=0o700)
        templates = self.project / ".sage" / "templates"
        templates.mkdir(parents=True)
        (templates / f"{FEATURE}.json").write_text(json.dumps(template(self.record)), "utf-8")

    def reboot(self) -> None:
        """Take away what does not outlive a power cut."""
        shutil.rmtree(self.runtime)
        self.runtime.mkdir(mode=0o700)

    def clear(self) -> None:
        """Take all of it away."""
        for folder in (*self.watched, self.record.parent):
            shutil.rmtree(folder, ignore_errors=True)

    def command(self, *words: str) -> Command:
        """``sage-sandbox WORDS`` in the project."""
        return Command(cli_argv(*words), self.project, self.env)

    @property
    def run(self) -> Command:
        """Start it."""
        grants = (f"write-through:{self.record.parent}", f"env:{SECRET_NAME}")
        allowed = [word for grant in grants for word in ("--allow", grant)]
        return self.command("run", FEATURE, "--parallel", str(self.parallel), *allowed)

    @property
    def resume(self) -> Command:
        """Go on with it."""
        return self.command("resume", FEATURE, "--parallel", str(self.parallel))

    def found(self) -> Found | None:
        """What is saved, read as the program reads it; None if nothing is."""
        place = project_place(self.project, self.env, make=False)
        if place is None:
            return None
        with place.folder:
            try:
                with state_folder(self.project) as folder:
                    return read_run(folder, place, FEATURE, open_keys(self.env, place, make=False))
            except (FileNotFoundError, NoSuchRun):
                return None

    def checkpoints(self) -> set[str]:
        """The phases that have a checkpoint, by its name alone."""
        names = (path.name for path in self.project.glob(f".sage/state/workflow-{FEATURE}/*.json"))
        return {match[1] for name in names if (match := _CHECKPOINT.fullmatch(name))}

    def executed(self) -> Counter[str]:
        """How often each operation has run."""
        return Counter(line.split()[0] for line in self.notes())

    def notes(self) -> list[str]:
        """A line for each time an operation ran: its name, and when by the monotonic clock (0: it could not tell)."""
        return self.record.read_text("ascii").splitlines() if self.record.exists() else []


def committed(found: Found | None) -> frozenset[str]:
    """The operations that must never run again."""
    phases = found.checkpoints if found else {}
    return frozenset(
        f"{phase}/{name}"
        for phase, checkpoint in phases.items()
        for name, outcome in checkpoint.operations
        if outcome.ok
    )


@dataclass
class Story:
    """A run from its start to its end, however many crashes lie between, and all that was wrong on the way."""

    site: Site
    harness: Harness
    problems: list[str] = field(default_factory=list)
    kept: frozenset[str] = frozenset()
    before: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    """How often each operation may have run by now: once for each process that found it not committed."""

    def next(self) -> Command:
        """What its user would do now: start it, or go on with it. `look` comes after."""
        self.most.update(OPERATIONS - self.kept)
        return self.site.run if self.site.found() is None else self.site.resume

    def look(self, result: Result | None, *, orphans: bool = False) -> None:
        """What must hold when a process has ended; ``result``: None if it was killed.

        ``orphans``: of processes that were killed alone, something may still be running.
        """
        found = self.site.found()
        executed = self.site.executed()
        now = committed(found)
        self._expect(self.kept <= now, f"committed and gone: {sorted(self.kept - now)}")
        self._expect(executed <= self.most, f"{executed} have run, and should at most {self.most}")
        again = {name for name, count in (executed - self.before).items() if count > (name not in self.kept)}
        self._expect(orphans or not again, f"{sorted(again)} ran again")
        for phase, need in NEEDS.items():
            started = any(executed[name] for name in PHASES[phase])
            self._expect(not started or now.issuperset(PHASES[need]), f"{phase} ran before {need} was committed")
        if result is None:
            in_place = {name for phase in self.site.checkpoints() for name in PHASES[phase]}
            self._expect(in_place == now, f"checkpoints of {sorted(in_place)}, which hold {sorted(now)}")
        else:
            self._look_at(result, now)
        self.kept, self.before = now, executed

    def end(self, *, power_cut: bool = False) -> list[str]:
        """Go on to the end without another crash; everything that was wrong."""
        nothing = self.site.found() is None
        self.next()
        result = self.harness.run(self.site.resume, linger_s=LINGER_S)
        if nothing:
            self._expect(result.code == 10, f"resume of nothing: exit code {result.code}: {result.stderr[-1000:]}")
            result = self.harness.run(self.site.run, linger_s=LINGER_S)
        self._expect(result.code == 0, f"exit code {result.code} at the end: {result.stderr[-1500:]}")
        self.look(result)
        self._expect(self.kept == OPERATIONS, f"not everything is saved: {sorted(self.kept)}")
        self.problems += wrong_on_disk(self.site, power_cut=power_cut)
        return self.problems

    def _look_at(self, result: Result, now: frozenset[str]) -> None:
        self._expect(result.code >= 0, f"ended by signal {-result.code}")
        self._expect(result.code != 0 or now == OPERATIONS, f"exit code 0 with only {sorted(now)} saved")
        self._expect(result.left == 0, f"{result.left} processes are left")
        for word in ("Traceback", "internal error", SECRET):
            self._expect(word not in result.stderr + result.stdout, f"it said {word!r}: {result.stderr[-1000:]}")

    def _expect(self, claim: bool, otherwise: str) -> None:
        if not claim:
            self.problems.append(otherwise)


def wrong_on_disk(site: Site, *, power_cut: bool = False) -> Iterator[str]:
    """What a completed run may not leave, and must. A ``power_cut`` may take the last lines of the audit log."""
    found = site.found()
    if found is None or found.state.status != "completed" or found.damages or found.source != "state":
        yield f"the state is {found}"
        return
    outcomes = {
        f"{phase}/{name}": outcome for phase, held in found.checkpoints.items() for name, outcome in held.operations
    }
    artifacts = site.project / ".sage" / "artifacts" / FEATURE
    for name, expected in LEFT.items():
        said = {artifact.path: artifact.sha256 for artifact in outcomes[name].artifacts}
        if said.keys() != expected or said != _digests(artifacts / name):
            yield f"the artifacts of {name} are {_digests(artifacts / name)}, and should be {said}"
    yield from wrong_in_audit(site, power_cut=power_cut)
    for folder in site.watched:
        for path in folder.rglob("*"):
            # The name of a socket outlives who was killed: it says nothing, and the next one takes its place.
            if path.name.endswith(".tmp") or (path.name.endswith(".sock") and _listens(path)):
                yield f"{path} is left"
            if path.is_file() and SECRET.encode() in path.read_bytes():
                yield f"{path} holds a secret"


def wrong_in_audit(site: Site, *, power_cut: bool) -> Iterator[str]:
    """What `audit verify` would complain of, and acts that are not in the log."""
    place = project_place(site.project, site.env, make=False)
    assert place is not None
    told = set()
    with place.folder:
        key = open_keys(site.env, place, make=False).audit_key(place.id)
        for folder, head in _logs(site, place.folder):
            verdict = checking.verify(folder, head, key)
            told |= {entry.data.get("phase") for entry in checking.entries(folder, FEATURE) if entry.kind == "state"}
            if verdict.problems or verdict.torn:
                yield f"the audit log in {folder.path}: {verdict}"
    if not power_cut and (missing := PHASES.keys() - told):
        yield f"not in the audit log: {sorted(missing)}"


def _logs(site: Site, place: Folder) -> Iterator[tuple[Folder, Folder]]:
    """The logs there are, each with where its head is: the project's, and the user's own where that failed once."""
    with suppress(FileNotFoundError), sage_folder(site.project, "logs") as folder:
        if "audit.jsonl" in folder.names():
            yield folder, place
    with suppress(FileNotFoundError), place.below(FALLBACK) as folder:
        yield folder, folder


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


def _digests(folder: Path) -> Mapping[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
