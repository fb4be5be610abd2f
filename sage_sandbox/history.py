"""Which runs a project has, and how each stands: read without a lock, and without keeping anybody waiting."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from sage_sandbox.control.asking import NotAnswering, ask
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import is_held
from sage_sandbox.disk.places import ProjectPlace, project_place
from sage_sandbox.errors import NoSuchRun, SageError, StateCorrupted
from sage_sandbox.frozen import frozen
from sage_sandbox.results.personal import cleaned
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import features_among, lock_name, main_name, state_folder
from sage_sandbox.store.opening import open_keys
from sage_sandbox.store.reading import ADOPT_HINT, Found, read_run, read_state
from sage_sandbox.store.records import RunStatus, Session, State, progress

LIVE_S: Final = 0.5
"""How long a running process may take to say where it is; one that is stopped is not waited for."""


PATIENCE_S: Final = 3600.0
POLL_S: Final = 0.05


@frozen
class Standing:
    """How one run stands, without personal data.

    ``trouble`` says why it cannot be read; ``interrupted``: its process was killed. ``sessions`` are the processes that
    worked on it, in their order.
    """

    feature: str
    status: RunStatus | Literal["unreadable"]
    template: str = ""
    run: str = ""
    phase: str = ""
    started_at: str = ""
    updated_at: str = ""
    progress: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[Mapping[str, Any], ...] = ()
    phases: tuple[tuple[str, str], ...] = ()
    sessions: tuple[Session, ...] = ()
    interrupted: bool = False
    trouble: str = ""


class History:
    """The runs of one project, as its user may read them. Close it."""

    def __init__(
        self,
        project: Path,
        environ: Mapping[str, str] | None = None,
        *,
        ask_passphrase: Callable[[], str] | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._ask_passphrase = ask_passphrase
        self._place: ProjectPlace | None = project_place(project, self._environ, make=False)
        self._keys: Keys | None = None
        self._folder: Folder | None = None
        try:
            self._folder = state_folder(project)
        except (FileNotFoundError, NotADirectoryError):
            return

    def features(self) -> list[str]:
        """The features that have left anything."""
        return features_among(self._folder.names()) if self._folder is not None else []

    def all(self, status: str | None = None) -> Iterator[Standing]:
        """Every run, or those of one status; what cannot be read is among them, saying why."""
        for feature in self.features():
            try:
                found = self.of(feature)
            except NoSuchRun:
                continue  # it was put aside meanwhile
            except SageError as error:
                found = Standing(feature, "unreadable", trouble=error.message)
            except OSError as error:
                found = Standing(feature, "unreadable", trouble=str(error))
            if status is None or found.status == status:
                yield found

    def of(self, feature: str, *, full: bool = False) -> Standing:
        """One run. NoSuchRun, StateCorrupted, WrongKey; ``full`` looks at every checkpoint."""
        self._require_state(feature)
        assert self._folder is not None
        assert self._place is not None
        state = read_state(self._folder, self._place, feature, self._found_keys())
        said, trouble = self._ask(feature, state)
        runs = bool(said)
        if full or (state.status == "running" and not said):
            # Nobody says how far it came, so its checkpoints do: it was killed, or has ended since, or is not heard.
            found, runs = self._whole(feature)
            state = found.state
            trouble = "; ".join(filter(None, (trouble if runs else "", *(damage.message for damage in found.damages))))
        goes_on = runs and state.status == "running"
        return replace(_live(state, said) if goes_on else _standing(state), trouble=trouble)

    def found(self, feature: str) -> Found:
        """All that is saved of one run, its results with it. NoSuchRun, StateCorrupted, WrongKey."""
        self._require_state(feature)
        return self._whole(feature)[0]

    def close(self) -> None:
        """Close the folders."""
        if self._folder is not None:
            self._folder.close()
        if self._place is not None:
            self._place.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_state(self, feature: str) -> None:
        """NoSuchRun, or StateCorrupted where what there is was made elsewhere."""
        if self._folder is None or (self._place is None and feature not in self.features()):
            raise NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")
        if self._place is None:
            message = f"the state in {self._folder.path} was not made here by this user"
            raise StateCorrupted(message, ADOPT_HINT, self._folder.path)

    def _is_running(self, feature: str) -> bool:
        assert self._folder is not None
        return is_held(self._folder, lock_name(feature))

    def _whole(self, feature: str) -> tuple[Found, bool]:
        """All that is saved, and whether a process runs it."""
        assert self._folder is not None
        assert self._place is not None
        ran = self._is_running(feature)
        found = read_run(self._folder, self._place, feature, self._found_keys())
        runs = self._is_running(feature)
        if ran and not runs and found.state.status == "running":
            # It has ended meanwhile, and before it let go of the lock it wrote down how.
            found = read_run(self._folder, self._place, feature, self._found_keys())
        return found, runs

    def _ask(self, feature: str, state: State) -> tuple[Mapping[str, Any], str]:
        """What the process that runs it says of itself, if anything; and what there is to say where it does not."""
        assert self._place is not None
        if state.status != "running" or not self._is_running(feature):
            return {}, ""
        try:
            said = ask(self._place.id, feature, {"do": "status"}, timeout_s=LIVE_S, environ=self._environ)
        except NotAnswering:
            return {}, "the process does not answer: it may be stopped"
        return said if said and said.get("workflowId") == state.run else {}, ""

    def _found_keys(self) -> Keys:
        assert self._place is not None
        if self._keys is None:
            ask_once, self._ask_passphrase = self._ask_passphrase, None
            self._keys = open_keys(self._environ, self._place, ask_passphrase=ask_once, make=False)
        return self._keys


Version = tuple[int, ...]


def version_of(project: Path, feature: str) -> Version | None:
    """What is another with each main file of a run, without opening it: whoever has seen it has seen this one.

    Every change of a status is a new file, renamed into place; None if there is none.
    """
    try:
        found = os.lstat(f"{project}/.sage/state/{main_name(feature)}")
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _standing(state: State) -> Standing:
    interrupted = state.status == "running"
    return Standing(
        feature=state.feature,
        status="paused" if interrupted else state.status,
        template=state.template,
        run=state.run,
        phase=state.phase,
        started_at=state.started_at,
        updated_at=state.updated_at,
        progress=state.progress,
        metrics=state.metrics,
        errors=tuple({**error, "message": cleaned(str(error.get("message", "")))} for error in state.errors),
        phases=tuple(
            (phase, state.checkpoints[phase].outcome if phase in state.checkpoints else "pending")
            for phase in state.phase_ids
        ),
        sessions=state.sessions,
        interrupted=interrupted,
    )


def _live(state: State, said: Mapping[str, Any]) -> Standing:
    """A run that goes on: as its process says; what that leaves out, as it is saved."""
    found = replace(_standing(state), status="running", interrupted=False)
    measured = said.get("progress")
    completed = measured.get("completed") if isinstance(measured, dict) else None
    if isinstance(completed, int):
        found = replace(found, progress=progress(completed, len(state.phase_ids)))
    return replace(found, phase=str(said.get("phase") or found.phase))


def standing_document(standing: Standing, *, full: bool = False) -> dict[str, Any]:
    """A run under the names of the specification."""
    document = {
        "feature": standing.feature,
        "template": standing.template,
        "workflowId": standing.run,
        "phase": standing.phase,
        "status": standing.status,
        "startedAt": standing.started_at,
        "lastUpdatedAt": standing.updated_at,
        "progress": dict(standing.progress),
        "metrics": dict(standing.metrics),
        "errors": [dict(error) for error in standing.errors],
        "interrupted": standing.interrupted,
    }
    if standing.trouble:
        document["trouble"] = standing.trouble
    if full:
        document["phases"] = [{"id": phase, "status": outcome} for phase, outcome in standing.phases]
    return document


def wait_for(
    project: Path,
    feature: str,
    environ: Mapping[str, str] | None = None,
    *,
    timeout_s: float | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Return once no process runs the feature (at once if none does), or False after ``timeout_s``.

    The process is asked to say when it has ended; while it does not listen (yet), its lock is looked at.
    """
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    place = project_place(project, environ, make=False)
    if place is None:
        return True
    with place.folder, suppress(FileNotFoundError), state_folder(project) as folder:
        while is_held(folder, lock_name(feature)):
            if (left := until - time.monotonic()) <= 0:
                return False
            with suppress(NotAnswering):
                ask(place.id, feature, {"do": "wait"}, timeout_s=min(left, PATIENCE_S), environ=environ)
            pause(POLL_S)
    return True
