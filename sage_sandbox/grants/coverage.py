"""Whether one resolved grant allows what another asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePosixPath
from typing import Final

from sage_sandbox.grants.places import is_beneath
from sage_sandbox.policy import Grant, GrantKind, is_git_config, is_hidden, tool_matches

COVERING: Final[Mapping[GrantKind, tuple[GrantKind, ...]]] = {
    "read": ("read", "write", "write-through"),
    "write": ("write", "write-through"),
    "write-through": ("write-through",),
}
"""Which kinds of path grant allow a kind of ask: a writer sees what it writes over."""


def covers(grant: Grant, ask: Grant) -> bool:
    """Whether the grant allows all that is asked; paths of both are real and absolute."""
    if grant.kind == ask.kind == "tool":
        return _covers_tools(grant.value, ask.value)
    if ask.kind not in COVERING:
        return (grant.kind, grant.value) == (ask.kind, ask.value)
    if grant.kind not in COVERING[ask.kind] or not is_beneath(ask.value, grant.value):
        return False
    return grant.value == ask.value or not hides(grant.value, ask.value)


def covering(ask: Grant, held: AbstractSet[Grant]) -> Iterator[Grant]:
    """Those of the held (plain) grants that cover the ask, found by its ancestors and not one by one."""
    if ask.kind == "tool":
        yield from (grant for grant in held if covers(grant, ask))
        return
    folders = [ask.value]
    if ask.kind in COVERING:
        folders += [str(folder) for folder in PurePosixPath(ask.value).parents]
    for folder in folders:
        for kind in COVERING.get(ask.kind, (ask.kind,)):
            grant = Grant(kind, folder)
            if grant in held and covers(grant, ask):
                yield grant


def _covers_tools(pattern: str, asked: str) -> bool:
    """Whether a pattern allows all that is asked; of two patterns only where that needs no thinking about."""
    if set("*?") & set(asked):
        return pattern in (asked, f"{asked.partition('/')[0]}/*")
    return tool_matches(pattern, asked)


def hides(folder: str, path: str) -> bool:
    """Whether a grant of the folder leaves out this path beneath it, unless another grant names the path."""
    below = path[len(folder) :].strip("/").split("/")
    return any(is_hidden(part) for part in below) or is_git_config(path.split("/"))
