"""What the gauge of a harbour sends, read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One height of the water, in metres above chart datum, at a minute of the day."""

    minute: int
    height: float


def readings(lines: Iterable[str]) -> Iterator[Reading]:
    """The readings among the lines; what is none of them is left out."""
    for line in lines:
        minute, _, height = line.strip().partition(" ")
        if not minute.isdigit():
            continue
        try:
            yield Reading(int(minute), float(height))
        except ValueError:
            continue


def smoothed(series: list[Reading], width: int) -> list[Reading]:
    """Each height as the mean of those around it: waves are no tide."""
    means = []
    for index, reading in enumerate(series):
        around = series[max(0, index - width) : index + width + 1]
        means.append(Reading(reading.minute, sum(one.height for one in around) / len(around)))
    return means
