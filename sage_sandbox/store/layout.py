"""Where the files of the state lie, and how each is read and taken for what it should be."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder, sage_folder
from sage_sandbox.disk.marks import Mark as AnchorFile
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import StateCorrupted
from sage_sandbox.frozen import frozen
from sage_sandbox.store.envelope import Opened, Subject, open_sealed
from sage_sandbox.store.keys import Keys

MiB: Final = 1 << 20
MAIN_MAX: Final = 64 * MiB
DEFINITION_MAX: Final = 96 * MiB
CHECKPOINT_MAX: Final = 512 * MiB
"""The largest files there may be, in bytes: a checkpoint holds the results of all operations of a phase, in base64."""

_CHECKPOINT: Final = re.compile(r"([a-z0-9-]{1,64})\.([1-9][0-9]{0,8})\.json")
_DEFINITION: Final = re.compile(r"_definition\.([1-9][0-9]{0,8})\.json")
_MAIN: Final = re.compile(r"workflow-([a-z0-9][a-z0-9-]{0,63})\.json")
NO_RUN: Final = "-"
"""What an anchor says of the run when one was set aside: what counts is only what is written after that."""


class Foreign(StateCorrupted):
    """A file that is true, but for another project or under the other setting: `state rekey` takes it over."""


@frozen
class Anchor:
    """How far the state had come when it was last written.

    The run, the main file's generation, the last checkpoint's, the number of the definition in force.
    """

    run: str
    generation: int
    sequence: int
    definition: int

    @property
    def fields(self) -> tuple[str, ...]:
        """As a mark keeps it."""
        return (self.run, str(self.generation), str(self.sequence), str(self.definition))


def main_name(feature: str) -> str:
    """The main file of a feature."""
    return f"workflow-{feature}.json"


def backup_name(feature: str) -> str:
    """The main file before the last change."""
    return f"workflow-{feature}.json.bak"


def lock_name(feature: str) -> str:
    """What the process that runs a feature holds."""
    return f"workflow-{feature}.lock"


def folder_name(feature: str) -> str:
    """The folder of a feature's checkpoints."""
    return f"workflow-{feature}"


def checkpoint_name(phase: str, attempt: int) -> str:
    """A checkpoint."""
    return f"{phase}.{attempt}.json"


def definition_name(number: int) -> str:
    """A definition; no phase can have that name."""
    return f"_definition.{number}.json"


def checkpoints_among(names: list[str]) -> list[tuple[str, int]]:
    """Phase and attempt of every name that is a checkpoint's."""
    found = (_CHECKPOINT.fullmatch(name) for name in names)
    return [(match[1], int(match[2])) for match in found if match]


def definitions_among(names: list[str]) -> list[int]:
    """The numbers of the definitions, the newest first."""
    found = (_DEFINITION.fullmatch(name) for name in names)
    return sorted((int(match[1]) for match in found if match), reverse=True)


def features_among(names: list[str]) -> list[str]:
    """The features that have a main file, or a folder that one could be made anew from."""
    folders = (
        name.removesuffix(".bak").removesuffix(".json") + ".json" for name in names if not name.endswith(".lock")
    )
    found = (_MAIN.fullmatch(name) for name in folders)
    return sorted({match[1] for match in found if match})


def state_folder(project: Path, *, make: bool = False) -> Folder:
    """``.sage/state`` of a project; FileNotFoundError where there is none and none is to be made."""
    return sage_folder(project, "state", make=make)


def open_anchor(place: ProjectPlace, feature: str, *, make: bool = False) -> AnchorFile:
    """The anchor of a feature, outside the project; FileNotFoundError."""
    with place.folder.below("anchors", make=make) as folder:
        return AnchorFile.open(folder, feature, make=make)


def read_anchor(place: ProjectPlace, feature: str) -> Anchor | None:
    """What the anchor says; None if nothing was ever anchored. StateCorrupted if it is damaged."""
    try:
        with open_anchor(place, feature) as file:
            fields = file.read()
    except FileNotFoundError:
        return None
    except StateCorrupted as error:
        hint = "remove it; `sage-sandbox state rekey` then takes what the project holds as it is"
        raise StateCorrupted(error.message, error.hint or hint, error.path) from error
    return Anchor(fields[0], *map(int, fields[1:4])) if fields else None


@frozen
class Reader:
    """Opens the sealed files of one feature: each from its name, each for what it must be. StateCorrupted, WrongKey.

    ``anyhow``: also those of another project, or under the other setting, which are Foreign otherwise.
    """

    folder: Folder
    project: str
    feature: str
    keys: Keys
    anyhow: bool = False

    def main(self, name: str) -> tuple[bytes, Opened]:
        """The main file or its backup: the bytes as they are, and what is in them. Any run."""
        data = self.folder.read(name, MAIN_MAX)
        return data, self._open(data, f"{self.folder.path}/{name}", self._subject("", "state", "", 0))

    def definition(self, below: Folder, number: int, run: str) -> Opened:
        """A definition, of one run or (``run`` empty) of any."""
        name = definition_name(number)
        data = below.read(name, DEFINITION_MAX)
        return self._open(data, f"{below.path}/{name}", self._subject(run, "definition", "", number))

    def checkpoint(self, below: Folder, phase: str, attempt: int, run: str) -> Opened:
        """A checkpoint."""
        name = checkpoint_name(phase, attempt)
        data = below.read(name, CHECKPOINT_MAX)
        return self._open(data, f"{below.path}/{name}", self._subject(run, "checkpoint", phase, attempt))

    def _subject(self, run: str, kind: str, name: str, number: int) -> Subject:
        return Subject(self.project, self.feature, run, kind, name, number)

    def _open(self, data: bytes, path: str, subject: Subject) -> Opened:
        try:
            return open_sealed(data, subject, self.keys, path=path)
        except StateCorrupted as error:
            opened = self._open_anyhow(data, path, replace(subject, project=""))
            if opened is None:
                raise
            if self.anyhow:
                return opened
            raise Foreign(error.message, error.hint, path) from error

    def _open_anyhow(self, data: bytes, path: str, subject: Subject) -> Opened | None:
        """What it is if neither its project nor the setting mattered; a forgery is nothing then, too."""
        for encrypt in (self.keys.encrypt, not self.keys.encrypt):
            with suppress(StateCorrupted):
                return open_sealed(data, subject, self.keys.encrypting(encrypt), path=path)
        return None
