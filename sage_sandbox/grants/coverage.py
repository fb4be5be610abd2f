"""Whether one resolved grant allows what another asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePosixPath
from typing import Final

from sage_sandbox.grants.places import is_beneath
from sage_sandbox.hosts import parse_target, wider
from sage_sandbox.policy import (
    Grant,
    GrantKind,
    every_tool,
    grants_model,
    grants_tool,
    is_git_config,
    is_hidden,
    model_grants,
)

COVERING: Final[Mapping[GrantKind, tuple[GrantKind, ...]]] = {
    "read": ("read", "write", "write-through"),
    "write": ("write", "write-through"),
    "write-through": ("write-through",),
}
"""Which kinds of path grant allow a kind of ask: a writer sees what it writes over."""


def covers(grant: Grant, ask: Grant) -> bool:
    """Whether the grant allows all that is asked; both are resolved."""
    if ask.kind == grant.kind == "net":
        return parse_target(grant.value).covers(parse_target(ask.value))
    if ask.kind == grant.kind == "tool":
        return grants_tool((grant.value,), ask.value)
    if ask.kind == grant.kind == "model":
        return grants_model((grant.value,), ask.value)
    if ask.kind not in COVERING:
        return (grant.kind, grant.value) == (ask.kind, ask.value)
    if grant.kind not in COVERING[ask.kind] or not is_beneath(ask.value, grant.value):
        return False
    return grant.value == ask.value or not hides(grant.value, ask.value)


def covering(ask: Grant, held: AbstractSet[Grant]) -> Iterator[Grant]:
    """Those of the held (plain) grants that cover the ask, found by what lies above it and not one by one."""
    values = [ask.value]
    if ask.kind == "net":
        values = [str(target) for target in wider(parse_target(ask.value))]
    elif ask.kind == "tool":
        values.append(every_tool(ask.value))
    elif ask.kind == "model":
        values = list(model_grants(ask.value))
    elif ask.kind in COVERING:
        values += [str(folder) for folder in PurePosixPath(ask.value).parents]
    for value in values:
        for kind in COVERING.get(ask.kind, (ask.kind,)):
            grant = Grant(kind, value)
            if grant in held and covers(grant, ask):
                yield grant


def hides(folder: str, path: str) -> bool:
    """Whether a grant of the folder leaves out this path beneath it, unless another grant names the path."""
    below = path[len(folder) :].strip("/").split("/")
    return any(is_hidden(part) for part in below) or is_git_config(path.split("/"))
