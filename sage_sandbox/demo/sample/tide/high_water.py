"""When the water is high."""

from __future__ import annotations


def high_waters(heights: list[float]) -> list[int]:
    """Where a height stands above both its neighbours."""
    return [at for at in range(1, len(heights) - 1) if heights[at - 1] < heights[at] >= heights[at + 1]]
