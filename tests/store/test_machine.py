"""A store through any sequence of what happens to it: what is read is what the model says, whatever came before.

Runs begin, go on, are cancelled and restarted; their process is killed, fails to write or loses the power at any call
that changes a file; somebody looks, competes, has another key or another version of the program; files are damaged,
swapped, taken away and put back. The model is in model.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store import model
from store.model import BAD, Disk, Main, Refused, Refusing, Seen, Writer, Written, seen
from store.stored import (
    DAMAGES,
    DEFINITION,
    Calls,
    Crash,
    Stored,
    changed,
    emptied,
    ended,
    gone,
    sparse,
    state_of,
    truncated,
)

from sage_sandbox.errors import Locked, NoSuchRun, SageError, StateCorrupted, StateTooNew, StateUnwritable, WrongKey
from sage_sandbox.store import layout, migrations, records, runs
from sage_sandbox.store.envelope import peek
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import checkpoints_among, definitions_among, folder_name, read_anchor, state_folder
from sage_sandbox.store.reading import Found, RolledBack, read_run, read_state
from sage_sandbox.store.records import Checkpoint, Session, State, goes_on
from sage_sandbox.store.runs import RunStore

PHASES = DEFINITION.phase_ids
MAINS = {"main": "workflow-f.json", "backup": "workflow-f.json.bak"}
# What is sparse is dear to keep for comparison; that it is refused is another test's.
TAMPERING = (*(damage for damage in DAMAGES if damage is not sparse), gone)
ANY_FILE = st.integers(0, 40)
POWER = st.sampled_from([-1, -1, 0xFFFF]) | st.integers(0, 0xFF)
"""Which of the changes that were not synced go with the power: a bit for each. -1: it stays on."""
TROUBLE = st.none() | st.tuples(
    st.integers(1, 16), st.sampled_from(["before", "middle", "after", errno.ENOSPC, errno.EIO]), POWER
)
"""At which of the next calls that change a file, how it ends there, and what goes with the power."""
ENDINGS = st.lists(
    st.tuples(
        st.sampled_from(PHASES),
        st.sampled_from(["completed", "completed", "failed", "degraded"]),
        st.sampled_from([b"1", b'{"x": [1.50]}', b'"' + b"y" * 2000 + b'"']),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item[0],
)


# -- another version of the program --------------------------------------------------------------------------------

RENAMED = {"state": ("workflowId", "runId"), "definition": ("text", "body"), "checkpoint": ("outcome", "endedAs")}


def migration(kind: str) -> migrations.Migration:
    """From a version in which a field had another name."""
    new, old = RENAMED[kind]

    def migrate(record: migrations.Record) -> migrations.Record:
        renamed = {new if name == old else name: value for name, value in record.items()}
        return {**renamed, "version": "2.0"}

    return migrate


class Program:
    """Reads records of versions 1 and 2, and writes those of ``version``: before and after an update."""

    version = 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "RECORD_VERSION", "2.0")
        for kind in RENAMED:
            monkeypatch.setitem(migrations.MIGRATIONS, kind, (migration(kind),))
            monkeypatch.setattr(runs, f"encode_{kind}", self._encoder(kind, getattr(records, f"encode_{kind}")))

    def _encoder(self, kind: str, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def encoded(record: Any) -> bytes:
            first, *rest = encode(record).split(b"\n", 1)
            if self.version == 1:
                first = _as_of_version_1(kind, first, whole=not rest)
            return b"\n".join((first, *rest))

        return encoded


def _as_of_version_1(kind: str, line: bytes, *, whole: bool) -> bytes:
    """A record, or the first line of one, ``{…,`` without its end."""
    new, old = RENAMED[kind]
    raw = json.loads(line if whole else line[:-1] + b"}")
    older = {old if name == new else name: value for name, value in raw.items()}
    text = json.dumps({**older, "version": "1.0"}, separators=(",", ":")).encode()
    return text if whole else text[:-1] + b","


# -- trouble -------------------------------------------------------------------------------------------------------


class Watched(Calls):
    """Calls among which somebody else looks at the files, once, before call ``look_at``."""

    look_at = 0

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look
        self._looking = False

    def _step(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        step = super()._step(name, args, kwargs)
        if step is not None and name == "rename" and "/aside/" in step.paths[1]:
            # That it is gone is what counts: nothing is read there, be it whole or not.
            step.needs.discard(str(Path(step.paths[1]).parent))
            self.volatile = [one for one in self.volatile if not one.paths[0].startswith(f"{step.paths[0]}/")]
        return step

    def _wrapped(self, name: str) -> Callable[..., Any]:
        call, real = super()._wrapped(name), self._real[name]

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._looking:
                return real(*args, **kwargs)
            if 0 < self.look_at <= len(self.names) and not self.dead:
                self.look_at, self._looking = 0, True
                try:
                    self._look()
                except Exception as error:  # what is raised here must not be taken for the writer's
                    raise AssertionError(f"a reader before {name}") from error
                finally:
                    self._looking = False
            return call(*args, **kwargs)

        return watched


class Ended(Exception):
    """The process that held the lock is no more."""


class Machine(RuleBasedStateMachine):
    """One feature of one project, and what its files must hold: ``disk``."""

    def __init__(self, folder: Path, program: Program) -> None:
        super().__init__()
        self.stored = Stored(Path(tempfile.mkdtemp(dir=folder)))
        self.program = program
        program.version = 1
        self.calls = Watched(self.look_meanwhile)
        self.power = -1
        self.store: RunStore | None = None
        self.writer = Writer({})
        self.state = state_of()
        self.disk: Disk = {}
        self.steps: list[Disk] = [{}]
        self.unsynced: list[Disk] = []
        self.anchors: list[Any] = [None]
        self.promised: dict[str, Checkpoint] = {}
        self.mains: list[tuple[Main, bytes]] = []
        self.kept: list[tuple[Disk, dict[str, bytes]]] = []
        self.untouched: tuple[Disk, dict[str, bytes], bytes] | None = None
        self.ever: list[Written] = []
        self.number = 0

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        self.stored.place.folder.close()
        for root in (self.stored.project, *self.stored.roots):
            shutil.rmtree(root, ignore_errors=True)

    # -- what is looked at --------------------------------------------------------------------------------------

    def look(self) -> Disk:
        """Each file as it stands there, taken by itself."""
        found: dict[str, Any] = {}
        if (anchor := read_anchor(self.stored.place, "f")) is not None:
            found["anchor"] = anchor
        with suppress(FileNotFoundError), self.stored.reader() as reader:
            for name, file in MAINS.items():
                with suppress(FileNotFoundError):
                    found[name] = self._taken(reader.main, file)
            with reader.folder.below(folder_name("f")) as below:
                found["folder"] = True
                names = below.names()
                for number in definitions_among(names):
                    found[f"_definition.{number}"] = self._taken(reader.definition, below, number, "")
                for phase, attempt in checkpoints_among(names):
                    found[f"{phase}.{attempt}"] = self._taken(reader.checkpoint, below, phase, attempt, "")
        return found

    @staticmethod
    def _taken(read: Callable[..., Any], *args: Any) -> Any:
        try:
            got = read(*args)
        except StateCorrupted:
            return BAD
        except (WrongKey, StateTooNew) as error:
            return Refusing(type(error))
        if isinstance(got, tuple):
            return Main(records.decode_state(got[1].payload, ""), got[1].generation)
        if got.subject.kind == "definition":
            return Written(got.subject.run, records.decode_definition(got.payload, ""))
        return Written(got.subject.run, plain(records.decode_checkpoint(got.payload, "", got.generation)))

    def is_read(self, disk: Disk, read: Callable[[], Found] | None = None) -> Found | None:
        """Compare what a reader finds with what it has to find."""
        if not self.stored.state.exists():
            assert refusal(disk) is NoSuchRun
            return None
        with self._folder() as folder:
            look = read or (lambda: read_run(folder, self.stored.place, "f", self.stored.keys))
            try:
                expected = seen(disk)
            except Refused as refused:
                self._is_refused(look, refused.error)
                found = None
            else:
                found = look()
                assert expected == as_seen(found, disk)
            if read is None:
                self._is_how_it_stands(folder, disk)
        return found

    def _is_how_it_stands(self, folder: Any, disk: Disk) -> None:
        def look() -> State:
            return read_state(folder, self.stored.place, "f", self.stored.keys)

        try:
            expected = model.state_seen(disk)
        except Refused as refused:
            self._is_refused(look, refused.error)
        else:
            assert expected == look()

    @staticmethod
    def _is_refused(look: Callable[[], object], error: type[SageError]) -> None:
        with pytest.raises(error) as refused:
            look()
        assert (error is RolledBack) == isinstance(refused.value, RolledBack)

    @contextmanager
    def _folder(self) -> Iterator[Any]:
        with state_folder(self.stored.project) as folder:
            yield folder

    def look_meanwhile(self) -> None:
        """As `status` does, while another process is at work."""
        self.is_read(self._possible())

    def _possible(self) -> Disk:
        """What is on the disk: each file as it was before or after a step, and all of them can be gone on from."""
        found = self.look()
        for name in {name for step in (*self.steps, found) for name in step}:
            allowed = [step.get(name) for step in (*self.steps, *self.unsynced)]
            assert found.get(name) in (self.anchors + allowed if name == "anchor" else allowed), name
        # Nothing is refused that was not refused before; there may be no run where one step leaves none.
        before = set(map(refusal, (self.steps[0], *self.unsynced)))
        if before <= {None, NoSuchRun} and not is_anchored_elsewhere(self.steps[0]):
            assert refusal(found) in {None, *before, *map(refusal, self.steps)} & {None, NoSuchRun}
        return found

    # -- the process that holds the lock ------------------------------------------------------------------------

    @contextmanager
    def process(self, trouble: tuple[int, Any, int] | None) -> Iterator[None]:
        """What it does until it is killed or cannot write."""
        if trouble is not None:
            calls, self.calls.how, power = trouble
            self.calls.at = len(self.calls.names) + calls
            self.power = -1 if isinstance(self.calls.how, int) else power
        with suppress(Ended):
            yield
        self.calls.at, self.power = 0, -1

    def do(self, act: Callable[[], Any]) -> Any:
        """One call of the store, of which ``writer`` has the steps."""
        self.steps = [self.disk, *self.writer.steps]
        self.writer.steps = []
        self.anchors += [step.get("anchor") for step in self.steps]
        try:
            with self.calls.happening():
                result = act()
        except (Crash, StateUnwritable) as error:
            if isinstance(error, StateUnwritable) and not isinstance(self.calls.how, int):
                raise
            note(f"ended {error!r} at {self.calls.names[-1]}")
            self._end()
            raise Ended from error
        self.disk = self.steps[-1]
        self._forget_what_is_durable()
        if self.writer.synced:
            self.anchors = [step.get("anchor") for step in self.steps]
            self.writer.synced = False
        return result

    def _end(self) -> None:
        """Let go of the lock, as the kernel would; what goes with the power goes."""
        if self.store is not None:
            with self.calls.happening():
                self.store.close()
        self.store = None
        if self.power >= 0:
            self.calls.lose({number for number in range(len(self.calls.volatile)) if self.power >> number & 1})
            self.calls.volatile.clear()
        self.calls.at, self.calls.dead, self.power = 0, False, -1
        self.disk = self._possible()
        self.unsynced += self.steps
        self._forget_what_is_durable()
        self.steps = [self.disk]
        self.anchors.append(self.disk.get("anchor"))
        if self.untouched is not None and self.untouched[0].get("main") != self.disk.get("main"):
            self.untouched = None

    def _forget_what_is_durable(self) -> None:
        """A process that was killed leaves what the power may still take."""
        anchors = str(self.stored.anchors)
        if all(path.startswith(anchors) for step in self.calls.volatile for path in step.paths):
            self.unsynced = []

    def open(self) -> RunStore:
        """Take the lock. What an earlier process left half-written is gone."""
        self.writer, before = Writer(self.disk), len(self.calls.names)
        self.store = self.do(lambda: RunStore.open(self.stored.project, self.stored.place, "f", self.stored.keys))
        assert self.store is not None
        if not before < self.calls.at <= len(self.calls.names):  # what cannot be swept is no reason not to go on
            assert [] == [path for path in self.stored.temporary() if "aside" not in path.parts]
        return self.store

    def close(self) -> None:
        assert self.store is not None
        self.store.close()
        self.store = None

    def save(self, state: State) -> None:
        assert self.store is not None
        store = self.store
        self.state = state
        self.writer.save(state)
        self.do(lambda: store.save(state))

    def commit(self, checkpoints: list[Checkpoint]) -> None:
        assert self.store is not None
        store = self.store
        expected = self.writer.commit(checkpoints)
        self.ever += [Written(self.writer.run, one) for one in expected]
        assert expected == list(self.do(lambda: store.commit(checkpoints)))
        self.promised.update((one.phase, one) for one in expected)

    def updated(self, status: Any, **changes: Any) -> State:
        """The state with an update that no other has."""
        self.number += 1
        found = seen(self.disk)
        marks = {phase: one.mark for phase, one in found.checkpoints.items()}
        changes = {"checkpoints": marks, "metrics": {"phaseCount": self.number}, **changes}
        return replace(self.state, status=status, updated_at=f"2026-02-01T00:00:{self.number:06}Z", **changes)

    # -- rules: what a process does -----------------------------------------------------------------------------

    @precondition(lambda self: self.store is None)
    @rule(text=st.sampled_from(["text", "other"]), trouble=TROUBLE)
    def begin(self, text: str, trouble: Any) -> None:
        """Start, or start anew: whatever lies there is put aside."""
        self.number += 1
        state = state_of(f"{self.number:032x}", "f", sessions=(Session("now"),))
        definition = replace(DEFINITION, text=text)
        with self.process(trouble):
            store = self.open()
            self.promised = {}
            self.untouched = None
            self.writer.set_aside()
            self.do(store.set_aside)
            self.writer.create(state, definition)
            self.do(lambda: store.create(state, definition))
            self.state = state

    @precondition(lambda self: self.store is None)
    @rule(
        aside=st.just(set()) | st.sets(st.sampled_from(PHASES)),
        update=st.sampled_from(["", "", "new", "newer"]),
        trouble=TROUBLE,
    )
    def resume(self, aside: set[str], update: str, trouble: Any) -> None:
        """Go on; with ``--from`` without some phases, with ``--update`` by another definition."""
        with self.process(trouble):
            store = self.open()
            before = self.stored.files()
            found = self.is_read(self.disk, store.read)
            assert before == self.stored.files()
            if found is None:
                self.close()
                return
            expected = seen(self.disk)
            self.untouched = None
            self.writer.adopt(expected)
            self.do(lambda: store.adopt(found))
            self.promised = dict(expected.checkpoints)
            dropped = tuple((one.phase, one.attempt, one.generation) for one in found.checkpoints.values()
                            if one.phase in aside)  # fmt: skip
            every = (*found.state.dropped, *dropped)
            self.state = found.state
            for phase in aside:
                self.promised.pop(phase, None)
            if update:
                definition = replace(found.definition, text=update, dropped=every, absent=found.state.absent)
                self.writer.define(definition)
                self.do(lambda: store.define(definition))
            marks = {phase: one.mark for phase, one in expected.checkpoints.items() if phase not in aside}
            sessions = (*found.state.sessions, Session("now"))
            self.save(self.updated("running", dropped=every, sessions=sessions, checkpoints=marks))

    @precondition(lambda self: self.store is not None)
    @rule(endings=ENDINGS, trouble=TROUBLE)
    def commit_phases(self, endings: list[tuple[str, Any, bytes]], trouble: Any) -> None:
        """Phases end together; one that is done never runs again."""
        over = {phase for phase, held in seen(self.disk).checkpoints.items() if goes_on(held.outcome)}
        with self.process(trouble):
            self.commit([ended(phase, result, how) for phase, how, result in endings if phase not in over])

    @precondition(lambda self: self.store is not None)
    @rule(status=st.sampled_from(["completed", "paused", "failed", "running"]), close=st.booleans(), trouble=TROUBLE)
    def save_status(self, status: str, close: bool, trouble: Any) -> None:
        with self.process(trouble):
            self.save(self.updated(status))
            if close:
                self.close()

    @precondition(lambda self: self.store is not None)
    @rule(phase=st.sampled_from(PHASES), trouble=TROUBLE)
    def cancel(self, phase: str, trouble: Any) -> None:
        """The phase in flight is written down as it was cut short."""
        held = seen(self.disk).checkpoints.get(phase)
        with self.process(trouble):
            if held is None or not goes_on(held.outcome):
                self.commit([ended(phase, outcome="cancelled")])
            self.save(self.updated("cancelled"))
            self.close()

    @precondition(lambda self: self.store is None and self.disk)
    @rule(trouble=TROUBLE)
    def load(self, trouble: Any) -> None:
        with self.process(trouble):
            store = self.open()
            self.is_read(self.disk, store.read)
            self.close()

    # -- rules: trouble ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.store is not None or self.calls.volatile)
    @rule(power=POWER)
    def die(self, power: int) -> None:
        """Between two calls."""
        self.steps, self.power = [self.disk], power
        self._end()

    @precondition(lambda self: self.calls.look_at == 0)
    @rule(calls=st.integers(1, 20))
    def expect_a_reader(self, calls: int) -> None:
        self.calls.look_at = len(self.calls.names) + calls

    @precondition(lambda self: self.store is not None)
    @rule()
    def compete(self) -> None:
        """A second process for the same feature."""
        before = self.stored.files()
        with pytest.raises(Locked, match="f is being run already"), self.stored.opened():
            pass
        assert before == self.stored.files()

    # -- rules: keys and versions --------------------------------------------------------------------------------

    @precondition(lambda self: isinstance(self.disk.get("main"), Main) and not self.refusing())
    @rule(other=st.sampled_from(["key", "setting"]))
    def have_another_key(self, other: str) -> None:
        before, keys = self.stored.files(), self.stored.keys
        self.stored.keys = Keys([b"x" * 32]) if other == "key" else keys.encrypting(False)
        try:
            with self._folder() as folder:
                for read in (read_run, read_state):
                    with pytest.raises(WrongKey if other == "key" else StateCorrupted) as refused:
                        read(folder, self.stored.place, "f", self.stored.keys)
                    assert other == "key" or isinstance(refused.value, layout.Foreign)
        finally:
            self.stored.keys = keys
        assert before == self.stored.files()

    @precondition(lambda self: self.store is None and "folder" in self.disk and not self.refusing())
    @rule(trouble=TROUBLE)
    def rekey(self, trouble: Any) -> None:
        """Seal everything anew; what is there counts, even where it was rolled back."""
        try:
            found = seen(self.disk, accept=True)
        except Refused:
            return
        old = self.stored.keys
        self.number += 1
        new = Keys([self.number.to_bytes(32)])
        with self.process(trouble):
            self.stored.keys = new.also(old)
            store = self.open()
            self.untouched = None
            taken = store.take_over()
            assert found == as_seen(taken, self.disk)
            # Until that is done, what is there counts, or what counted before.
            self.promised = {name: one for name, one in self.promised.items() if found.checkpoints.get(name) == one}
            self.state = found.state
            self.writer.adopt(found)
            self.writer.save(found.state)
            self.writer.save(found.state)
            self.do(lambda: store.reseal(taken))
            self.promised = dict(found.checkpoints)
            self.close()
            if not self._left_as_it_was(found.state.run):
                self.stored.keys = new
        self.mains.clear()
        self.kept.clear()

    def _left_as_it_was(self, run: str) -> bool:
        """Whether files that are no part of the run keep their old seal."""
        return any(not isinstance(what, Main) and getattr(what, "run", run) != run for what in self.disk.values()) or (
            BAD in self.disk.values()
        )

    @precondition(lambda self: self.program.version == 1)
    @rule()
    def update_the_program(self) -> None:
        """What is there stays in the older format, what is written from now on is in the newer one."""
        self.program.version = 2

    @precondition(lambda self: self.program.version == 2 and isinstance(self.disk.get("main"), Main))
    @rule()
    def go_back_to_the_older_program(self) -> None:
        """It reads what it wrote itself, and leaves what the newer one wrote."""
        with self.stored.reader() as reader:
            newer = json.loads(reader.main(MAINS["main"])[1].payload)["version"] == "2.0"
        before = self.stored.files()
        with pytest.MonkeyPatch.context() as monkeypatch, self._folder() as folder:
            monkeypatch.setitem(migrations.MIGRATIONS, "state", ())
            if newer:
                for read in (read_run, read_state):
                    with pytest.raises((StateTooNew, *self.refusing())):
                        read(folder, self.stored.place, "f", self.stored.keys)
        assert before == self.stored.files()

    # -- rules: tampering ----------------------------------------------------------------------------------------

    def refusing(self) -> set[type[SageError]]:
        return {what.error for what in self.disk.values() if isinstance(what, Refusing)}

    def good_files(self) -> list[str]:
        return sorted(name for name, what in self.disk.items() if isinstance(what, Main | Written))

    def tamper(self, changes: dict[str, Any]) -> None:
        """Files are something else now (None: gone). It was not this program that did it, and it lasts."""
        self.calls.volatile.clear()
        self.disk = {**self.disk, **changes}
        self.disk = self.writer.disk = {name: what for name, what in self.disk.items() if what is not None}
        self.steps, self.unsynced, self.anchors = [self.disk], [], [self.disk.get("anchor")]
        for name in changes:
            phase, _, attempt = name.partition(".")
            if phase in self.promised and (attempt == str(self.promised[phase].attempt) or self.disk.get(name) != BAD):
                del self.promised[phase]

    def remember(self) -> None:
        """Keep what is there, to be put right."""
        if self.untouched is None and "anchor" in self.disk and self.is_good(self.disk):
            self.untouched = (self.disk, self._bytes(), (self.stored.anchors / "f").read_bytes())

    @staticmethod
    def is_good(disk: Disk) -> bool:
        return refusal(disk) is None and not any(what is BAD or isinstance(what, Refusing) for what in disk.values())

    def _bytes(self) -> dict[str, bytes]:
        return {name: self.stored.path(name).read_bytes() for name in self.good_files()}

    @precondition(lambda self: self.store is None and self.good_files())
    @rule(which=ANY_FILE, damage=st.sampled_from(TAMPERING))
    def damage(self, which: int, damage: Callable[[Path], None]) -> None:
        self.remember()
        name = self.good_files()[which % len(self.good_files())]
        if (self.stored.path(name).parent / "another").exists():
            return
        note(f"{damage.__name__} {name}")
        damage(self.stored.path(name))
        self.tamper({name: None if damage is gone else BAD})

    @precondition(lambda self: self.store is not None and refusal({**self.disk, "main": BAD}) is None)
    @rule(damage=st.sampled_from([truncated, emptied, changed]))
    def damage_the_main_file_of_a_run(self, damage: Callable[[Path], None]) -> None:
        """Its process goes by what it wrote itself."""
        if isinstance(self.disk.get("main"), Main):
            damage(self.stored.path("main"))
            self.tamper({"main": BAD})

    @precondition(lambda self: self.store is None and self.good_files())
    @rule(which=ANY_FILE, bit=st.integers(0, 1 << 20))
    def flip_a_bit(self, which: int, bit: int) -> None:
        self.remember()
        name = self.good_files()[which % len(self.good_files())]
        path = self.stored.path(name)
        data = bytearray(path.read_bytes())
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        path.write_bytes(data)
        note(f"bit {bit % 8} of byte {bit // 8 % len(data)} of {name}")
        self.tamper({name: self._flipped(bytes(data))})

    def _flipped(self, data: bytes) -> Any:
        """What a file says without proof may have it left alone: a version to come, a key that is not here."""
        try:
            header = peek(data)
        except StateTooNew:
            return Refusing(StateTooNew)
        except StateCorrupted:
            return BAD
        whole = data[header.size :].rpartition(b'\n,"sha256":"')
        intact = hashlib.sha256(whole[0]).hexdigest().encode() == whole[2][:64]
        known = self.stored.keys.knows(header.key_id, header.salt)
        return BAD if known or not intact or header.algorithm != "AES-256-GCM" else Refusing(WrongKey)

    @precondition(lambda self: self.store is None and len(self.good_files()) > 1)
    @rule(one=ANY_FILE, other=ANY_FILE)
    def swap(self, one: int, other: int) -> None:
        names = self.good_files()
        first, second = names[one % len(names)], names[other % len(names)]
        if first == second:
            return
        self.remember()
        note(f"{first} and {second}")
        paths = self.stored.path(first), self.stored.path(second)
        data = [path.read_bytes() for path in paths]
        for path, others in zip(paths, reversed(data), strict=True):
            path.write_bytes(others)
        alike = {first, second} == set(MAINS)
        self.tamper({first: self.disk[second] if alike else BAD, second: self.disk[first] if alike else BAD})

    @precondition(lambda self: self.store is None and self.mains and self.good_files())
    @rule(which=ANY_FILE, name=st.sampled_from(["main", "backup"]))
    def put_an_older_main_file_back(self, which: int, name: str) -> None:
        if self.disk.get(name) is BAD:
            return
        self.remember()
        older, data = self.mains[-1 - which % len(self.mains)]
        self.stored.path(name).touch(0o600)
        self.stored.path(name).write_bytes(data)
        self.tamper({name: older})

    @precondition(lambda self: self.store is None and self.is_good(self.disk))
    @rule()
    def keep_a_copy(self) -> None:
        self.kept.append((self.disk, self._bytes()))

    @precondition(lambda self: self.store is None and self.kept)
    @rule(which=ANY_FILE)
    def put_a_whole_copy_back(self, which: int) -> None:
        self.remember()
        disk, data = self.kept[-1 - which % len(self.kept)]
        self._replace(data)
        self.tamper({**dict.fromkeys(self.disk), **disk, "anchor": self.disk.get("anchor")})
        self.promised = dict(seen(self.disk).checkpoints) if refusal(self.disk) is None else {}

    @precondition(lambda self: self.store is None and "folder" in self.disk)
    @rule(phase=st.sampled_from(PHASES), which=ANY_FILE)
    def put_a_checkpoint_where_none_was(self, phase: str, which: int) -> None:
        """As if a phase had been done: the file of another phase, of another attempt, or of another run."""
        name = f"{phase}.{max((at for of, at in model.checkpoints_of(self.disk) if of == phase), default=0) + 1}"
        others = [*self.stored.state.glob("**/*.json")]
        path = others[which % len(others)] if others else self.stored.state
        if not stat.S_ISREG(path.lstat().st_mode):
            return
        self.remember()
        shutil.copyfile(path, self.stored.path(name))
        self.stored.path(name).chmod(0o600)
        what = self.look()[name]
        # Damage of which only the file's owner or its links were wrong was put aside: it is what it was.
        assert not isinstance(what, Written) or what in self.ever
        note(f"{path} as {name}: {what}")
        self.tamper({name: what})

    @precondition(lambda self: self.store is None and self.untouched is not None)
    @rule()
    def put_right(self) -> None:
        assert self.untouched is not None
        disk, data, anchor = self.untouched
        self._replace(data)
        (self.stored.anchors / "f").write_bytes(anchor)
        self.tamper({**dict.fromkeys(self.disk), **disk})
        self.promised = dict(seen(disk).checkpoints)
        self.untouched = None

    def _replace(self, data: dict[str, bytes]) -> None:
        for path in self.stored.state.iterdir():
            if path.name != "aside" and not path.name.endswith(".lock"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.stored.path("a.1").parent.mkdir(mode=0o700)
        for name, content in data.items():
            self.stored.path(name).touch(0o600)
            self.stored.path(name).write_bytes(content)

    # -- after every rule ---------------------------------------------------------------------------------------

    @invariant()
    def every_file_is_what_the_model_says(self) -> None:
        assert self.disk == self.look()
        main = self.disk.get("main")
        if isinstance(main, Main) and main not in [one for one, _ in self.mains[-8:]]:
            self.mains.append((main, self.stored.path("main").read_bytes()))

    @invariant()
    def what_is_read_is_what_the_model_says(self) -> None:
        self.is_read(self.disk)

    @invariant()
    def what_was_committed_is_there(self) -> None:
        with suppress(Refused):
            found = seen(self.disk).checkpoints
            for phase, one in self.promised.items():
                later = not goes_on(one.outcome) and phase in found and found[phase].attempt > one.attempt
                assert found.get(phase) == one or later  # whoever was killed may have written another attempt

    @invariant()
    def all_is_the_users_alone(self) -> None:
        tampered = {str(self.stored.path(name)) for name, what in self.disk.items() if what is BAD}
        for root in (self.stored.project, self.stored.roots[1]):
            for path in root.rglob("*"):
                mode = path.lstat().st_mode
                if {"aside"} & {*path.parts} or tampered & {*map(str, (path, *path.parents))} or path.is_symlink():
                    continue
                assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path


def is_anchored_elsewhere(disk: Disk) -> bool:
    """Whether nothing is made anew of the definition, for the anchor is of an earlier one, or of another run.

    The power went before the anchor knew of it, or somebody put the files of another run back.
    """
    mains = [what.state for name in MAINS if isinstance(what := disk.get(name), Main)]
    anchor = disk.get("anchor")
    return anchor is not None and any(main.definition > anchor.definition or main.run != anchor.run for main in mains)


def refusal(disk: Disk) -> type[SageError] | None:
    try:
        seen(disk)
    except Refused as refused:
        return refused.error
    return None


def plain(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, operations=tuple(checkpoint.operations))


def as_seen(found: Found, disk: Disk) -> Seen:
    """What was read, in the model's words."""
    names = {file: name for name, file in MAINS.items()}
    return Seen(
        state=found.state,
        definition=found.definition,
        checkpoints={phase: plain(one) for phase, one in found.checkpoints.items()},
        generation=found.generation,
        sequence=found.sequence,
        attempts=dict(found.attempts),
        main=None if not found.main else disk[{"state": "main", "backup": "backup"}[found.source]],
        source=found.source,
        damages=frozenset((names.get(one.name, one.name.removesuffix(".json")), one.phase) for one in found.damages),
        repaired=found.repaired,
    )


# -- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """Where nothing waits for a disk."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as path:
        monkeypatch.setenv("HOME", path)
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        yield Path(path)


@pytest.fixture
def program(monkeypatch):
    program = Program()
    program.install(monkeypatch)
    return program


def run_machine(memory: Path, program: Program, **how: Any) -> None:
    machine = settings(suppress_health_check=list(HealthCheck), **how)
    run_state_machine_as_test(lambda: Machine(memory, program), settings=machine)  # type: ignore[arg-type]


def test_whatever_happens_what_is_read_is_what_was_written(memory, program):
    run_machine(memory, program, max_examples=60, stateful_step_count=40)


@pytest.mark.stress
@pytest.mark.timeout(1500)
def test_whatever_happens_for_long_what_is_read_is_what_was_written(memory, program):
    run_machine(memory, program, max_examples=1000, stateful_step_count=50)
