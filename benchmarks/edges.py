"""The graph that the benchmarks share: no import of ours, for floors load it too."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

Edges = Mapping[str, tuple[str, ...]]
"""The nodes that each node depends on."""
_WIDTH: Final = 20


def layered(nodes: int) -> dict[str, tuple[str, ...]]:
    """Layers of 20 nodes; each node depends on three of the layer before. The shape does not change with the size."""
    chance = random.Random(7)
    names = [f"n{number}" for number in range(nodes)]
    edges: dict[str, tuple[str, ...]] = {}
    for number, name in enumerate(names):
        start = number - number % _WIDTH
        before = names[max(0, start - _WIDTH) : start]
        edges[name] = tuple(chance.sample(before, min(3, len(before))))
    return edges
