"""One feature's state for the process that runs it: locked, written in the order that docs/design.md gives.

A file is whole and durable before its name is there, checkpoints before the anchor, the anchor before anything that
follows from them. Every OSError on the way ends as StateUnwritable; what was committed before stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder, unwritable
from sage_sandbox.disk.locking import Lock, acquire
from sage_sandbox.disk.marks import Mark as AnchorFile
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import Locked, StateUnwritable
from sage_sandbox.store.envelope import Subject, seal
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    ANY_RUN,
    CHECKPOINT_MAX,
    Anchor,
    backup_name,
    checkpoint_name,
    definition_name,
    folder_name,
    lock_name,
    main_name,
    open_anchor,
    read_anchor,
    state_folder,
)
from sage_sandbox.store.reading import Found, read_run
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
    """Holds a feature's lock from `open` to `close`; the only writer of its state."""

    def __init__(self, folder: Folder, lock: Lock, place: ProjectPlace, feature: str, keys: Keys) -> None:
        self.feature = feature
        self._folder = folder
        self._lock = lock
        self._place = place
        self._keys = keys
        self._below: Folder | None = None
        self._anchor: AnchorFile | None = None
        self._run = ""
        self._generation = 0
        self._sequence = 0
        self._attempts: dict[str, int] = {}
        self._main = b""

    @classmethod
    def open(cls, project: Path, place: ProjectPlace, feature: str, keys: Keys, *, wait_s: float = LOCK_WAIT_S) -> RunStore:
        """Take the feature's lock and sweep what a killed process left half-written. Locked, StateUnwritable."""
        with _written(str(project / ".sage" / "state")):
            folder = state_folder(project, make=True)
        try:
            with _written(folder.path):
                lock = _lock(folder, feature, wait_s)
            store = cls(folder, lock, place, feature, keys)
        except BaseException:
            folder.close()
            raise
        with suppress(OSError):
            store._sweep()
        return store

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self) -> Found:
        """What is there; as `reading.read_run`."""
        return read_run(self._folder, self._place, self.feature, self._keys)

    # -- beginning -----------------------------------------------------------------------------------------------

    def create(self, state: State, definition: Definition) -> None:
        """The first files of a new run. What an earlier run of the feature left must have been set aside."""
        anchor = read_anchor(self._place, self.feature)
        self._run = state.run
        self._generation = anchor.generation if anchor else 0
        with _written(self._folder.path):
            self._open_below()
        self.define(definition)
        self.save(state)

    def adopt(self, found: Found) -> None:
        """Go on with what was read: damaged files are put aside, and what is written next continues its numbers."""
        self._run = found.state.run
        self._generation = found.generation
        self._sequence = found.sequence
        self._attempts = dict(found.attempts)
        self._main = found.main
        with _written(self._folder.path):
            self._open_below()
            self._put_aside_damaged(found)

    def set_aside(self) -> None:
        """Move everything an earlier run left to ``aside/``. Killed in between, what is left is still the old run."""
        anchor = read_anchor(self._place, self.feature)
        names = [main_name(self.feature), backup_name(self.feature), folder_name(self.feature)]
        with _written(self._folder.path):
            present = [name for name in names if name in self._folder.names()]
            if not present:
                return
            if anchor is not None:
                self._write_anchor(Anchor(ANY_RUN, anchor.generation, 0))
            with self._aside() as aside:
                for name in present:
                    self._folder.rename(name, aside, name)
                aside.sync()
            self._folder.sync()

    def define(self, definition: Definition) -> None:
        """Write a definition of the run, once."""
        assert self._below is not None
        subject = self._subject("definition", "", definition.number)
        with _written(self._below.path):
            sealed = seal(encode_definition(definition), subject, definition.number, self._keys)
            self._below.write_new(definition_name(definition.number), sealed)
            self._below.sync()

    # -- going on ------------------------------------------------------------------------------------------------

    def next_attempt(self, phase: str) -> int:
        """The number of the next checkpoint of a phase."""
        return self._attempts.get(phase, 0) + 1

    def commit(self, checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
        """Make the phases that ended durable, together; their checkpoints with the numbers they got."""
        assert self._below is not None
        done = tuple(self._numbered(checkpoints))
        with _written(self._below.path):
            for checkpoint in done:
                self._below.write_new(checkpoint_name(checkpoint.phase, checkpoint.attempt), self._sealed(checkpoint))
            self._below.sync()
            self._sequence = done[-1].generation if done else self._sequence
            self._write_anchor(Anchor(self._run, self._generation, self._sequence))
        self._attempts.update((checkpoint.phase, checkpoint.attempt) for checkpoint in done)
        return done

    def save(self, state: State) -> None:
        """Write the main file; the one before it becomes the backup."""
        generation = self._generation + 1
        sealed = seal(encode_state(state), self._subject("state", "", 0), generation, self._keys)
        with _written(self._folder.path):
            if self._main:
                self._folder.write_new(backup_name(self.feature), self._main)
            self._folder.write_new(main_name(self.feature), sealed)
            self._folder.sync()
            self._main, self._generation = sealed, generation
            self._write_anchor(Anchor(self._run, generation, self._sequence))

    def close(self) -> None:
        """Let go of the lock; a second call does nothing."""
        if self._below is not None:
            self._below.close()
        if self._anchor is not None:
            self._anchor.close()
        self._folder.close()
        self._lock.release()
        self._below = self._anchor = None

    # -- inside --------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._folder.sweep(f"{main_name(self.feature)}.")
        with suppress(FileNotFoundError), self._folder.below(folder_name(self.feature)) as below:
            below.sweep()
        with suppress(FileNotFoundError), self._place.folder.below("anchors") as anchors:
            anchors.sweep(f"{self.feature}.")

    def _open_below(self) -> None:
        if self._below is None:
            self._below = self._folder.below(folder_name(self.feature), make=True)

    def _subject(self, kind: str, name: str, number: int) -> Subject:
        return Subject(self._place.id, self.feature, self._run, kind, name, number)

    def _numbered(self, checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
        for generation, checkpoint in enumerate(checkpoints, self._sequence + 1):
            yield replace(checkpoint, attempt=self.next_attempt(checkpoint.phase), generation=generation)

    def _sealed(self, checkpoint: Checkpoint) -> bytes:
        subject = self._subject("checkpoint", checkpoint.phase, checkpoint.attempt)
        sealed = seal(encode_checkpoint(checkpoint), subject, checkpoint.generation, self._keys)
        if len(sealed) > CHECKPOINT_MAX:
            raise StateUnwritable(
                f"the results of {checkpoint.phase} are too large to be kept ({len(sealed) >> 20} MiB)",
                "have its operations leave files in $SAGE_OUT",
            )
        return sealed

    def _write_anchor(self, anchor: Anchor) -> None:
        if self._anchor is None:
            self._anchor = open_anchor(self._place, self.feature, make=True)
        self._anchor.write((anchor.run, str(anchor.generation), str(anchor.sequence)))

    def _put_aside_damaged(self, found: Found) -> None:
        if not found.damages:
            return
        assert self._below is not None
        with self._aside() as aside:
            for damage in found.damages:
                source = self._below if damage.phase else self._folder
                with suppress(FileNotFoundError):
                    source.rename(damage.name, aside, damage.name)
            aside.sync()
        self._below.sync()
        self._folder.sync()

    @contextmanager
    def _aside(self) -> Iterator[Folder]:
        """A folder of its own for what is put aside now: ``aside/<feature>.<number>``."""
        with self._folder.below("aside", make=True) as top:
            number = 1 + sum(name.startswith(f"{self.feature}.") for name in top.names())
            while f"{self.feature}.{number}" in top.names():
                number += 1
            with top.below(f"{self.feature}.{number}", make=True) as folder:
                yield folder


def _lock(folder: Folder, feature: str, wait_s: float) -> Lock:
    try:
        return acquire(folder, lock_name(feature), wait_s=wait_s, who=feature)
    except Locked as error:
        hint = f"see it with: sage-sandbox status {feature}; end it with: sage-sandbox cancel {feature}"
        raise Locked(f"{feature} is being run already: {error.message}", hint, error.owner) from None


@contextmanager
def _written(path: str) -> Iterator[None]:
    """Say of every OSError that the state cannot be written, and what is next."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from error
