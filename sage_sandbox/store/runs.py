"""One feature's state for the process that runs it: locked, written in the order that docs/design.md gives.

A file is whole and durable before its name is there, checkpoints before the anchor, the anchor before anything that
follows from them. Every OSError on the way ends as StateUnwritable; what was committed before stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder, unwritable
from sage_sandbox.disk.locking import Lock, acquire
from sage_sandbox.disk.marks import Mark as AnchorFile
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import Locked, StateCorrupted, StateUnwritable
from sage_sandbox.store.envelope import Opened, Subject, seal
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    CHECKPOINT_MAX,
    DEFINITION_MAX,
    MAIN_MAX,
    NO_RUN,
    Anchor,
    Reader,
    backup_name,
    checkpoint_name,
    checkpoints_among,
    definition_name,
    definitions_among,
    folder_name,
    lock_name,
    main_name,
    open_anchor,
    read_anchor,
    state_folder,
)
from sage_sandbox.store.reading import Found, read_run, take_over
from sage_sandbox.store.records import (
    Checkpoint,
    Definition,
    State,
    encode_checkpoint,
    encode_definition,
    encode_state,
)

LOCK_WAIT_S: Final = 1.5
"""How long a start waits for the lock: longer than any look at it takes, shorter than anybody's patience."""


class RunStore:
    """Holds a feature's lock from `open` to `close`; the only writer of its state.

    Once a write did not come to its end, nothing more is written: what the disk holds then is for the next process to
    read, for a failed fsync may have dropped what a later one would say is durable.
    """

    _definition: Definition | None
    _attempts: dict[str, int]

    def __init__(self, folder: Folder, lock: Lock, place: ProjectPlace, feature: str, keys: Keys) -> None:
        self.feature = feature
        self.keys = keys
        self._folder = folder
        self._lock = lock
        self._place = place
        self._below: Folder | None = None
        self._anchor: AnchorFile | None = None
        self._failed: StateUnwritable | None = None
        self._forget()

    @classmethod
    def open(
        cls, project: Path, place: ProjectPlace, feature: str, keys: Keys, *, wait_s: float = LOCK_WAIT_S
    ) -> RunStore:
        """Take the feature's lock and sweep what a killed process left half-written. Locked, StateUnwritable."""
        try:
            folder = state_folder(project, make=True)
        except OSError as error:
            raise unwritable(error, str(project / ".sage" / "state")) from error
        try:
            store = cls(folder, _lock(folder, feature, wait_s), place, feature, keys)
        except BaseException:
            folder.close()
            raise
        try:
            store._sweep()
        except BaseException:
            store.close()
            raise
        return store

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self) -> Found:
        """What is there; as `reading.read_run`."""
        return read_run(self._folder, self._place, self.feature, self.keys)

    def take_over(self) -> Found:
        """What is there, for a user who says that it counts; as `reading.take_over`."""
        return take_over(self._folder, self._place, self.feature, self.keys)

    # -- beginning -----------------------------------------------------------------------------------------------

    def create(self, state: State, definition: Definition) -> None:
        """The first files of a new run. What an earlier run of the feature left must have been set aside."""
        with self._writing(self._folder.path):
            anchor = read_anchor(self._place, self.feature)
            self._open_below()
        self._run = state.run
        self._generation = anchor.generation if anchor else 0
        self.define(definition)
        self.save(state)

    def adopt(self, found: Found) -> None:
        """Go on with what was read; what had to be repaired is written down, and the damaged files are put aside.

        Written down first: a checkpoint that is gone, and not accounted for, would be a rollback.
        """
        self._run = found.state.run
        self._definition = found.definition
        self._generation = found.generation
        self._sequence = found.sequence
        self._attempts = dict(found.attempts)
        self._main = found.main
        mains = {main_name(self.feature), backup_name(self.feature)}
        with self._writing(self._folder.path):
            self._open_below()
            assert self._below is not None
            # A process that was killed may not have synced what it renamed; from here on it counts.
            self._below.sync()
            self._folder.sync()
            self._put_aside(self._folder, [damage.name for damage in found.damages if damage.name in mains])
        if found.repaired:
            self.save(found.state)
        with self._writing(self._folder.path):
            assert self._below is not None
            self._put_aside(self._below, [damage.name for damage in found.damages if damage.name not in mains])

    def set_aside(self) -> str:
        """Move everything an earlier run left to ``aside/``; its name there, or empty.

        Killed in between, what is left still is the old run, or none: the main file goes first and the folder last,
        and only when they are gone the anchor says so. Whatever is of an earlier run then was put back.
        """
        files, folder = [main_name(self.feature), backup_name(self.feature)], folder_name(self.feature)
        with self._writing(self._folder.path):
            anchor = read_anchor(self._place, self.feature)
            names = set(self._folder.names())
            name = ""
            if names & {*files, folder}:
                with self._aside() as (aside, name):
                    self._move(self._folder, aside, [file for file in files if file in names])
                    self._move(self._folder, aside, [folder] if folder in names else [])
            if anchor is not None:
                self._folder.sync()  # where nothing was left to move, a process that was killed may have moved it
                self._write_anchor(Anchor(NO_RUN, anchor.generation, 0, 0), sync=True)
        self._forget()
        return name

    def define(self, definition: Definition) -> None:
        """Write a definition of the run, once, under the next number; the main file that is saved next goes by it."""
        assert self._below is not None
        if self._definition is not None:
            definition = replace(definition, number=self._definition.number + 1)
        subject = self._subject("definition", "", definition.number)
        sealed = seal(encode_definition(definition), subject, definition.number, self.keys)
        _kept(sealed, DEFINITION_MAX, "the files of the template")
        with self._writing(self._below.path):
            self._below.write_new(definition_name(definition.number), sealed)
            self._below.sync()
        self._definition = definition
        self._redefined = True

    # -- going on ------------------------------------------------------------------------------------------------

    def next_attempt(self, phase: str) -> int:
        """The number of the next checkpoint of a phase."""
        return self._attempts.get(phase, 0) + 1

    def commit(self, checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
        """Make the phases that ended durable, together; their checkpoints with the numbers they got."""
        assert self._below is not None
        done = tuple(self._numbered(checkpoints))
        if not done:
            return ()
        # Sealed before the first is written: one that is too large stops nothing half-way.
        files = [(checkpoint_name(one.phase, one.attempt), self._sealed_checkpoint(one)) for one in done]
        with self._writing(self._below.path):
            for name, sealed in files:
                self._below.write_new(name, sealed)
            self._below.sync()
            self._sequence = done[-1].generation
            self._attempts.update((one.phase, one.attempt) for one in done)
            self._write_anchor(self._reached())
        return done

    def save(self, state: State) -> None:
        """Write the main file; the one before it becomes the backup.

        The anchor is durable where a new definition comes into force: what counts no more must not come back with it.
        """
        state = self._defined(state)
        generation = self._generation + 1
        sealed = seal(encode_state(state), self._subject("state", "", 0), generation, self.keys)
        _kept(sealed, MAIN_MAX, "the list of phases")
        with self._writing(self._folder.path):
            if self._main:
                self._folder.write_new(backup_name(self.feature), self._main)
            self._folder.write_new(main_name(self.feature), sealed)
            self._folder.sync()
            self._main, self._generation = sealed, generation
            self._write_anchor(self._reached(), sync=self._redefined)
        self._redefined = False

    def reseal(self, found: Found) -> None:
        """Seal every file of the run anew, for this project and with the current key.

        Nothing is written before everything was opened. Until everything was written, a run that was moved here still
        is another project's.
        """
        for _ in self._sealed_files(found):
            pass  # a WrongKey comes out here
        self.adopt(found)
        self.save(found.state)
        assert self._below is not None
        with self._writing(self._below.path):
            for name, opened in self._sealed_files(found):
                subject = replace(opened.subject, project=self._place.id)
                self._below.write_new(name, seal(opened.payload, subject, opened.generation, self.keys))
            self._below.sync()
        self.save(found.state)  # now the backup is of this project, too

    def close(self) -> None:
        """Let go of the lock; a second call does nothing."""
        self._forget()
        if self._anchor is not None:
            self._anchor.close()
        self._anchor = None
        self._folder.close()
        self._lock.release()

    # -- inside --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        if self._below is not None:
            self._below.close()
        self._below = None
        self._definition = None
        self._redefined = False
        self._run = ""
        self._generation = 0
        self._sequence = 0
        self._attempts = {}
        self._main = b""

    def _sweep(self) -> None:
        with suppress(OSError, StateCorrupted):
            self._folder.sweep(f"{main_name(self.feature)}.")
        with suppress(OSError, StateCorrupted), self._folder.below(folder_name(self.feature)) as below:
            below.sweep()
        with suppress(OSError, StateCorrupted), self._place.folder.below("anchors") as anchors:
            anchors.sweep(f"{self.feature}.")

    def _open_below(self) -> None:
        self._below = self._folder.below(folder_name(self.feature), make=True)

    def _subject(self, kind: str, name: str, number: int) -> Subject:
        return Subject(self._place.id, self.feature, self._run, kind, name, number)

    def _numbered(self, checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
        for generation, checkpoint in enumerate(checkpoints, self._sequence + 1):
            yield replace(checkpoint, attempt=self.next_attempt(checkpoint.phase), generation=generation)

    def _sealed_checkpoint(self, checkpoint: Checkpoint) -> bytes:
        subject = self._subject("checkpoint", checkpoint.phase, checkpoint.attempt)
        sealed = seal(encode_checkpoint(checkpoint), subject, checkpoint.generation, self.keys)
        return _kept(sealed, CHECKPOINT_MAX, f"the results of {checkpoint.phase}")

    def _defined(self, state: State) -> State:
        """The state with its definition, a new one where what does not count has changed: it must outlast the state."""
        assert self._definition is not None
        if (self._definition.dropped, self._definition.absent) != (state.dropped, state.absent):
            self.define(replace(self._definition, dropped=state.dropped, absent=state.absent))
        return replace(state, definition=self._definition.number)

    def _reached(self) -> Anchor:
        assert self._definition is not None
        return Anchor(self._run, self._generation, self._sequence, self._definition.number)

    def _write_anchor(self, anchor: Anchor, *, sync: bool = False) -> None:
        if self._anchor is None:
            self._anchor = open_anchor(self._place, self.feature, make=True)
        self._anchor.write(anchor.fields, sync=sync)

    def _sealed_files(self, found: Found) -> Iterator[tuple[str, Opened]]:
        """Every file in the folder of the run that is true, whatever it was sealed for."""
        reader = Reader(self._folder, self._place.id, self.feature, self.keys, anyhow=True)
        run = found.state.run
        with self._folder.below(folder_name(self.feature)) as below:
            names = below.names()
            for phase, attempt in checkpoints_among(names):
                with suppress(StateCorrupted):
                    yield checkpoint_name(phase, attempt), reader.checkpoint(below, phase, attempt, run)
            for number in definitions_among(names):
                with suppress(StateCorrupted):
                    yield definition_name(number), reader.definition(below, number, run)

    def _put_aside(self, source: Folder, names: Sequence[str]) -> None:
        if names:
            with self._aside() as (aside, _):
                self._move(source, aside, names)

    def _move(self, source: Folder, aside: Folder, names: Iterable[str]) -> None:
        for name in names:
            source.rename(name, aside, name)
        aside.sync()
        source.sync()

    @contextmanager
    def _aside(self) -> Iterator[tuple[Folder, str]]:
        """A folder of its own for what is put aside now: ``aside/<feature>.<number>``, and its name."""
        with self._folder.below("aside", make=True) as top:
            names = set(top.names())
            name = next(name for number in count(1) if (name := f"{self.feature}.{number}") not in names)
            with top.below(name, make=True) as folder:
                yield folder, name

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        """Say of every OSError that the state cannot be written, and what is next; it was the last write then."""
        if self._failed is not None:
            raise StateUnwritable(*self._failed.args)
        self._failed = StateUnwritable("state cannot be written: an earlier write did not come to its end", "", path)
        try:
            yield
        except OSError as error:
            self._failed = unwritable(error, path)
            raise self._failed from error
        self._failed = None


def _lock(folder: Folder, feature: str, wait_s: float) -> Lock:
    try:
        return acquire(folder, lock_name(feature), wait_s=wait_s, who=feature)
    except Locked as error:
        hint = f"see it with: sage-sandbox status {feature}; end it with: sage-sandbox cancel {feature}"
        raise Locked(f"{feature} is being run already: {error.message}", hint, error.owner) from None


def _kept(sealed: bytes, most: int, what: str) -> bytes:
    if len(sealed) > most:  # it could not be read again
        message = f"{what} are too large to be kept ({len(sealed) >> 20} MiB)"
        raise StateUnwritable(message, "have operations leave files in $SAGE_OUT")
    return sealed
