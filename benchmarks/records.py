"""What a benchmark answers: rows of figures, the floors they stand beside, and the aims they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from benchmarks.harness import percentile

Unit = Literal["ms", "s", "/s", "x", "MB", "MB/s"]
_FACTORS: Final[Mapping[Unit, float]] = {"ms": 1e3, "s": 1.0, "/s": 1.0, "x": 1.0, "MB": 1e-6, "MB/s": 1.0}


@dataclass(frozen=True, slots=True)
class Spread:
    """The order statistics of one series, in the unit of its row."""

    median: float
    p10: float
    p95: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float], unit: Unit) -> Self:
        """From values in seconds, bytes or plain numbers."""
        factor = _FACTORS[unit]
        median, p10, p95 = (percentile(values, share) * factor for share in (0.5, 0.1, 0.95))
        return cls(median, p10, p95, len(values))


@dataclass(frozen=True, slots=True)
class Floor:
    """What the same machine does without us, measured in turns with the subject; or why it was not."""

    what: str
    spread: Spread | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """A line of the design's section 14: a bound on the median, or on its ratio to the first floor."""

    text: str
    bound: float
    of: Literal["median", "ratio"] = "median"
    at_most: bool = True

    def met(self, median: float | None, ratio: float | None) -> bool | None:
        """Whether it is; None where there is nothing to judge by."""
        value = median if self.of == "median" else ratio
        if value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``ratio`` is its median over that of the first floor."""

    what: str
    unit: Unit
    spread: Spread | None
    floors: tuple[Floor, ...] = ()
    aims: tuple[Aim, ...] = ()
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over floor; None without both."""
        floor = self.floors[0].spread if self.floors else None
        if self.spread is None or floor is None or not floor.median:
            return None
        return self.spread.median / floor.median

    @property
    def verdicts(self) -> tuple[bool | None, ...]:
        """Whether each aim is met."""
        median = self.spread.median if self.spread is not None else None
        return tuple(aim.met(median, self.ratio) for aim in self.aims)

    def plain(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        aims = [{**asdict(aim), "met": met} for aim, met in zip(self.aims, self.verdicts, strict=True)]
        return {**asdict(self), "ratio": self.ratio, "aims": aims}


def row(
    what: str,
    values: Sequence[float],
    unit: Unit,
    floors: Mapping[str, Sequence[float] | str] | None = None,
    aims: Sequence[Aim] = (),
) -> Row:
    """A row from raw values; a floor that could not be measured is the reason why."""
    beside = tuple(
        Floor(name, None, taken) if isinstance(taken, str) else Floor(name, Spread.of(taken, unit))
        for name, taken in (floors or {}).items()
    )
    return Row(what, unit, Spread.of(values, unit), beside, tuple(aims))


def not_measured(what: str, unit: Unit, why: str, aims: Sequence[Aim] = ()) -> Row:
    """A row that says what is missing here."""
    return Row(what, unit, None, (), tuple(aims), why)
