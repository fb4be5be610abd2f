"""The report: what the other operations found, joined, and a sentence on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def run(inputs: Any) -> dict[str, Any]:
    """``summary`` is a sentence by subject, ``report`` the findings; a rejected operation's subject says so."""
    survey = inputs["survey"] or {}
    findings = {name: inputs["timeline"] if name == "history" else survey.get(name) for name in SENTENCES}
    summary = {
        name: "not known: the operation was rejected" if findings[name] is None else sentence(findings[name])
        for name, sentence in SENTENCES.items()
    }
    summary["not read"] = not_read(findings["languages"] or {})
    branch = (inputs["history"]["repository"] or {}).get("branch")
    return {"summary": summary, "branch": branch, "report": findings}


def languages(found: Any) -> str:
    """Files, lines, and the share of the first five languages."""
    total = found["total"]
    if not total["files"]:
        return "no text files"
    shares = [f"{one['language']} {percent(one['lines'], total['lines'])}" for one in found["languages"][:5]]
    return f"{plural(total['files'], 'text file')}, {plural(total['lines'], 'line')}: " + ", ".join(shares)


def history(found: Any) -> str:
    """Commits, authors, the months they span, and the three busiest authors."""
    if not found["known"]:
        return f"none to tell: {found['why']}"
    if not found["commits"]:
        return "none to tell: no commits"
    busiest = ", ".join(f"{one['author']} {one['commits']:,}" for one in found["authors"][:3])
    most = max(found["months"], key=lambda one: one["commits"])
    said = (
        f"{plural(found['commits_total'], 'commit')} by {plural(found['authors_total'], 'author')}, "
        f"{found['first']} to {found['last']}; busiest: {busiest}; most in {most['month']} ({most['commits']:,})"
    )
    if found["commits_total"] > found["commits"]:
        said += f"; authors and months from the last {found['commits']:,}"
    return said + ("; shallow clone, older ones are not here" if found["shallow"] else "")


def marks(found: Any) -> str:
    """How many of each kind, and where the most are."""
    if not found["total"]:
        return "none"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items() if count)
    most = found["files"][0]
    return f"{kinds}; most in {most['path']} ({most['marks']:,})"


def functions(found: Any) -> str:
    """How many, how long, and the longest three."""
    if not found["functions"]:
        said = "no Python functions"
    else:
        longest = [f"{one['name']} ({one['path']}:{one['line']}) {one['lines']:,}" for one in found["longest"][:3]]
        said = f"{plural(found['functions'], 'Python function')}, median {found['median_lines']:g} lines"
        said += f"; longest: {', '.join(longest)}"
    broken, large = found["not_parsed_total"], found["skipped"].get("large", 0)
    said += f"; {plural(broken, 'file')} could not be parsed" if broken else ""
    return said + (f"; {plural(large, 'file')} too large to parse" if large else "")


def licences(found: Any) -> str:
    """The licences of the licence files with the first file of each, else what manifests and tags say."""
    first: dict[str, str] = {}
    for file in found["files"]:
        for name in file["licences"]:
            first.setdefault(name, file["path"])
    said = [f"{name} ({path})" for name, path in list(first.items())[:5]]
    said += [f"declared {one['licence']} ({one['path']})" for one in found["declared"][:3]]
    said += [f"tagged {one['licence']} ({plural(one['files'], 'file')})" for one in found["tags"][:3]]
    return ", ".join(said) or "none found"


def manifests(found: Any) -> str:
    """The first five, with the number of dependencies each names."""
    if not found["total"]:
        return "none found"
    said = []
    for one in found["manifests"][:5]:
        count = one["dependencies"]
        what = "not readable" if "problem" in one else "" if count is None else dependencies(count)
        said.append(f"{one['path']} ({', '.join(part for part in (one['ecosystem'], what) if part)})")
    more = found["total"] - len(said)
    return ", ".join(said) + (f", and {more:,} more" if more else "")


def duplicates(found: Any) -> str:
    """How many groups, what they waste, and the worst."""
    if not found["groups_total"]:
        return "none"
    worst = found["groups"][0]
    said = f"{plural(found['groups_total'], 'group')} of equal files, {size(found['wasted'])} in copies; "
    return said + f"worst: {worst['copies']:,} of {size(worst['bytes'])}, {worst['paths'][0]} = {worst['paths'][1]}"


def not_read(found: Any) -> str:
    """What the survey passed over, by reason."""
    skipped = found.get("skipped", {})
    return ", ".join(f"{count:,} {why}" for why, count in sorted(skipped.items())) or "nothing"


SENTENCES: dict[str, Callable[[Any], str]] = {
    "languages": languages,
    "history": history,
    "marks": marks,
    "functions": functions,
    "licences": licences,
    "manifests": manifests,
    "duplicates": duplicates,
}
"""What is said of each subject, in the order of the report."""


def plural(count: int, noun: str) -> str:
    """``1 file``, ``1,204 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def dependencies(count: int) -> str:
    """``1 dependency``, ``3 dependencies``."""
    return f"{count:,} " + ("dependency" if count == 1 else "dependencies")


def percent(part: int, whole: int) -> str:
    """A share as whole per cent; what is there but small is ``<1 %``, never 0."""
    share = 100 * part / whole if whole else 0.0
    return "<1 %" if 0 < share < 1 else f"{share:.0f} %"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"
