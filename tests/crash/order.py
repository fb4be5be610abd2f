"""Whether a traced program made things durable in the right order: on the strictest file system, not on this one.

On ext4 one fsync commits the journal and with it every rename before it, so a missing fsync of a folder hides behind
the next file's. POSIX promises less: a file's bytes are durable once that file was fsynced, a name once its folder was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from crash.harness import WRITES, Call

CHANGES_BYTES = WRITES | {"truncate", "ftruncate"}
SYNCS = frozenset({"fsync", "fdatasync"})
MAKES_A_NAME = frozenset({"create", "mkdir", "link", "symlink", "mknod"})


def _always(*_: object) -> bool:
    return True


def _never(*_: object) -> bool:
    return False


@dataclass(frozen=True)
class Rules:
    """What is special about some files of a program, by path, and which calls presume that others are there to stay."""

    in_place: Callable[[str], bool] = _never
    """Written where it stands: a lock, a log, a mark. Its reader knows what a crash leaves of it."""
    lasting: Callable[[str], bool] = _always
    """At the end it is durable, name and bytes."""
    presumes: Callable[[Call, str], bool] = _never
    """A call that says, outside of what may be lost, that this path is there to stay."""


@dataclass
class Pending:
    """What a power cut would take: bytes by file, names by folder, each with the call that made it."""

    bytes: dict[str, Call] = field(default_factory=dict)
    names: dict[str, dict[str, Call]] = field(default_factory=dict)

    def apply(self, call: Call) -> None:
        """Take a call into account."""
        if call.name in CHANGES_BYTES or (call.name == "open" and call.flags & os.O_TRUNC):
            self.bytes[call.path] = call
        if call.name in SYNCS:
            self.bytes.pop(call.path, None)
            self.names.pop(call.path, None)
        if call.name in MAKES_A_NAME:
            self._name(call.other or call.path, call)
        if call.name == "rename":
            self._forget_name(call.path)
            self._move(call.path, call.other)
            self._name(call.other, call)
        if call.name in {"unlink", "rmdir"}:
            self.bytes.pop(call.path, None)
            self.names.pop(call.path, None)
            self._forget_name(call.path)

    def lost(self, matters: Callable[[str], bool]) -> Iterator[str]:
        """What would be lost, of all that matters."""
        for path, call in self.bytes.items():
            if matters(path):
                yield f"the bytes of {path} ({call.name} {call.number})"
        for names in self.names.values():
            for path, call in names.items():
                if matters(path):
                    yield f"the name {path} ({call.name} {call.number})"

    def lost_below(self, path: str) -> Iterator[str]:
        """What of a file, or of a folder with all in it, would be lost although its name were durable."""
        inside = f"{path}/"
        yield from (f"the bytes of {name}" for name in self.bytes if name == path or name.startswith(inside))
        for folder, names in self.names.items():
            if folder == path or folder.startswith(inside):
                yield from (f"the name {name}" for name in names)

    def _name(self, path: str, call: Call) -> None:
        self.names.setdefault(os.path.dirname(path), {})[path] = call

    def _forget_name(self, path: str) -> None:
        self.names.get(os.path.dirname(path), {}).pop(path, None)

    def _move(self, path: str, other: str) -> None:
        for old in [name for name in self.bytes if name == other]:
            del self.bytes[old]
        self.bytes = {_moved(name, path, other): call for name, call in self.bytes.items()}
        self.names = {
            _moved(folder, path, other): {_moved(name, path, other): call for name, call in names.items()}
            for folder, names in self.names.items()
        }


def problems(calls: Sequence[Call], rules: Rules = Rules()) -> list[str]:
    """Every place where a power cut could break a promise; empty if the order is right."""
    return list(_problems(calls, rules))


def _problems(calls: Sequence[Call], rules: Rules) -> Iterator[str]:
    pending = Pending()
    told: set[str] = set()  # what is missing at one call is missing at those after it

    def missing(when: object, lost: Iterator[str]) -> Iterator[str]:
        for what in lost:
            if what not in told:
                told.add(what)
                yield f"{when} came before the fsync of {what}"

    for call in calls:
        if not call.ok:
            continue
        yield from missing(call, pending.lost(partial(rules.presumes, call)))
        if call.name == "rename" and rules.lasting(call.other):
            yield from missing(call, pending.lost_below(call.path))
        if call.name in WRITES and not (is_temporary(call.path) or rules.in_place(call.path)):
            yield f"{call} writes under a final name"
        pending.apply(call)
    yield from missing("the end", pending.lost(lambda path: rules.lasting(path) and not is_temporary(path)))


def is_temporary(path: str) -> bool:
    """Whether a crash may leave it in any condition: it, or a folder it is in, is named so."""
    return any(part.endswith(".tmp") for part in path.split("/"))


def _moved(name: str, path: str, other: str) -> str:
    return other + name[len(path) :] if name == path or name.startswith(f"{path}/") else name
