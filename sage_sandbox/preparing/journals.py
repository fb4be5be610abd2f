"""A feature's lock and journal, and whether there is anything to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sage_sandbox.errors import Locked, NoSuchRun, Unfinished
from sage_sandbox.preparing.naming import check_place
from sage_sandbox.preparing.notices import active_runs, said

if TYPE_CHECKING:
    from sage_sandbox.journal import Journal
    from sage_sandbox.preparing.how import How


def open_journal(how: How, feature: str) -> tuple[Journal, str]:
    """Take the feature's lock; what opens and seals its state."""
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.journal import Journal
    from sage_sandbox.results.scrub import known_values
    from sage_sandbox.store.opening import open_keys

    check_place(how.project, feature)
    place = project_place(how.project, how.env)
    try:
        keys = open_keys(how.env, place, ask_passphrase=how.ask_passphrase)
    except BaseException:
        place.folder.close()
        raise
    try:
        return Journal.open(how.project, place, feature, keys, known_values(how.env))
    except Locked as error:
        raise Locked(error.message, "; ".join(said(error.hint, active_runs(how.project))), error.owner) from error


@contextmanager
def closing_on_error(journal: Journal | None) -> Iterator[None]:
    """Let go of the feature if what is prepared comes to nothing."""
    try:
        yield
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def refuse_unfinished(journal: Journal) -> None:
    """UsageError if the feature has a run that could be gone on with; a damaged one is an error of its own."""
    try:
        state = journal.read().state
    except NoSuchRun:
        return
    if state.status != "completed":
        done = f"{state.progress['completed']} of {state.progress['total']} phases are done"
        status = "was interrupted" if state.status == "running" else f"is {state.status}"
        raise Unfinished(
            f"{state.feature} {status}: {done}",
            f"go on with: sage-sandbox resume {state.feature}; or start anew with --restart",
        )


def require_state(project: Path, feature: str) -> None:
    """NoSuchRun where nothing of that name was ever saved: then nothing is made there either."""
    from sage_sandbox.store.layout import features_among, state_folder

    check_place(project, feature)
    with suppress(FileNotFoundError), state_folder(project) as folder:
        if feature in features_among(folder.names()):
            return
    raise NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")
