"""What a saved run hands to whoever asks for it later: the kept part of each result, its log, the files it left.

Secrets were taken out before anything was saved; personal data is taken out here, as wherever something leaves a run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import sage_folder
from sage_sandbox.errors import NoSuchRun, SageError
from sage_sandbox.frozen import frozen
from sage_sandbox.history import History
from sage_sandbox.observe.log import read_log, rendered
from sage_sandbox.outcome import Artifact
from sage_sandbox.results.filtering import KEPT_BYTES, kept
from sage_sandbox.results.leaving import Handed, hand_back
from sage_sandbox.results.personal import cleaned
from sage_sandbox.results.scrub import Scrubber, known_values
from sage_sandbox.store.records import Checkpoint, Definition, goes_on
from sage_sandbox.workflow.definition import Keep, Template

PHASES_MOST: Final = 100
"""Of how many phases that ended there is something to hand over: the last ones."""
LINES_MOST: Final = 200
AHEAD: Final = 16 << 10
UNSURE: Final = 4 << 10
"""How far a file is read beyond what is shown of it, and how much of the end of that is never shown: the beginning of a
key that would have been replaced as a whole may stand there."""


@frozen
class OperationLeft:
    """One operation that settled: ``reason`` says why it was rejected, and is empty if it was not."""

    id: str
    reason: str
    handed: Handed
    artifacts: tuple[Artifact, ...] = ()


@frozen
class PhaseLeft:
    """One phase that ended, and what is handed back of its operations."""

    id: str
    status: str
    duration_s: float
    operations: tuple[OperationLeft, ...]


@frozen
class File:
    """A file that an operation left: where it is below its feature's artifacts, its size, its SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


# -- results -------------------------------------------------------------------------------------------------------


def phases_left(history: History, feature: str) -> tuple[PhaseLeft, ...]:
    """What the phases that ended hand over, in the order of the definition. NoSuchRun, StateCorrupted, WrongKey."""
    found = history.found(feature)
    ended = [found.checkpoints[phase] for phase in found.state.phase_ids if phase in found.checkpoints]
    keeps = _keeps(found.definition) if ended else {}
    return tuple(_phase(held, keeps) for held in ended[-PHASES_MOST:])


def resumes_at(history: History, feature: str) -> str:
    """The first phase that is not done, in the order of the definition; empty if all are."""
    state = history.found(feature).state
    marks = state.checkpoints
    return next((phase for phase in state.phase_ids if phase not in marks or not goes_on(marks[phase].outcome)), "")


def narrower(value: Any, most: int) -> Any:
    """What is kept of a result once more, in so many bytes."""
    return kept(value, Keep(max_bytes=min(most, KEPT_BYTES)))


def _phase(held: Checkpoint, keeps: Mapping[tuple[str, str], Keep]) -> PhaseLeft:
    operations = (
        OperationLeft(name, outcome.reason or "", hand_back(outcome, keeps.get((held.phase, name))), outcome.artifacts)
        for name, outcome in held.operations
    )
    return PhaseLeft(held.phase, held.outcome, held.duration_s, tuple(operations))


def _keeps(definition: Definition) -> dict[tuple[str, str], Keep]:
    """What the template says is kept, by phase and operation; nothing where it cannot be read any more."""
    from sage_sandbox.workflow.loading import load_stored

    kinds = {"yaml": "yaml", "json": "json", "toml": "toml"}
    try:
        template = Template(kinds[definition.kind], definition.text, definition.files)  # type: ignore[arg-type]
        workflow = load_stored(template, definition.source)
    except (KeyError, SageError):
        return {}
    return {
        (phase.id, operation.id): operation.keep
        for phase in workflow.phases
        for operation in phase.operations
        if operation.keep is not None
    }


# -- the log -------------------------------------------------------------------------------------------------------


def log_lines(project: Path, feature: str) -> list[str]:
    """The last lines of what is logged of a feature, fit to show. NoSuchRun if there is nothing."""
    try:
        with sage_folder(project, "logs") as folder:
            lines = deque((rendered(entry) for entry in read_log(folder, feature)), LINES_MOST)
    except FileNotFoundError:
        lines = deque()
    if not lines:
        raise NoSuchRun(f"nothing is logged of {feature} in this project", "sage-sandbox list shows what there is")
    return list(lines)


# -- files ---------------------------------------------------------------------------------------------------------


def files_left(history: History, feature: str) -> Iterator[File]:
    """The files that the fulfilled operations of a run left. NoSuchRun, StateCorrupted, WrongKey."""
    for phase, held in history.found(feature).checkpoints.items():
        for operation, outcome in held.operations:
            for one in outcome.artifacts:
                yield File(f"{phase}/{operation}/{one.path}", one.size, one.sha256)


def file_text(project: Path, feature: str, file: File, most: int, environ: Mapping[str, str]) -> str | None:
    """The beginning of a file that an operation left, so many bytes of it; None if it is no text.

    As it is now, without the secrets and the personal data that are known by their looks. OSError if it is gone,
    Untrusted if something else stands there.
    """
    *folders, name = file.path.split("/")
    with sage_folder(project, "artifacts", feature, *folders) as folder:
        fd = folder.open_file(name, os.O_RDONLY)
    with os.fdopen(fd, "rb") as opened:
        data = opened.read(most + AHEAD)
    is_whole = len(data) < most + AHEAD
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if is_whole or error.start < len(data) - 3:
            return None
        text = data[: error.start].decode()  # a character was cut in two
    text, _ = Scrubber(known_values(environ)).text(text)
    text = cleaned(text)
    return (text if is_whole else text[: max(0, len(text) - UNSURE)]).encode()[:most].decode(errors="ignore")
