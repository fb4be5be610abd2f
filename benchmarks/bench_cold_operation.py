"""How long the first sandboxed operation of a fresh process takes, from the start of the process to the result.

``sage.Sandbox`` in a script: interpreter, imports, zygote, foundation, first child, and with a grant the walk that
finds what a folder must not show. The floors are loky's first task in a fresh process and the bare interpreter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.floors.programs import BARE, program
from benchmarks.fresh import module, until_printed
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.projects import LARGE, SMALL, make_project
from benchmarks.records import Row, row
from benchmarks.script import main

_LOKY, _BARE = "loky's first task", "python3 -I -S -c pass"


def measure(scale: Scale) -> Iterator[Row]:
    """A row for each grant."""
    with tempfile.TemporaryDirectory() as scratch:
        small = make_project(Path(scratch, "small"), pick(scale, SMALL, SMALL, 10))
        large = make_project(Path(scratch, "large"), pick(scale, LARGE, LARGE, 20))
        arms: dict[str, Round] = {
            "cold, no grants": until_printed(module("cold_operation", small)),
            f'cold, read: ["."], {SMALL} files': until_printed(module("cold_operation", small, "read")),
            f'cold, read: ["."], {LARGE:,} files': until_printed(module("cold_operation", large, "read")),
            _LOKY: until_printed(module("floors.cold_loky")),
            _BARE: each(program(BARE)),
        }
        taken = take_turns(arms, pick(scale, 20, 5, 1))
    floors = {_LOKY: taken.pop(_LOKY), _BARE: taken.pop(_BARE)}
    for name, values in taken.items():
        yield row(name, values, "ms", floors)


if __name__ == "__main__":
    main(__doc__ or "", measure)
