"""Files that hold the same bytes: by size first, then by SHA-256 of the whole file."""

from __future__ import annotations

import hashlib
from typing import Any

from sources import File, number, read, shown, tree

MAX_HASHED_BYTES = 32 << 20
MAX_HASHED_TOTAL = 1 << 30


def run(params: Any) -> dict[str, Any]:
    """The groups of equal files, those that waste the most first; empty files are no copies of each other."""
    top = number(params, "top", 10, 1000)
    found = tree()
    by_size: dict[int, list[File]] = {}
    for file in found.files:
        if file.size > MAX_HASHED_BYTES:
            found.skip("large")
        elif file.size:
            by_size.setdefault(file.size, []).append(file)
    by_hash: dict[tuple[int, str], list[str]] = {}
    left = MAX_HASHED_TOTAL
    for size, files in sorted(by_size.items()):
        for file in files if len(files) > 1 else ():
            if size > left:
                found.skip("over the total")
                continue
            left -= size
            if (data := read(file.path, size)) is None:
                found.skip("unreadable")
            else:
                by_hash.setdefault((len(data), hashlib.sha256(data).hexdigest()), []).append(shown(file.path))
    groups = [group(size, digest, paths, top) for (size, digest), paths in by_hash.items() if len(paths) > 1]
    groups.sort(key=lambda one: (-one["wasted"], one["paths"]))
    return {
        "groups": groups[:top],
        "groups_total": len(groups),
        "wasted": sum(one["wasted"] for one in groups),
        "skipped": found.skipped,
    }


def group(size: int, digest: str, paths: list[str], top: int) -> dict[str, Any]:
    """Equal files as the report lists them; ``wasted`` is what all but one of them take."""
    wasted = size * (len(paths) - 1)
    return {
        "bytes": size,
        "copies": len(paths),
        "wasted": wasted,
        "sha256": digest,
        "paths": sorted(paths)[: max(top, 2)],
    }
