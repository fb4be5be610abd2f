"""What is done to the state of a project between runs: seal it anew, write it out, throw old runs away."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from sage_sandbox.disk.files import Folder, unwritable
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import SageError, StateCorrupted
from sage_sandbox.store.envelope import Opened, open_sealed, seal
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    CHECKPOINT_MAX,
    backup_name,
    checkpoint_name,
    checkpoints_among,
    definition_name,
    definitions_among,
    features_among,
    folder_name,
    lock_name,
    main_name,
    open_anchor,
)
from sage_sandbox.store.reading import Found, read_run, read_state
from sage_sandbox.store.records import encode_checkpoint, encode_state

LOCK_WAIT_S: Final = 1.5
ENDED: Final = ("completed", "failed", "cancelled")


# -- sealing anew --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file as it was opened, and where it lies."""

    folder: Folder
    name: str
    opened: Opened


def rekey(folder: Folder, place: ProjectPlace, keys: Keys) -> tuple[str, ...]:
    """Seal every run of a project with the current key and for this project; the features.

    ``keys`` must hold every key that was used. All files of a feature are opened before the first is written, and each
    is replaced whole: killed in between, it is done again. What is there is then what counts: the anchor follows it.
    """
    features = features_among(folder.names())
    for feature in features:
        with acquire(folder, lock_name(feature), wait_s=LOCK_WAIT_S, who=f"{feature}, state rekey"):
            _rekey(folder, place, feature, keys)
    return tuple(features)


def _rekey(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> None:
    with folder.below(folder_name(feature)) as below:
        files = list(_sealed_files(folder, below, feature, keys))
        try:
            for file in files:
                subject = replace(file.opened.subject, project=place.id)
                file.folder.write_new(file.name, seal(file.opened.payload, subject, file.opened.generation, keys))
            below.sync()
            folder.sync()
            _anchor_to(place, feature, files)
        except OSError as error:
            raise unwritable(error, folder.path) from error


def _anchor_to(place: ProjectPlace, feature: str, files: list[Sealed]) -> None:
    main = files[-1].opened
    generations = [file.opened.generation for file in files if file.opened.subject.kind == "checkpoint"]
    anchor = open_anchor(place, feature, make=True)
    try:
        anchor.write((main.subject.run, str(main.generation), str(max(generations, default=0))), sync=True)
    finally:
        anchor.close()


def _sealed_files(folder: Folder, below: Folder, feature: str, keys: Keys) -> Iterator[Sealed]:
    """Every file of a feature, the main file last. StateCorrupted if one is not what it is named."""
    names = below.names()
    inside = [definition_name(number) for number in definitions_among(names)]
    inside += [checkpoint_name(phase, attempt) for phase, attempt in checkpoints_among(names)]
    places = [*((below, name) for name in inside), (folder, backup_name(feature)), (folder, main_name(feature))]
    for where, name in places:
        with suppress(FileNotFoundError):
            yield _opened(where, name, feature, keys)


def _opened(folder: Folder, name: str, feature: str, keys: Keys) -> Sealed:
    path = f"{folder.path}/{name}"
    data = folder.read(name, CHECKPOINT_MAX)
    for encrypt in (keys.encrypt, not keys.encrypt):
        with suppress(StateCorrupted):
            opened = open_sealed(data, None, keys.encrypting(encrypt), path=path)
            if opened.subject.feature == feature and _named_right(opened, name):
                return Sealed(folder, name, opened)
    opened = open_sealed(data, None, keys, path=path)
    raise StateCorrupted(f"{path} is a file of {opened.subject.feature}", "", path)


def _named_right(opened: Opened, name: str) -> bool:
    subject = opened.subject
    names = {
        "definition": (definition_name(subject.number),),
        "checkpoint": (checkpoint_name(subject.name, subject.number),),
        "state": (main_name(subject.feature), backup_name(subject.feature)),
    }
    return name in names.get(subject.kind, ())


# -- writing out ---------------------------------------------------------------------------------------------------


def export(found: Found) -> dict[str, Any]:
    """A whole run as plain data, under the names of the specification: the state with every checkpoint in full."""
    state: dict[str, Any] = json.loads(encode_state(found.state))
    state["checkpoints"] = {phase: json.loads(encode_checkpoint(held)) for phase, held in found.checkpoints.items()}
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


# -- checking ------------------------------------------------------------------------------------------------------


def verify(folder: Folder, place: ProjectPlace, keys: Keys, features: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each feature, and everything that is wrong with its state."""
    for feature in features:
        try:
            found = read_run(folder, place, feature, keys)
        except SageError as error:
            yield feature, (error.message,)
        else:
            yield feature, tuple(damage.message for damage in found.damages)


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

    What can be resumed by design (a paused run) and what cannot be read stay. ``age_s`` says how old a timestamp is.
    """
    gone = []
    for feature in features_among(folder.names()):
        with suppress(SageError):
            state = read_state(folder, place, feature, keys)
            if state.status in ENDED and age_s(state.updated_at) > older_than_s:
                with acquire(folder, lock_name(feature), wait_s=0):
                    _remove(folder, place, feature)
                gone.append(feature)
    with suppress(FileNotFoundError), folder.below("aside") as aside:
        for name in aside.names():
            with aside.below(name) as found:
                old = now() - _touched(found) > older_than_s
            if old:
                shutil.rmtree(name, dir_fd=aside.fd)
                gone.append(f"aside/{name}")
    return tuple(gone)


def _touched(folder: Folder) -> float:
    return os.fstat(folder.fd).st_mtime


def _remove(folder: Folder, place: ProjectPlace, feature: str) -> None:
    """The main file goes first: what is left of a removal that was interrupted has no run of that name any more."""
    for name in (backup_name(feature), main_name(feature)):
        with suppress(FileNotFoundError):
            folder.remove(name)
    folder.sync()
    shutil.rmtree(folder_name(feature), ignore_errors=True, dir_fd=folder.fd)
    with suppress(FileNotFoundError), place.folder.below("anchors") as anchors:
        anchors.remove(feature)
