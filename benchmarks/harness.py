"""How a measurement is taken: rounds in turns, so that noise hits subject and floor alike, and order statistics.

A minimum says what a machine can do at its luckiest and a mean follows its worst moment; the median of many rounds is
what a user meets (pyperf's documentation, "Runs, values and warmups", argues the same way).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeVar

T = TypeVar("T")
Scale = Literal["full", "quick", "tiny"]
"""``tiny`` is for testing the harness itself: its figures mean nothing."""
SCALES: Final[tuple[Scale, ...]] = ("full", "quick", "tiny")

Round = Callable[[], Sequence[float]]
"""Measure for a while; the values it gave (seconds, or what the caller makes of them)."""


def pick(scale: Scale, full: T, quick: T, tiny: T) -> T:
    """The size that belongs to a scale."""
    return {"full": full, "quick": quick, "tiny": tiny}[scale]


def take_turns(arms: Mapping[str, Round], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """The values of each arm over so many rounds, one round of each after the other (ABAB); warm-up is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warm_up, rounds):
        for name, arm in arms.items():
            gc.collect()  # what one arm left lying is not collected at the expense of the next
            values = arm()
            if number >= 0:
                taken[name] += values
    return taken


def each(call: Callable[[], object], times: int = 1, *, pause_s: float = 0.0) -> Round:
    """A round that times every one of ``times`` calls, after a pause where one is asked for."""

    def measure() -> list[float]:
        values = []
        for _ in range(times):
            if pause_s:
                time.sleep(pause_s)
            started = time.perf_counter()
            call()
            values.append(time.perf_counter() - started)
        return values

    return measure


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a ``share`` (0 to 1) lies, interpolated between its neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
