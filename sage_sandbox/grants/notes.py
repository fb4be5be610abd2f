"""What somebody who decides on a grant should know about it."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import PurePosixPath
from typing import Final

from sage_sandbox.grants.environment import looks_like_credential
from sage_sandbox.hosts import Target, is_address, parse_target
from sage_sandbox.policy import Grant, is_git_config, is_hidden, runs_later

_LOOKED_AT: Final = 1_000
_NAMED: Final = 3


def describe(ask: Grant, resolved: Grant) -> str:
    """The consequences of granting this, or an empty text where they are what the words say."""
    if ask.kind == "net":
        return _leaves_to(parse_target(resolved.value))
    if ask.kind == "tool":
        return f"what it is called with goes to {ask.value.partition('/')[0]}"
    if ask.kind == "model":
        return f"the prompt leaves to {ask.value.partition('/')[0]}, and costs what that charges"
    if ask.kind == "env":
        return "its value looks like a credential" if looks_like_credential(ask.value) else ""
    if ask.kind == "read":
        named = is_hidden(PurePosixPath(resolved.value).name) or is_git_config(resolved.value.split("/"))
        return "hidden unless named: likely a secret" if named else ""
    if ask.kind == "write":
        return _join("kept only if the operation succeeds", _runs_later(resolved.value))
    if ask.kind == "write-through":
        return _join("written at once; names such as .git are not protected in it", _runs_later(resolved.value))
    return ""


def _leaves_to(target: Target) -> str:
    if target.wild:
        domain = Target(target.host.removeprefix("*."), target.port)
        return f"data may leave to every host beneath {domain}, and to whoever answers for its names"
    if target.host == "localhost" or is_address(target.host):
        return f"data may leave to {target}; an address is reached as it is, also of this machine or a private network"
    return f"data may leave to {target}"


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _runs_later(path: str) -> str:
    names = [name for name in _names(path) if runs_later(name)]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"runs later: {', '.join(names[:_NAMED])}{more}"


def _names(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in islice(entries, _LOOKED_AT))
    except NotADirectoryError:
        return [PurePosixPath(path).name]
    except OSError:
        return []  # the operation may see no more of it than we do
