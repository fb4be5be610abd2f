"""Progress as plain lines on stderr, for people and for logs; without personal data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from typing import TextIO

from sage_sandbox.escaping import clip
from sage_sandbox.events import (
    Event,
    Notice,
    OperationSettled,
    OperationStarted,
    PhaseSettled,
    PhaseStarted,
    RunSettled,
    RunStarted,
    Weight,
)
from sage_sandbox.outcome import Outcome, Usage
from sage_sandbox.policy import format_duration, format_size
from sage_sandbox.results.personal import cleaned

WIDTH = 200
NAMES_SHOWN = 5
_MARKS = {"info": "▸", "warning": "⚠", "error": "✗"}


class Progress:
    """An observer that writes a line for what a reader wants to know; it holds what failed until its phase ends."""

    def __init__(self, stream: TextIO | None = None, *, width: int = WIDTH) -> None:
        self._stream = stream
        self._width = width
        self._failed: dict[str, list[tuple[str, Outcome]]] = {}
        self._blocked: list[str] = []
        self._operations = 0
        self._cached = 0

    def __call__(self, event: Event) -> None:
        """Write what there is to say about an event."""
        self._on(event)

    def say(self, line: str) -> None:
        """Write one line, escaped and then cut: parts of it may be a template's or a child's."""
        print(clip(line, self._width), file=self._stream or sys.stderr, flush=True)

    @singledispatchmethod
    def _on(self, event: Event) -> None:
        """Events that are no news to a reader of lines."""

    @_on.register
    def _(self, event: RunStarted) -> None:
        self.say(f"▸ {event.workflow} ({_count(event.phases, 'phase')}, {_count(event.operations, 'operation')})")

    @_on.register
    def _(self, event: PhaseStarted) -> None:
        self.say(f"▸ {event.phase} ({_count(event.operations, 'operation')})")

    @_on.register
    def _(self, event: OperationStarted) -> None:
        if event.attempt > 1:
            self.say(f"▸ {event.phase}/{event.operation} again (attempt {event.attempt})")

    @_on.register
    def _(self, event: OperationSettled) -> None:
        outcome, name = event.outcome, f"{event.phase}/{event.operation}"
        self._operations += 1
        if outcome.ok:
            self._cached += outcome.cached_s is not None
            self.say(f"✓ {name} {spoken(outcome.duration_s) if outcome.cached_s is None else cached(outcome.cached_s)}")
            return
        self._failed.setdefault(event.phase, []).append((event.operation, outcome))
        self.say(f"✗ {name} {cleaned(outcome.error) or outcome.reason}")
        if outcome.hint:
            self.say(f"  hint: {cleaned(outcome.hint)}")

    @_on.register
    def _(self, event: PhaseSettled) -> None:
        failed = self._failed.pop(event.phase, [])
        if event.status == "blocked":
            self._blocked.append(event.phase)
        elif event.status != "completed":
            self.say(_PHASE_LINES[event.status](event, failed))

    @_on.register
    def _(self, event: Notice) -> None:
        self.say(f"{_MARKS[event.level]} {cleaned(event.text)}")

    @_on.register
    def _(self, event: RunSettled) -> None:
        if self._blocked:
            self.say(f"⚠ {_count(len(self._blocked), 'phase')} not started ({_names(self._blocked)})")
        took = spoken(event.duration_s)
        if event.status == "completed":
            cached = f", {self._cached:,} cached" if self._cached else ""
            tokens = f", {spoken_tokens(event.weight)}" if event.weight.handed_tokens else ""
            asked = spoken_usage(event.usage) if event.usage else ""
            operations = _count(self._operations, "operation")
            self.say(f"✓ Workflow complete ({took}, {operations}{cached}{tokens}{asked}, 0 reloads)")
        else:
            resume = f"resume later with: sage-sandbox resume {event.feature}"
            later = resume if event.resumable else "nothing was saved"
            self.say(f"✗ Workflow {event.status} ({took}) · {later}")
        self._say_what_is_handed_back(event.weight)

    def _say_what_is_handed_back(self, weight: Weight) -> None:
        """If it is not all of it."""
        if weight.handed < weight.produced:
            less = 100 * (weight.produced - weight.handed) // weight.produced
            sizes = f"{format_size(weight.produced)} produced, {format_size(weight.handed)} handed back"
            self.say(f"▸ {sizes} ({less} % less): --full prints whole results")
        if weight.personal:
            self.say(f"⚠ {_count(weight.personal, 'piece')} of personal data replaced in what is handed back")


def spoken_tokens(weight: Weight) -> str:
    """How much a model has to read, as it is read: ``812 tokens``, ``≈35K tokens`` where it is an estimate."""
    number = weight.handed_tokens
    return f"{'' if weight.exact else '≈'}{_short(number)} token{'' if number == 1 else 's'}"


def spoken_usage(usage: Sequence[Usage]) -> str:
    """What models took, as it is read after a comma: ``, 12K tokens of models``."""
    exact = all(one.measured for one in usage)
    return f", {'' if exact else '≈'}{_short(sum(one.total for one in usage))} tokens of models"


def _short(number: int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.{0 if number >= 10 * unit else 1}f}".removesuffix(".0") + name
    return f"{number:,}"


def spoken(seconds: float) -> str:
    """A duration as it is read: ``120 ms``, ``4.2 sec``, ``1 min 15 sec``, ``2 h 5 min``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " sec"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} sec" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def cached(age_s: float) -> str:
    """How old an answer is: ``cached, just now``, ``cached, 5 min old``, ``cached, 3 days old``."""
    age = _age(age_s)
    return f"cached, {age} old" if age else "cached, just now"


def ago(age_s: float) -> str:
    """The same of a moment: ``just now``, ``5 min ago``, ``3 days ago``."""
    age = _age(age_s)
    return f"{age} ago" if age else "just now"


def _age(age_s: float) -> str:
    for unit, one, many in ((86400.0, "day", "days"), (3600.0, "h", "h"), (60.0, "min", "min"), (1.0, "sec", "sec")):
        if age_s >= unit:
            number = int(age_s / unit)
            return f"{number} {one if number == 1 else many}"
    return ""


Failed = list[tuple[str, Outcome]]


def _degraded(event: PhaseSettled, failed: Failed) -> str:
    return f"⚠ {_failures(event, failed)} · ✓ continuing with {_count(event.fulfilled, 'result')}"


def _failed(event: PhaseSettled, failed: Failed) -> str:
    return f"✗ {_failures(event, failed)} · too few results to continue"


def _timeout(event: PhaseSettled, failed: Failed) -> str:
    whole = any(outcome.error.startswith("workflow timeout") for _, outcome in failed)
    kept = f"✓ {_count(event.fulfilled, 'result')} of {event.total} kept"
    if whole:
        return f"✗ Workflow timeout exceeded in {event.phase} · {kept}"
    limit = format_duration(round(event.duration_s) if event.duration_s >= 1 else event.duration_s)
    return f"✗ Phase timeout exceeded ({event.phase} > {limit}) · {kept}"


def _cancelled(event: PhaseSettled, _failed: Failed) -> str:
    return f"✗ {event.phase} cancelled · ✓ {_count(event.fulfilled, 'result')} of {event.total} kept"


def _paused(event: PhaseSettled, _failed: Failed) -> str:
    return f"✗ {event.phase} paused · ✓ {_count(event.fulfilled, 'result')} of {event.total} kept"


_PHASE_LINES: dict[str, Callable[[PhaseSettled, Failed], str]] = {
    "degraded": _degraded,
    "failed": _failed,
    "timeout": _timeout,
    "cancelled": _cancelled,
    "paused": _paused,
}


def _failures(event: PhaseSettled, failed: Failed) -> str:
    lost = event.total - event.fulfilled
    return (
        f"{lost} of {_count(event.total, event.phase + ' operation')} failed ({_names([name for name, _ in failed])})"
    )


def _names(names: list[str]) -> str:
    """Some of the names, and how many more."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
