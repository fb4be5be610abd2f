"""The history by author and by month, from the lines of ``git log``. Reads nothing: all it needs are its inputs."""

from __future__ import annotations

import re
from typing import Any

MAX_MONTHS = 600
LINE = re.compile(r"(\d{4,}-\d{2})-(\d{2})\x1f(.*)", re.DOTALL)


def run(params: Any, inputs: Any) -> dict[str, Any]:
    """Commits by author (the ``top`` busiest) and by month (in order); ``known`` is false when git gave nothing."""
    history = inputs["history"]
    top = (params or {}).get("top", 10)
    if history["log"] is None:
        return {"known": False, "why": why_unknown(history["repository"]), "commits": 0}
    authors: dict[str, int] = {}
    months: dict[str, int] = {}
    days: list[str] = []
    for line in history["log"]:
        if match := LINE.fullmatch(line):
            month, day, author = match.groups()
            author = author.strip()[:100] or "(no name)"
            authors[author] = authors.get(author, 0) + 1
            months[month] = months.get(month, 0) + 1
            days.append(f"{month}-{day}")
    ranked = sorted(authors, key=lambda name: (-authors[name], name))
    return {
        "known": True,
        "commits": len(days),
        "commits_total": whole(history["count"], len(days)),
        "authors_total": len(authors),
        "authors": [{"author": name, "commits": authors[name]} for name in ranked[:top]],
        "months": [{"month": month, "commits": months[month]} for month in sorted(months)[-MAX_MONTHS:]],
        "first": min(days, default=None),
        "last": max(days, default=None),
        "shallow": bool((history["repository"] or {}).get("shallow")),
    }


def why_unknown(repository: Any) -> str:
    """What can be said when ``git log`` was rejected."""
    return {
        "none": "no git repository here",
        "elsewhere": "the repository lies outside of what was granted",
        "empty": "no commits yet",
        "ready": "git could not read it, or is not installed",
    }.get((repository or {}).get("state", ""), "unknown")


def whole(text: Any, default: int) -> int:
    """The number ``git rev-list --count`` printed."""
    return int(text) if isinstance(text, str) and text.strip().isascii() and text.strip().isdigit() else default
