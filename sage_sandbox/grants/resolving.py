"""From a grant as somebody wrote it to one with a real absolute path, or a refusal that says why."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.environment import check_name
from sage_sandbox.grants.places import UNREADABLE_ROOTS, Place, Places, in_dot_folder, is_beneath
from sage_sandbox.hosts import parse_target
from sage_sandbox.policy import Grant, GrantKind, fold, is_model_grant, is_protected, is_tool_grant

PATH_KINDS: Final[tuple[GrantKind, ...]] = ("read", "write", "write-through")


@frozen
class Allowed:
    """What the user allows, resolved; ``unprotected`` are the names of every ``write!:NAME``."""

    grants: tuple[Grant, ...] = ()
    unprotected: tuple[str, ...] = ()

    def spares(self, name: str) -> bool:
        """Whether a protected name was taken off the list."""
        return fold(name) in {fold(spared) for spared in self.unprotected}


@frozen
class Demand:
    """What a plain grant is not enough for: why, and the grant with a ``!`` that is."""

    why: str
    grant: Grant


def resolve_allowed(grants: Sequence[Grant], places: Places) -> Allowed:
    """Resolve what was typed after ``--allow`` (or remembered); UsageError names the first that cannot be meant."""
    names = [_unprotected_name(grant) for grant in grants if grant.kind == "write" and grant.forced]
    allowed = Allowed((), tuple(dict.fromkeys(names)))
    resolved = (_resolve_typed(grant, places, allowed) for grant in grants)
    return replace(allowed, grants=tuple(dict.fromkeys(grant for grant in resolved if grant is not None)))


def resolve(grant: Grant, places: Places) -> Grant:
    """The grant with its value checked and, for a path, real and absolute; UsageError if it is never granted."""
    if grant.kind == "env":
        check_name(grant.value)
    if grant.kind == "net":
        return replace(grant, value=str(parse_target(grant.value)))
    if grant.kind == "tool" and not is_tool_grant(grant.value):
        raise UsageError("that is neither server/tool nor server/*", "name the server in full")
    if grant.kind == "model" and not is_model_grant(grant.value):
        raise UsageError("that is neither provider/model nor provider/* nor *", "name the model in full")
    if grant.kind not in PATH_KINDS:
        return grant
    path = resolve_path(grant.value, places.project)
    if grant.kind == "read":
        _check_readable(path)
    else:
        _check_writable(path, places)
    return replace(grant, value=path)


def resolve_path(text: str, project: str) -> str:
    """The real path of a file or folder that exists; what is written relative must stay beneath the project."""
    path, mode = _look_up(text, project)
    if not text.startswith("/") and not is_beneath(path, project):
        raise UsageError(f"it leads out of the project, to {path}", f"if that is meant, write {path}")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError("it is neither a file nor a folder")
    return path


def demands(resolved: Grant, text: str, places: Places) -> tuple[Demand, ...]:
    """The ``!`` grants that this (resolved; written as ``text``) takes besides."""
    if resolved.kind == "read":
        why = _private(resolved.value, places)
        return (Demand(why, Grant("read", text, forced=True)),) if why else ()
    names = protected_names(resolved.value, places.project) if resolved.kind in PATH_KINDS else ()
    return tuple(Demand(f"{name} is a protected name", Grant("write", name, forced=True)) for name in names)


def protected_names(path: str, project: str) -> tuple[str, ...]:
    """The names on this path that a write never reaches, each as ``write!:`` takes it."""
    # What lies above the project is where the user put it, not something a write could plant.
    shown = os.path.relpath(path, project) if is_beneath(path, project) else path
    return _protected_parts([part for part in shown.split("/") if part])


def _protected_parts(parts: list[str]) -> tuple[str, ...]:
    single = [part for part in parts if is_protected((part,))]
    double = ["/".join(pair) for pair in pairwise(parts) if is_protected(pair) and not {*pair} & {*single}]
    return tuple(dict.fromkeys((*single, *double)))


def _resolve_typed(grant: Grant, places: Places, allowed: Allowed) -> Grant | None:
    lifts_a_name = grant.kind == "write" and grant.forced
    if lifts_a_name and not os.path.lexists(f"{places.project}/{grant.value}"):
        return None  # the file may come later
    try:
        resolved = resolve(_expand_home(grant, places), places)
        _check_demands(grant, demands(resolved, grant.value, places), allowed)
    except UsageError as error:
        raise UsageError(f"--allow {grant}: {error}", error.hint) from error
    return resolved


def _check_demands(grant: Grant, demanded: Sequence[Demand], allowed: Allowed) -> None:
    for demand in demanded:
        if not (grant.forced if grant.kind == "read" else allowed.spares(demand.grant.value)):
            raise UsageError(demand.why, f"if that is meant, use --allow {demand.grant}")


def _expand_home(grant: Grant, places: Places) -> Grant:
    if grant.kind not in PATH_KINDS or grant.value.split("/")[0] != "~":
        return grant
    if not places.homes:
        raise UsageError("no home folder is known", "write the path in full")
    return replace(grant, value=places.homes[0] + grant.value[1:])


def _unprotected_name(grant: Grant) -> str:
    name = grant.value.rstrip("/")
    found = _protected_parts(name.split("/"))
    if found == (name,) and not set("*?[") & set(name):
        return name
    message = f"--allow {grant}: write! takes one protected name, such as conftest.py or .github/workflows"
    if not found:
        raise UsageError(message, f"write --allow write:{name}")
    path = "" if name.startswith(found[0]) else f"--allow write:{name} "
    raise UsageError(message, f"write {path}--allow write!:{found[0]}")


def _look_up(text: str, project: str) -> tuple[str, int]:
    if not text:
        raise UsageError("that is not a path")
    try:
        path = os.path.realpath(Path(project, text), strict=True)
        return path, Path(path).stat().st_mode
    except FileNotFoundError as error:
        raise _missing(text, project) from error
    except OSError as error:
        raise UsageError(f"{os.strerror(error.errno or 0).lower()}: {text}") from error
    except ValueError as error:  # a NUL byte, or a lone surrogate
        raise UsageError("that is not a path") from error


def _missing(text: str, project: str) -> UsageError:
    if text.startswith("~"):
        return UsageError(f"no such file or folder in {project}", "~ stands for home after --allow only")
    place = "" if text.startswith("/") else f" in {project}"
    return UsageError(f"no such file or folder{place}", "it must exist before the run: make it, or mend the name")


def _private(path: str, places: Places) -> str:
    if any(is_beneath(home, path) for home in places.homes):
        return f"{path} is your home folder, or holds it"
    if in_dot_folder(path, places.homes):
        return f"{path} is a hidden entry of your home folder"
    return next((_relate(path, place) for place in places.private if _touches(path, place.path)), "")


def _check_readable(path: str) -> None:
    if root := next((root for root in UNREADABLE_ROOTS if _touches(path, root)), ""):
        raise UsageError(_relate(path, Place(root, "a part of the host that no sandbox shows")))


def _check_writable(path: str, places: Places) -> None:
    if any(is_beneath(home, path) for home in places.homes):
        reason = f"{path} is your home folder, or holds it: never granted for writing"
        raise UsageError(reason, "grant a folder inside it")
    if in_dot_folder(path, places.homes):
        raise UsageError(f"{path} is a hidden entry of your home folder: never granted for writing")
    if place := next((place for place in places.steering if _touches(path, place.path)), None):
        raise UsageError(f"{_relate(path, place)}: never granted for writing")


def _touches(path: str, root: str) -> bool:
    return is_beneath(path, root) or is_beneath(root, path)


def _relate(path: str, place: Place) -> str:
    if path == place.path:
        return f"{path} is {place.why}"
    return f"{path} {'lies in' if is_beneath(path, place.path) else 'holds'} {place.path}, {place.why}"
