"""How long ``sage-sandbox --help`` takes, against an interpreter that does nothing.

The aim is against the bare interpreter (section 14, line 8); the second floor is the same interpreter with ``site``,
which the installed script cannot do without.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.floors.programs import BARE, program
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import cli_argv

_WHAT, _BARE, _SITE = "`sage-sandbox --help`", "python3 -I -S -c pass", "python3 -c pass"


def measure(scale: Scale) -> Iterator[Row]:
    """One row."""
    times = pick(scale, 10, 5, 1)
    arms: dict[str, Round] = {
        _WHAT: each(program(cli_argv("--help")), times),
        _BARE: each(program(BARE), times),
        _SITE: each(program([sys.executable, "-c", "pass"]), times),
    }
    taken = take_turns(arms, pick(scale, 12, 5, 1))
    yield row(
        _WHAT,
        taken[_WHAT],
        "ms",
        {_BARE: taken[_BARE], _SITE: taken[_SITE]},
        [Aim("<= 6x bare interpreter", 6, of="ratio")],
    )


if __name__ == "__main__":
    main(__doc__ or "", measure)
