"""What people left to be done: an index of TODO, FIXME, XXX and HACK."""

from __future__ import annotations

import re
from typing import Any

from sources import MAX_TEXT_BYTES, clipped, number, shown, text_of, tree

KINDS = ("TODO", "FIXME", "XXX", "HACK")

# A mark is a word in capitals before a colon, a bracket, a space or the end of the line: `TODO(ada)`, but neither
# `TODO_LIST` nor the `XXXX` of a template for mktemp.
MARK = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(KINDS)})(?=[:(\s]|$)")


def run(params: Any) -> dict[str, Any]:
    """Count the marks by kind; list the ``top`` files that hold the most, and the first ``top`` marks in file order."""
    top = number(params, "top", 10, 1000)
    found = tree()
    kinds = dict.fromkeys(KINDS, 0)
    files: dict[str, int] = {}
    first: list[dict[str, Any]] = []
    for file, data in found.texts(lambda _: True, number(params, "max_file_bytes", MAX_TEXT_BYTES, 64 << 20)):
        if not any(kind.encode() in data for kind in KINDS):
            continue
        path = shown(file.path)
        for line, kind, text in marks(text_of(data)):
            kinds[kind] += 1
            files[path] = files.get(path, 0) + 1
            if len(first) < top:
                first.append({"path": path, "line": line, "kind": kind, "text": text})
    ranked = sorted(files, key=lambda path: (-files[path], path))
    return {
        "kinds": kinds,
        "total": sum(kinds.values()),
        "files": [{"path": path, "marks": files[path]} for path in ranked[:top]],
        "first": first,
        "skipped": found.skipped,
    }


def marks(text: str) -> list[tuple[int, str, str]]:
    """The first mark of each line: its number, its kind, and the rest of the line."""
    found = []
    for at, line in enumerate(text.split("\n"), 1):
        if match := MARK.search(line):
            rest = line[match.end() : match.end() + 1000]
            found.append((at, match[1], clipped(rest.lstrip(": ").strip(), 120)))
    return found
