"""A process that looks at a run, again and again, until it has ended: started by test_many_processes.

It says a byte on stdout for each of the looks that were asked for, and at the end on stderr a document of what it saw.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sage_sandbox.history import History, Standing

FULL_EVERY = 10
LIST_EVERY = 25
UNHEARD = "the process does not answer: it may be stopped"
"""What a look says that a busy machine let wait too long. It is told what is saved, and that is no error."""


def look(project: Path, feature: str, number: int) -> Standing:
    """As `status`, `status --full` or `list` do: everything is opened anew, as in a process of its own."""
    with History(project) as history:
        if number % LIST_EVERY:
            return history.of(feature, full=not number % FULL_EVERY)
        (standing,) = history.all()
        return standing


def wrong_with(standing: Standing, before: Standing | None, *, may_end: bool) -> Iterator[str]:
    """What a look may not show of a run that goes on."""
    if standing.interrupted or standing.status not in {"running", *(["completed"] if may_end else [])}:
        yield f"{standing.status}, interrupted: {standing.interrupted}"
    if standing.trouble not in {"", UNHEARD}:
        yield standing.trouble
    if before is not None and standing.run != before.run:
        yield f"another run: {standing.run}"
    if before is not None and standing.progress["completed"] < before.progress["completed"]:
        yield f"{standing.progress} after {before.progress}: {standing.trouble or 'it said so'}"


def main(project: Path, feature: str, looks: int) -> dict[str, object]:
    """Look that often, and then until the run has ended; what was seen."""
    wrong: list[str] = []
    before: Standing | None = None
    number, slowest_s, unheard = 0, 0.0, 0
    while number < looks or before is None or before.status == "running":
        began = time.monotonic()
        try:
            standing = look(project, feature, number)
            wrong += wrong_with(standing, before, may_end=number >= looks)
            unheard += standing.trouble == UNHEARD
            before = standing
        except Exception as error:  # noqa: BLE001 - every error is one too many
            wrong.append(f"{type(error).__name__}: {error}")
        slowest_s = max(slowest_s, time.monotonic() - began)
        if number < looks:
            os.write(1, b".")
        number += 1
    return {"looks": number, "wrong": wrong, "slowest_s": round(slowest_s, 3), "unheard": unheard}


if __name__ == "__main__":
    sys.stderr.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
