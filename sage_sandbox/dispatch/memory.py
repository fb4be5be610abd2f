"""Whether there is memory enough to start another operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.policy import format_size

RESERVE: Final = 0.10
"""The share of the machine's memory that is left alone."""
FRESH_S: Final = 0.05
"""How long one look at the machine's memory is believed."""


@frozen
class Memory:
    """Bytes: what the machine has, and what could be used without swapping."""

    total: int
    available: int


MemoryReader = Callable[[], Memory]


def read_memory(path: str = "/proc/meminfo") -> Memory:
    """MemTotal and MemAvailable (Linux 3.14 and later)."""
    found = {}
    for line in Path(path).read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0]) * 1024
    return Memory(found["MemTotal"], found["MemAvailable"])


class MemoryGate:
    """Holds operations back while memory is short. One is always let through: alone it makes progress."""

    def __init__(self, read: MemoryReader, clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._memory = Memory(1, 1)
        self._looked = float("-inf")
        self.said = ""

    def allows(self, limit: int, running: int) -> bool:
        """Whether an operation with this memory limit may start beside ``running`` others."""
        if self._clock() - self._looked >= FRESH_S:
            self._memory, self._looked = self._read(), self._clock()
        memory = self._memory
        if memory.available >= max(limit, int(memory.total * RESERVE)):
            return True
        self.said = self.said or (
            f"memory is short ({format_size(memory.available)} available); fewer operations run at once"
        )
        return not running
