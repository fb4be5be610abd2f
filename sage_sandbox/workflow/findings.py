"""What is found wrong with one template: collected without places, told with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from sage_sandbox.errors import DefinitionError, Problem
from sage_sandbox.escaping import clip
from sage_sandbox.frozen import frozen
from sage_sandbox.workflow.positions import UNKNOWN, FieldPath, Locator, Place, show_path

PROBLEMS_MAX: Final = 100
COUNTED_MAX: Final = 10_000
_CANDIDATES_MAX: Final = 2_000


class EnoughFound(Exception):
    """Never leaves the room: there is so much wrong that looking further would only take time."""


@frozen
class Finding:
    """One thing wrong: ``place`` is set where the reader knew it, ``file`` where it is not the template itself."""

    path: FieldPath
    message: str
    key: bool = False
    fix: str = ""
    place: Place | None = None
    file: str = ""
    severity: Literal["error", "warning"] = "error"


@dataclass(slots=True)
class Findings:
    """The first `PROBLEMS_MAX` findings, and how many more there were; EnoughFound beyond `COUNTED_MAX`."""

    kept: list[Finding] = field(default_factory=list)
    more: int = 0
    errors: int = 0

    def add(self, finding: Finding) -> None:
        """Keep a finding, or only count it when there are enough."""
        self.errors += finding.severity == "error"
        if self.full:
            self._count_more(1)
        else:
            self.kept.append(finding)

    @property
    def full(self) -> bool:
        """Whether wording another one would be wasted."""
        return len(self.kept) >= PROBLEMS_MAX

    def skip(self, count: int) -> None:
        """Count errors that nobody will read."""
        self.errors += count
        self._count_more(count)

    def _count_more(self, count: int) -> None:
        self.more += count
        if self.more > COUNTED_MAX:
            raise EnoughFound

    def problems(self, source: str, locator: Locator) -> tuple[Problem, ...]:
        """Everything kept, in the order of the file, and a last word on the rest."""
        told = sorted((_tell(finding, source, locator) for finding in self.kept), key=lambda p: (p.line, p.column))
        if self.more:
            more = f"{self.more:,}" if self.more <= COUNTED_MAX else f"more than {COUNTED_MAX:,}"
            told.append(Problem(source, 0, 0, "", f"and {more} more problems"))
        return tuple(told)


def _tell(finding: Finding, source: str, locator: Locator) -> Problem:
    line, column = finding.place or locator.place(finding.path, key=finding.key)
    shown = show_path(finding.path)
    return Problem(finding.file or source, line, column, shown, finding.message, finding.severity, finding.fix)


def refuse(source: str, message: str, place: Place = UNKNOWN, fix: str = "") -> DefinitionError:
    """The error for a text that cannot be read at all: one problem, no fields."""
    return invalid(source, (Problem(source, *place, "", message, "error", fix),))


def invalid(source: str, problems: tuple[Problem, ...]) -> DefinitionError:
    """The error that carries everything found wrong."""
    count = sum(problem.severity == "error" for problem in problems)
    return DefinitionError(f"{clip(source, 200)} is not a valid workflow ({count_of(count, 'problem')})", "", problems)


def count_of(number: int, noun: str) -> str:
    """``1 phase``, ``3 phases``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'phases'?`` if something known is close to it, else nothing."""
    candidates = [name for name, _ in zip(known, range(_CANDIDATES_MAX), strict=False)]
    from difflib import get_close_matches

    close = get_close_matches(word[:64], candidates, 1, 0.6)
    return f", did you mean {quote(close[0])}?" if close else ""


def quote(text: str) -> str:
    """Somebody else's word inside a message."""
    return f"'{clip(text, 60)}'"
