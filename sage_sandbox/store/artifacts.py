"""Artifacts come into place when the checkpoint that names them is durable: ``<operation>.tmp`` becomes ``<operation>``.

Until then a killed run leaves a ``.tmp`` folder: a resume finishes the move where the checkpoint is there and the files are
what it says, and removes the folder otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder, sage_folder
from sage_sandbox.errors import StateCorrupted
from sage_sandbox.outcome import Artifact, Outcome

PENDING: Final = ".tmp"


def publish(project: Path, feature: str, phase: str, operations: Iterable[tuple[str, Outcome]]) -> None:
    """Put what the fulfilled operations of a phase left into place, in the place of what an earlier run left there."""
    left = [name for name, outcome in operations if outcome.artifacts]
    if left:
        with sage_folder(project, "artifacts", feature, phase) as folder:
            for name in left:
                _move_in(folder, name)


def settle(project: Path, feature: str, committed: Mapping[str, Iterable[tuple[str, Outcome]]]) -> None:
    """Finish or undo the moves that a killed run had begun."""
    try:
        top = sage_folder(project, "artifacts", feature)
    except FileNotFoundError:
        return
    with top:
        for phase in top.names():
            with suppress(StateCorrupted, FileNotFoundError), top.below(phase) as folder:
                _settle_phase(folder, dict(committed.get(phase, ())))


def _settle_phase(folder: Folder, outcomes: Mapping[str, Outcome]) -> None:
    for pending in folder.names():
        if not pending.endswith(PENDING):
            continue
        name = pending.removesuffix(PENDING)
        outcome = outcomes.get(name)
        if outcome is not None and outcome.artifacts and _is_what_was_committed(folder, pending, outcome.artifacts):
            _move_in(folder, name)
        else:
            shutil.rmtree(pending, ignore_errors=True, dir_fd=folder.fd)


def _move_in(folder: Folder, name: str) -> None:
    pending = f"{name}{PENDING}"
    if pending in folder.names():
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder.fd)
        os.rename(pending, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        folder.sync()


def _is_what_was_committed(folder: Folder, pending: str, artifacts: Iterable[Artifact]) -> bool:
    try:
        with folder.below(pending) as top:
            return all(_digest(top, artifact) == artifact.sha256 for artifact in artifacts)
    except (OSError, StateCorrupted, ValueError):
        return False


def _digest(top: Folder, artifact: Artifact) -> str:
    *folders, name = artifact.path.split("/")
    with top.below(*folders) as folder:
        return hashlib.sha256(folder.read(name, artifact.size)).hexdigest()
