"""Distributions that an operation asks for: found in our own environment, shown read-only, nothing installed."""

from __future__ import annotations

import os
from importlib import metadata

from sage_sandbox.errors import UsageError

Bind = tuple[str, str, bool]
"""(path outside, path inside, whether a folder)."""

FOLDER = "/packages"


def binds(names: tuple[str, ...]) -> tuple[Bind, ...]:
    """What to bind so that these distributions and all they require can be imported from `FOLDER`.

    By their RECORD: the top-level names it lists, never a ``.pth`` file. UsageError names what is not installed.
    """
    found: dict[str, Bind] = {}
    missing: list[str] = []
    queue, seen = list(names), set()
    while queue:
        name = queue.pop()
        if (key := name.lower().replace("_", "-").replace(".", "-")) in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        queue.extend(_required(distribution))
        for bind in _top_level(distribution):
            found[bind[1]] = bind
    if missing:
        raise UsageError(
            f"package {', '.join(sorted(missing))} is not installed", f"pip install {' '.join(sorted(missing))}"
        )
    return tuple(found[path] for path in sorted(found))


def _required(distribution: metadata.Distribution) -> list[str]:
    from packaging.requirements import Requirement  # most operations need no packages, and it takes long to load

    requirements = [Requirement(text) for text in distribution.requires or ()]
    return [entry.name for entry in requirements if entry.marker is None or entry.marker.evaluate({"extra": ""})]


def _top_level(distribution: metadata.Distribution) -> list[Bind]:
    names = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "/", "__pycache__")}
    binds = []
    for name in sorted(names):
        path = os.path.realpath(str(distribution.locate_file(name)))
        if not name.endswith(".pth") and os.path.exists(path):
            binds.append((path, f"{FOLDER}/{name}", os.path.isdir(path)))
    return binds
