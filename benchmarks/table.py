"""The answers as a table for people: measured, floor, ratio, aim, met or missed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Answer = Mapping[str, Any]
"""What a benchmark printed."""
HEAD: Final = ("what", "median", "p10 .. p95", "floor", "ratio", "aim", "")
_MARKS: Final = {True: "met", False: "MISSED", None: "-"}
_LEFT: Final = {0, 3, 5, 6}


def table(answers: Sequence[Answer]) -> str:
    """All rows; a second floor or aim has a line of its own below the first."""
    lines = [HEAD, *(cells for answer in answers for row in answer["rows"] for cells in _cells(row))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    return "\n".join("  ".join(_fit(ruled_line, widths)).rstrip() for ruled_line in ruled)


def header(answers: Sequence[Answer]) -> str:
    """On what the figures were taken, and how busy it was."""
    where = answers[0]["machine"]
    loads = [answer["load"][when] for answer in answers for when in ("before", "after")]
    return (
        f"{where['cores']} cores, kernel {where['kernel']} {where['arch']}, CPython {where['python']}, "
        f"uid {where['uid']}, scale {answers[0]['scale']}, load average {min(loads)} to {max(loads)}"
    )


def _fit(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
        yield cell.ljust(width) if column in _LEFT else cell.rjust(width)


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    unit, spread, floors, aims = row["unit"], row["spread"], row["floors"], row["aims"]
    for line in range(max(1, len(floors), len(aims))):
        floor = floors[line] if line < len(floors) else None
        aim = aims[line] if line < len(aims) else None
        first = line == 0
        yield (
            row["what"] if first else "",
            (figure(spread["median"], unit) if spread else row["missing"]) if first else "",
            f"{figure(spread['p10'])} .. {figure(spread['p95'])}" if first and spread else "",
            _floor(floor, unit) if floor else "",
            _ratio(spread, floor),
            aim["text"] if aim else "",
            _MARKS[aim["met"]] if aim else "",
        )


def _floor(floor: Mapping[str, Any], unit: str) -> str:
    if floor["spread"] is None:
        return f"{floor['what']}: {floor['missing']}"
    return f"{floor['what']} {figure(floor['spread']['median'], unit)}"


def _ratio(spread: Mapping[str, Any] | None, floor: Mapping[str, Any] | None) -> str:
    if spread is None or floor is None or floor["spread"] is None or not floor["spread"]["median"]:
        return ""
    return f"{figure(spread['median'] / floor['spread']['median'])}x"


def figure(value: float, unit: str = "") -> str:
    """Three significant digits."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    digits = min(max(digits, 0), 5)
    text = f"{value:.{digits}f}"
    return text + unit if unit in ("x", "/s") else f"{text} {unit}".rstrip()
