"""What docs/design.md says of a feature's state, as plain data: which file holds what, and what is read of it.

A `Disk` is every file by its name (as `Stored.path` takes it), ``anchor`` and ``folder``. Each step of a writer is a
`Disk` of its own: whoever was killed left, of each file, what it was in one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sage_sandbox.errors import NoSuchRun, SageError, StateCorrupted
from sage_sandbox.store.layout import NO_RUN, Anchor
from sage_sandbox.store.reading import RolledBack
from sage_sandbox.store.records import Checkpoint, Definition, Dropped, State

Disk = Mapping[str, Any]


@dataclass(frozen=True)
class Main:
    """A main file, or its backup."""

    state: State
    generation: int


@dataclass(frozen=True)
class Written:
    """A definition or a checkpoint, of one run."""

    run: str
    what: Any


@dataclass(frozen=True)
class Bad:
    """A file that is not what was written there."""


@dataclass(frozen=True)
class Refusing:
    """A file that nobody may touch: a later version's, or sealed with another key."""

    error: type[SageError]


BAD = Bad()


@dataclass(frozen=True)
class Seen:
    """What a reader has to find."""

    state: State
    definition: Definition
    checkpoints: Mapping[str, Checkpoint]
    generation: int
    sequence: int
    attempts: Mapping[str, int]
    main: Main | None
    source: str
    damages: frozenset[tuple[str, str]]
    repaired: bool


class Refused(Exception):
    """Nothing is read, and ``error`` says why."""

    def __init__(self, error: type[SageError]) -> None:
        super().__init__(error)
        self.error = error


# -- reading -------------------------------------------------------------------------------------------------------


def seen(disk: Disk, *, accept: bool = False) -> Seen:
    """What is read of these files; Refused. ``accept``: the anchor only says which numbers were used."""
    anchor: Anchor | None = disk.get("anchor")
    main, source, number = _main(disk, None if accept else anchor)
    if "folder" not in disk:
        raise Refused(RolledBack)
    definition = _definition(disk, number, main.state.run)
    if source != "state":
        main = replace(main, state=_as_defined(main.state, definition))
    if accept and anchor is not None:
        main = replace(main, generation=max(main.generation, anchor.generation))
    return _with_checkpoints(disk, main, source, definition, accept=accept)


def state_seen(disk: Disk) -> State:
    """What is read by somebody who only looks how it stands; Refused."""
    main, anchor = disk.get("main"), disk.get("anchor")
    if isinstance(main, Refusing):
        raise Refused(main.error)
    if isinstance(main, Main) and _is_current(main, anchor):
        return main.state
    return seen(disk).state


def checkpoints_of(disk: Disk) -> dict[tuple[str, int], Any]:
    return {(phase, int(attempt)): disk[name] for name in disk for phase, _, attempt in [name.partition(".")]
            if attempt and phase != "_definition"}  # fmt: skip


def definitions_of(disk: Disk) -> dict[int, Any]:
    return {int(name.partition(".")[2]): disk[name] for name in disk if name.startswith("_definition.")}


def _is_current(main: Main, anchor: Anchor | None) -> bool:
    if anchor is None or main.generation > anchor.generation:
        return True
    return main.generation == anchor.generation and main.state.run == anchor.run


def _main(disk: Disk, anchor: Anchor | None) -> tuple[Main, str, int]:
    """The main file or what stands for it, what that is, and the number of the definition in force."""
    main, backup = disk.get("main"), disk.get("backup")
    for one in (main, backup):
        if isinstance(one, Refusing):
            raise Refused(one.error)
    if isinstance(main, Main):
        if not _is_current(main, anchor):
            raise Refused(RolledBack)
        return main, "state", main.state.definition
    damaged = BAD in (main, backup)
    if isinstance(backup, Main):
        number, generation = backup.state.definition, backup.generation
        if anchor is None:
            return backup, "backup", number
        begun = anchor.run == NO_RUN and generation > anchor.generation  # the power took the anchor of this run
        if begun or (anchor.run == backup.state.run and generation >= anchor.generation - 1):
            latest = replace(backup, generation=max(generation, anchor.generation))
            return latest, "backup", max(number, anchor.definition)
    try:
        rebuilt, number = _rebuilt(disk, anchor)
    except Refused as refused:
        raise Refused(StateCorrupted) if damaged and refused.error in {RolledBack, NoSuchRun} else refused from None
    return rebuilt, "checkpoints", number


def _rebuilt(disk: Disk, anchor: Anchor | None) -> tuple[Main, int]:
    anchored = anchor is not None and anchor.run != NO_RUN
    number = anchor.definition if anchor is not None and anchored else max(definitions_of(disk), default=0)
    if "folder" not in disk or f"_definition.{number}" not in disk:
        raise Refused(NoSuchRun)
    written = disk[f"_definition.{number}"]
    _check(written)
    if anchor is not None and (written.run != anchor.run if anchored else checkpoints_of(disk)):
        raise Refused(RolledBack)
    made_at = written.what.made_at
    state = State(written.run, "f", "", "running", number, (), made_at, made_at)
    return Main(state, anchor.generation if anchor else 0), number


def _check(written: Any) -> None:
    if written is BAD:
        raise Refused(StateCorrupted)
    if isinstance(written, Refusing):
        raise Refused(written.error)


def _definition(disk: Disk, number: int, run: str) -> Definition:
    written = disk.get(f"_definition.{number}")
    if written is None:
        raise Refused(RolledBack)
    _check(written)
    if written.run != run:
        raise Refused(StateCorrupted)
    definition: Definition = written.what
    return definition


def _as_defined(state: State, definition: Definition) -> State:
    return replace(
        state,
        definition=definition.number,
        template=definition.name,
        phase_ids=definition.phase_ids,
        dropped=definition.dropped,
        absent=definition.absent,
    )


def _with_checkpoints(disk: Disk, main: Main, source: str, definition: Definition, *, accept: bool) -> Seen:
    state, anchor = main.state, disk.get("anchor")
    dropped = {(phase, attempt) for phase, attempt, _ in state.dropped}
    here = {place: one for place, one in checkpoints_of(disk).items() if place not in dropped}
    for one in here.values():
        if isinstance(one, Refusing):
            raise Refused(one.error)
    good = {place: one.what for place, one in here.items() if isinstance(one, Written) and one.run == state.run}
    wrong = here.keys() - good.keys()
    counted = _counted(good, state.dropped)
    accounted = {*state.absent, *(number for _, _, number in state.dropped), *(one.generation for one in good.values())}
    known = anchor.sequence if anchor is not None and anchor.run == state.run else 0
    named = {mark.generation for mark in state.checkpoints.values()} | {*range(1, known + 1)}
    # Of a damaged file nobody can say which of the missing ones it was.
    if len(named - accounted) > len(wrong) and not accept:
        raise Refused(RolledBack)
    sequence = max(accounted | named, default=0)
    absent = tuple(sorted({*state.absent, *({*range(1, sequence + 1)} - accounted)}))
    mains = [name for name in ("main", "backup") if disk.get(name) is BAD]
    attempts: dict[str, int] = {}
    for phase, attempt in (*good, *dropped):
        attempts[phase] = max(attempt, attempts.get(phase, 0))
    return Seen(
        state=replace(state, checkpoints={phase: one.mark for phase, one in counted.items()}, absent=absent),
        definition=definition,
        checkpoints=counted,
        generation=main.generation,
        sequence=sequence,
        attempts=attempts,
        main=None if source == "checkpoints" else disk[{"state": "main", "backup": "backup"}[source]],
        source=source,
        damages=frozenset([(name, "") for name in mains] + list(_damages(wrong, counted, definition))),
        repaired=bool(source != "state" or mains or wrong or absent != state.absent),
    )


def _counted(good: Mapping[tuple[str, int], Checkpoint], dropped: Iterable[Dropped]) -> dict[str, Checkpoint]:
    """The last checkpoint of each phase: what was dropped takes those before it along."""
    gone = {(phase, attempt) for phase, last, _ in dropped for attempt in range(1, last + 1)}
    return {phase: good[phase, attempt] for phase, attempt in sorted(good) if (phase, attempt) not in gone}


def _damages(
    wrong: Iterable[tuple[str, int]], counted: Mapping[str, Checkpoint], definition: Definition
) -> Iterable[tuple[str, str]]:
    for phase, attempt in wrong:
        again = phase in definition.phase_ids and (phase not in counted or counted[phase].attempt < attempt)
        yield f"{phase}.{attempt}", phase if again else ""


# -- writing -------------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """What the process that holds the lock knows, and every step of what it does next."""

    disk: Disk
    run: str = ""
    main: Main | None = None
    generation: int = 0
    sequence: int = 0
    definition: Definition | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    steps: list[Disk] = field(default_factory=list)
    redefined: bool = False
    synced: bool = False
    """Whether no power cut takes the anchor back any more."""

    def put(self, name: str, what: Any) -> None:
        self.disk = {**self.disk, name: what}
        self.steps.append(self.disk)

    def take(self, names: Iterable[str]) -> None:
        gone = set(names)
        self.disk = {name: what for name, what in self.disk.items() if name not in gone}
        self.steps.append(self.disk)

    def anchor(self, anchor: Anchor, *, sync: bool = False) -> None:
        self.put("anchor", anchor)
        self.synced |= sync

    def define(self, definition: Definition) -> None:
        self.redefined = True
        if self.definition is not None:
            definition = replace(definition, number=self.definition.number + 1)
        self.put(f"_definition.{definition.number}", Written(self.run, definition))
        self.definition = definition

    def save(self, state: State) -> None:
        assert self.definition is not None
        if (self.definition.dropped, self.definition.absent) != (state.dropped, state.absent):
            self.define(replace(self.definition, dropped=state.dropped, absent=state.absent))
        if self.main is not None:
            self.put("backup", self.main)
        self.generation += 1
        self.main = Main(replace(state, definition=self.definition.number), self.generation)
        self.put("main", self.main)
        self._reached(sync=self.redefined)
        self.redefined = False

    def commit(self, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        done = []
        for one in checkpoints:
            attempt = self.attempts.get(one.phase, 0) + 1
            self.sequence += 1
            done.append(replace(one, attempt=attempt, generation=self.sequence))
            self.put(f"{one.phase}.{attempt}", Written(self.run, done[-1]))
            self.attempts[one.phase] = attempt
        self._reached()
        return done

    def adopt(self, found: Seen) -> None:
        self.run, self.main, self.definition = found.state.run, found.main, found.definition
        self.generation, self.sequence, self.attempts = found.generation, found.sequence, dict(found.attempts)
        damaged = {name for name, _ in found.damages}
        self.take(damaged & {"main", "backup"})
        if found.repaired:
            self.save(found.state)
        self.take(damaged - {"main", "backup"})

    def set_aside(self) -> None:
        anchor: Anchor | None = self.disk.get("anchor")
        self.take(name for name in self.disk if name != "anchor")
        if anchor is not None:
            self.anchor(Anchor(NO_RUN, anchor.generation, 0, 0), sync=True)
        self.main, self.definition, self.sequence, self.attempts = None, None, 0, {}

    def create(self, state: State, definition: Definition) -> None:
        anchor: Anchor | None = self.disk.get("anchor")
        self.put("folder", True)
        self.run, self.generation = state.run, anchor.generation if anchor else 0
        self.define(definition)
        self.save(state)

    def _reached(self, *, sync: bool = False) -> None:
        assert self.definition is not None
        self.anchor(Anchor(self.run, self.generation, self.sequence, self.definition.number), sync=sync)
