"""Whether a traced program made things durable in the right order: on the strictest file system, not on this one.

On ext4 one fsync commits the journal and with it every rename before it, so a missing fsync of a folder hides behind
the next file's. POSIX promises less: a file's bytes are durable once that file was fsynced, a name once its folder was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from crash.harness import WRITES, Call

SYNCS = frozenset({"fsync", "fdatasync"})
MAKES_A_NAME = frozenset({"mkdir", "link", "symlink", "mknod"})


def _never(_: object) -> bool:
    return False


@dataclass(frozen=True)
class Rules:
    """What is special about some files of a program, by path, and which calls need all before them to be durable."""

    in_place: Callable[[str], bool] = _never
    """Written where it stands: a lock, a log, a mark. Its writer knows how to read what a crash leaves."""
    loose: Callable[[str], bool] = _never
    """Nothing depends on it: it may be gone, or empty, or old."""
    depends: Callable[[Call], bool] = _never
    """A call that says or presumes that what came before it is there to stay."""


@dataclass
class Pending:
    """What a power cut would take: bytes by file, names by folder, each with the call that made it."""

    rules: Rules
    bytes: dict[str, Call] = field(default_factory=dict)
    names: dict[str, dict[str, Call]] = field(default_factory=dict)

    def apply(self, call: Call) -> None:
        """Take a call into account."""
        if call.name in WRITES or call.name in {"ftruncate", "truncate"} or call.flags & os.O_TRUNC and call.name == "open":
            self.bytes[call.path] = call
        if call.name in SYNCS:
            self.bytes.pop(call.path, None)
            self.names.pop(call.path, None)
        if call.name in MAKES_A_NAME or (call.name == "open" and call.flags & os.O_EXCL):
            self._name(call.other or call.path, call)
        if call.name == "rename":
            self._forget_name(call.path)
            self._move(call.path, call.other)
            self._name(call.other, call)
        if call.name in {"unlink", "rmdir"}:
            self.bytes.pop(call.path, None)
            self.names.pop(call.path, None)
            self._forget_name(call.path)

    def lost(self) -> Iterator[str]:
        """What would be lost, of all that matters."""
        for path, call in self.bytes.items():
            if not (is_temporary(path) or self.rules.in_place(path) or self.rules.loose(path)):
                yield f"the bytes of {path} ({call.name} {call.number})"
        for names in self.names.values():
            for path, call in names.items():
                if not (is_temporary(path) or self.rules.loose(path)):
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


def problems(calls: Sequence[Call], rules: Rules = Rules()) -> list[str]:  # noqa: B008 - frozen
    """Every place where a power cut could break a promise; empty if the order is right."""
    return list(_problems(calls, rules))


def _problems(calls: Sequence[Call], rules: Rules) -> Iterator[str]:
    pending = Pending(rules)
    for call in calls:
        if not call.ok:
            continue
        if rules.depends(call):
            yield from (f"{call} came before the fsync of {what}" for what in pending.lost())
        if call.name == "rename" and not rules.loose(call.other):
            yield from (f"{call} came before the fsync of {what}" for what in pending.lost_below(call.path))
        pending.apply(call)
        overwritten = call.name in WRITES and not (is_temporary(call.path) or rules.in_place(call.path))
        if overwritten and not rules.loose(call.path):
            yield f"{call} writes under a final name"
    yield from (f"the end came before the fsync of {what}" for what in pending.lost())


def is_temporary(path: str) -> bool:
    """Whether a crash may leave it in any condition: it, or a folder it is in, is named so."""
    return any(part.endswith(".tmp") for part in path.split("/"))


def _moved(name: str, path: str, other: str) -> str:
    return other + name[len(path) :] if name == path or name.startswith(f"{path}/") else name
