"""What a run may be called, and that nothing else stands where its files go."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final

from sage_sandbox.errors import UsageError
from sage_sandbox.runner import FEATURE

FEATURE_MAX: Final = 64


def check_feature(feature: str) -> None:
    """UsageError unless the name can be part of a path: checked before any path is built from it."""
    if not FEATURE.fullmatch(feature):
        raise UsageError(f"{feature!r} is not a feature name", "use 1 to 64 of a-z, 0-9 and -, not - first")


def slug(name: str) -> str:
    """The feature of a workflow that nobody named one for."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:FEATURE_MAX].rstrip("-") or "workflow"


def check_place(project: Path, feature: str) -> None:
    """UsageError if the project has put something else where state and artifacts go than folders of its own."""
    root = project / ".sage" / "artifacts"
    for place in (root.parent, root, root / feature):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UsageError(f"{place} is not a folder", "the project may have brought it; remove it")
