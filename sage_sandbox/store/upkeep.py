"""What is done to the state of a project between runs: seal it anew, write it out, throw old runs away."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import Folder, unwritable
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import ExitCode, Locked, NoSuchRun, SageError, StateCorrupted, StateTooNew, WrongKey
from sage_sandbox.outcome import Outcome
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    Reader,
    checkpoints_among,
    definitions_among,
    features_among,
    folder_name,
    lock_name,
)
from sage_sandbox.store.reading import Found, read_run, read_state
from sage_sandbox.store.records import Checkpoint, encode_checkpoint, encode_state
from sage_sandbox.store.runs import RunStore

ENDED: Final = ("completed", "failed", "cancelled")
_ASIDE: Final = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.[1-9][0-9]*")


# -- sealing anew --------------------------------------------------------------------------------------------------


def rekey(folder: Folder, place: ProjectPlace, keys: Keys) -> tuple[str, ...]:
    """Seal every run of a project with the current key and for this project; the features.

    ``keys`` must hold every key that was used. What is there is what counts from then on, whatever the anchor said of
    it. Killed in between, it is done again. What is damaged is put aside, and what is locked or cannot be read is left
    as it is: that is raised once all others are done.
    """
    done: list[str] = []
    troubles: list[SageError] = []
    for feature in features_among(folder.names()):
        try:
            damages = _rekey(place, feature, keys)
        except NoSuchRun:
            continue  # it was killed before it began
        except SageError as error:
            troubles.append(error)
        else:
            done.append(feature)
            troubles += [StateCorrupted(f"{text}; it is kept in .sage/state/aside") for text in damages]
    if troubles:
        raise troubles[0]
    return tuple(done)


def _rekey(place: ProjectPlace, feature: str, keys: Keys) -> list[str]:
    with closing(RunStore.open(Path(place.real), place, feature, keys)) as store:
        found = store.take_over()
        store.reseal(found)
    return [damage.message for damage in found.damages]


# -- writing out ---------------------------------------------------------------------------------------------------


def export(found: Found, describe: Callable[[Outcome], dict[str, Any]]) -> dict[str, Any]:
    """A whole run as plain data, under the names of the specification: the state with every checkpoint in full.

    ``describe`` says an outcome in these names.
    """
    state: dict[str, Any] = json.loads(encode_state(found.state))
    held = found.checkpoints
    state["checkpoints"] = {phase: _exported(held[phase], describe) for phase in found.state.phase_ids if phase in held}
    definition = found.definition
    state["definitionInForce"] = {
        "name": definition.name,
        "source": definition.source,
        "digest": definition.digest,
        "kind": definition.kind,
        "text": definition.text,
        "files": dict(definition.files),
        "params": dict(definition.params),
        "grants": list(definition.grants),
    }
    return state


def _exported(held: Checkpoint, describe: Callable[[Outcome], dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint; what its operations returned is in its ``results`` only."""
    record: dict[str, Any] = json.loads(encode_checkpoint(held))
    described = [{"id": name, **describe(outcome)} for name, outcome in held.operations]
    record["operations"] = [{name: item[name] for name in item if name != "result"} for item in described]
    return record


# -- checking ------------------------------------------------------------------------------------------------------


def verify(
    folder: Folder, place: ProjectPlace, keys: Keys, features: list[str]
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Each feature, everything that is wrong with its state, and the exit code that goes with it."""
    for feature in features:
        try:
            found = read_run(folder, place, feature, keys)
            wrong = [damage.message for damage in found.damages]
            wrong += _damaged_spares(Reader(folder, place.id, feature, keys), found)
        except SageError as error:
            yield feature, (error.message,), int(error.exit_code)
        else:
            yield feature, tuple(wrong), int(ExitCode.STATE_CORRUPTED if wrong else ExitCode.DONE)


def _damaged_spares(reader: Reader, found: Found) -> Iterator[str]:
    """What is wrong with files that no resume would read: earlier definitions, checkpoints that no longer count."""
    run = found.state.run
    dropped = {(phase, attempt) for phase, attempt, _ in found.state.dropped}
    with suppress(FileNotFoundError), reader.folder.below(folder_name(reader.feature)) as below:
        names = below.names()
        spares = [partial(reader.definition, below, number, run) for number in definitions_among(names)]
        spares += [partial(reader.checkpoint, below, *one, run) for one in checkpoints_among(names) if one in dropped]
        for look in spares:
            try:
                look()
            except StateCorrupted as error:
                yield error.message


# -- throwing away -------------------------------------------------------------------------------------------------


def collect_garbage(
    folder: Folder,
    place: ProjectPlace,
    keys: Keys,
    older_than_s: float,
    *,
    age_s: Callable[[str], float],
    now: Callable[[], float] = time.time,
) -> tuple[str, ...]:
    """Remove the state of runs that ended longer ago than ``older_than_s``, and what was put aside before; their names.

    What can be resumed by design (a paused run), what cannot be read and what a process holds stay. ``age_s`` says how
    old a timestamp is. Killed in between, what is left lies aside.
    """

    def is_old(feature: str) -> bool:
        state = read_state(folder, place, feature, keys)
        return state.status in ENDED and age_s(state.updated_at) > older_than_s

    gone = []
    try:
        for name, feature in _names_aside(folder):
            # What is no folder was not put there by this program; what is gone meanwhile was another's to remove.
            with suppress(Locked, StateCorrupted, FileNotFoundError), acquire(folder, lock_name(feature), wait_s=0):
                if now() - _touched(folder, name) > older_than_s:
                    _remove_aside(folder, name)
                    gone.append(f"aside/{name}")
        for feature in features_among(folder.names()):
            # Looked at once more under the lock: meanwhile somebody may have gone on with it.
            with suppress(Locked, NoSuchRun, StateCorrupted, StateTooNew, WrongKey):
                if is_old(feature):
                    with closing(RunStore.open(Path(place.real), place, feature, keys, wait_s=0)) as store:
                        if is_old(feature):
                            _remove_aside(folder, store.set_aside())
                            gone.append(feature)
    except OSError as error:
        raise unwritable(error, folder.path) from error
    return tuple(gone)


def _names_aside(folder: Folder) -> list[tuple[str, str]]:
    """What was put aside, and of which feature it is."""
    try:
        with folder.below("aside") as aside:
            matches = (_ASIDE.fullmatch(name) for name in sorted(aside.names()))
    except FileNotFoundError:
        return []
    return [(match[0], match[1]) for match in matches if match]


def _touched(folder: Folder, name: str) -> float:
    with folder.below("aside", name) as found:
        return os.fstat(found.fd).st_mtime


def _remove_aside(folder: Folder, name: str) -> None:
    with folder.below("aside") as aside:
        shutil.rmtree(name, dir_fd=aside.fd)
