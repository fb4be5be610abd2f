"""How many operations a slot is given at a time."""

from __future__ import annotations

from typing import Final

SHORT_S: Final = 0.020
"""Operations longer than this on average go one at a time."""
CHUNK_S: Final = 0.030
"""How much work a chunk should hold."""
CHUNK_MAX: Final = 16
_WEIGHT: Final = 0.2


class Pace:
    """A moving mean of what operations cost, and what follows from it.

    An operation that waits behind another in a slot may be waiting while a different slot falls idle, so chunks are
    made only of work that is over in a moment; before the first measurement there is no guess.
    """

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def note(self, cost_s: float) -> None:
        """Count one finished operation in."""
        mean = self._mean_s
        self._mean_s = cost_s if mean is None else mean + _WEIGHT * (cost_s - mean)

    @property
    def short(self) -> bool:
        """Whether operations are short enough to wait behind one another."""
        return self._mean_s is not None and self._mean_s < SHORT_S

    def chunk(self, pending: int, slots: int) -> int:
        """Operations to send at once, so that ``slots`` slots share what is pending."""
        if not self.short or self._mean_s is None:
            return 1
        fitting = int(CHUNK_S / max(self._mean_s, CHUNK_S / CHUNK_MAX))
        return max(1, min(fitting, -(-pending // max(slots, 1))))
