"""What of an outcome leaves its run: the kept part, without personal data, weighed. The one exit.

Terminals, documents and agents get what comes out of here; state keeps the whole outcome, and dependents are given it.
Secrets were taken out before, where the outcome was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import Any, Final

from sage_sandbox.events import Weight
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Attempt, Outcome, Violation
from sage_sandbox.results.filtering import KEPT_BYTES, kept
from sage_sandbox.results.personal import Cleaner, may_hold
from sage_sandbox.results.tokens import is_exact, tokens
from sage_sandbox.workflow.definition import Keep

STREAM_SHOWN: Final = 2000
"""How many characters are kept of what an operation printed: the last ones."""

_WHOLE: Final = Keep(max_bytes=1 << 62)


@frozen
class Handed:
    """What is handed back of one outcome.

    ``value`` is None where it was rejected; ``personal`` counts what was replaced, by kind.
    """

    value: Any
    error: str = ""
    hint: str = ""
    stdout: str = ""
    stderr: str = ""
    violations: tuple[Violation, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    personal: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> bytes:
        """All that is to be read of it."""
        value = json.dumps(self.value, ensure_ascii=False) if self.value is not None else ""
        return "\n".join(filter(None, (value, self.error, self.stdout, self.stderr))).encode("utf-8", "replace")


def hand_back(outcome: Outcome, keep: Keep | None = None, *, whole: bool = False) -> Handed:
    """What is handed back of an outcome: its kept part, or the ``whole``; in either case without personal data."""
    of_value, cleaner = Cleaner(), Cleaner()
    value = kept(outcome.value(), _WHOLE if whole else keep, of_value) if outcome.ok else None
    shown = 1 << 62 if whole else STREAM_SHOWN
    return Handed(
        value=value,
        error=cleaner.text(outcome.error),
        hint=cleaner.text(outcome.hint),
        stdout=_end(b"" if _is_result(outcome) and not whole else outcome.stdout, shown, cleaner),
        stderr=_end(outcome.stderr, shown, cleaner),
        violations=tuple(replace(violation, what=cleaner.text(violation.what)) for violation in outcome.violations),
        attempts=tuple(replace(attempt, error=cleaner.text(attempt.error)) for attempt in outcome.attempts),
        personal=of_value.found + cleaner.found,
    )


def _is_result(outcome: Outcome) -> bool:
    """Whether what was printed is the result, as it is of a command: nobody has to read it twice."""
    return outcome.ok and outcome.exit_code is not None


def _end(stream: bytes, most: int, cleaner: Cleaner) -> str:
    """The end of what was printed, and how much there is before it."""
    text = stream.decode(errors="replace")
    end = cleaner.tail(text, most)
    return end if len(text) <= most else f"… {len(text) - most:,} characters before\n{end}"


def weigh(outcomes: Iterable[tuple[Outcome, Keep | None]]) -> Weight:
    """What operations produced, beside what is handed back of it."""
    total = Weight(exact=is_exact())
    for outcome, keep in outcomes:
        total += _weight(outcome, keep)
    return total


def _weight(outcome: Outcome, keep: Keep | None) -> Weight:
    produced = b"\n".join(_said(outcome))
    count = tokens(produced)
    if keep is None and len(produced) <= KEPT_BYTES and not may_hold(produced):
        return Weight(len(produced), len(produced), count, count)
    handed = hand_back(outcome, keep)
    text = handed.text
    return Weight(len(produced), len(text), count, tokens(text), personal=sum(handed.personal.values()))


def _said(outcome: Outcome) -> Iterator[bytes]:
    """What there is to read of an outcome: its result or its error, and what it printed."""
    if outcome.ok:
        yield outcome.result
    stdout = b"" if _is_result(outcome) else outcome.stdout
    yield from filter(None, (outcome.error.encode("utf-8", "replace"), stdout, outcome.stderr))
