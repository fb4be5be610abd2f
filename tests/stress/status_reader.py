"""A process that looks at a run, again and again: started by test_many_processes.

A byte on stdout for each look; on stderr, at the end, a document of what was wrong.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sage_sandbox.disk.places import project_place
from sage_sandbox.history import History, Standing
from sage_sandbox.store.layout import state_folder
from sage_sandbox.store.opening import open_keys
from sage_sandbox.store.reading import Found, read_run

FULL_EVERY = 10
LIST_EVERY = 25
CHECKPOINTS_EVERY = 50


def read(project: Path, feature: str, number: int) -> Standing:
    """One look as `status`, `status --full` or `list` have it: everything is opened anew, as in a process of its own."""
    with History(project) as history:
        if number % LIST_EVERY:
            return history.of(feature, full=not number % FULL_EVERY)
        (standing,) = history.all()
        return standing


def read_checkpoints(project: Path, feature: str) -> Found:
    """All that is saved: `status` leaves out what is damaged while the run can be asked."""
    place = project_place(project, make=False)
    assert place is not None
    with place.folder, state_folder(project) as folder:
        return read_run(folder, place, feature, open_keys(os.environ, place, make=False))


def wrong_with(standing: Standing, before: Standing | None) -> Iterator[str]:
    """What a look may not show of a run that goes on."""
    if standing.status != "running" or standing.interrupted:
        yield f"{standing.status}, interrupted: {standing.interrupted}"
    # A process that a busy machine does not let answer in time is told by what it saved: that is no error.
    if standing.trouble and "does not answer" not in standing.trouble:
        yield standing.trouble
    if before is not None and standing.run != before.run:
        yield f"another run: {standing.run}"
    if before is not None and standing.progress["completed"] < before.progress["completed"]:
        yield f"{standing.progress} after {before.progress}, {standing.trouble or 'asked'}"


def main(project: Path, feature: str, looks: int) -> dict[str, object]:
    """Look so often; what was seen."""
    wrong: list[str] = []
    before, slowest_s, unanswered = None, 0.0, 0
    for number in range(looks):
        began = time.monotonic()
        try:
            standing = read(project, feature, number)
            wrong += wrong_with(standing, before)
            unanswered += bool(standing.trouble)
            before = standing
            if not number % CHECKPOINTS_EVERY:
                found = read_checkpoints(project, feature)
                wrong += [damage.message for damage in found.damages] + [found.source] * (found.source != "state")
        except Exception as error:  # noqa: BLE001 - every error is one too many
            wrong.append(f"{type(error).__name__}: {error}")
        slowest_s = max(slowest_s, time.monotonic() - began)
        os.write(1, b".")
    return {"looks": looks, "wrong": wrong, "slowest_s": slowest_s, "unanswered": unanswered}


if __name__ == "__main__":
    sys.stderr.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
