"""A project whose state can be looked at, put back, damaged, and lost: at any call, whole or in part."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sage_sandbox.disk.places import ProjectPlace, project_place
from sage_sandbox.outcome import Outcome
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import Reader, state_folder
from sage_sandbox.store.reading import Found
from sage_sandbox.store.records import Checkpoint, Definition, PhaseEnd, State
from sage_sandbox.store.runs import RunStore

KEYS = Keys([b"k" * 32])
NOW = "2026-01-31T10:00:00.000Z"
IDS = ("a", "b", "c", "d")
RUN = "1" * 32
DEFINITION = Definition(1, "flow", "yaml", "/t.yaml", "digest", "text", IDS, NOW, grants=("read:/src",))
STATE = State(RUN, "f", "flow", "running", 1, IDS, NOW, NOW)


def state_of(run: str = RUN, feature: str = "f", **changes: Any) -> State:
    """A run that has just begun."""
    return replace(STATE, run=run, feature=feature, **changes)


def ended(phase: str, result: bytes = b"1", outcome: PhaseEnd = "completed") -> Checkpoint:
    """What a phase of two operations leaves."""
    one, other = Outcome("fulfilled", result=result, stdout=b"\xff"), Outcome("rejected", "error", "no")
    both = (("one", one), ("two", one if outcome == "completed" else other))
    return Checkpoint(phase, 0, 0, outcome, both, NOW, NOW, 0.5)


def done(found: Found) -> set[str]:
    """The phases that are never run again."""
    return {phase for phase, held in found.checkpoints.items() if held.outcome == "completed"}


@dataclass
class Stored:
    """One feature of a project, with real folders."""

    project: Path
    feature: str = "f"
    keys: Keys = KEYS
    place: ProjectPlace = field(init=False)

    def __post_init__(self) -> None:
        self.project.mkdir(exist_ok=True, mode=0o700)
        self.place = project_place(self.project)

    def find_place(self) -> None:
        """Open the user's folder anew: it is another one once everything was put back."""
        self.place.folder.close()
        self.place = project_place(self.project)

    @property
    def state(self) -> Path:
        return self.project / ".sage" / "state"

    @property
    def anchors(self) -> Path:
        return Path(self.place.folder.path, "anchors")

    @property
    def roots(self) -> tuple[Path, ...]:
        """Everything that a store writes."""
        return (self.project / ".sage", Path(self.place.folder.path))

    def path(self, name: str) -> Path:
        """``main``, ``backup``, or a file in the folder of the run, without its end."""
        mains = {"main": f"workflow-{self.feature}.json", "backup": f"workflow-{self.feature}.json.bak"}
        return self.state / mains.get(name, f"workflow-{self.feature}/{name}.json")

    @property
    def aside(self) -> dict[str, Path]:
        """What was put aside, by the name it had."""
        return {path.name: path for path in self.state.glob("aside/*/*")}

    @contextmanager
    def opened(self, **options: Any) -> Iterator[RunStore]:
        with closing(RunStore.open(self.project, self.place, self.feature, self.keys, wait_s=0, **options)) as store:
            yield store

    @contextmanager
    def resumed(self) -> Iterator[RunStore]:
        """A store that goes on with what there is."""
        with self.opened() as store:
            store.adopt(store.read())
            yield store

    def read(self) -> Found:
        with self.opened() as store:
            return store.read()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        with state_folder(self.project) as folder:
            yield Reader(folder, self.place.id, self.feature, self.keys)

    def begin(self, run: str = RUN, *, definition: Definition = DEFINITION) -> None:
        with self.opened() as store:
            store.set_aside()
            store.create(state_of(run, self.feature), definition)

    def commit(self, *checkpoints: Checkpoint) -> None:
        with self.resumed() as store:
            store.commit(checkpoints)

    def save(self, **changes: Any) -> None:
        with self.resumed() as store:
            store.save(replace(store.read().state, **changes))

    def drop(self, *phases: str) -> None:
        """As a resume with ``--from`` does it."""
        with self.opened() as store:
            found = store.read()
            store.adopt(found)
            gone = tuple((one.phase, one.attempt, one.generation) for one in map(found.checkpoints.get, phases) if one)
            left = {phase: mark for phase, mark in found.state.checkpoints.items() if phase not in phases}
            store.save(replace(found.state, checkpoints=left, dropped=(*found.state.dropped, *gone)))

    def files(self) -> dict[str, bytes]:
        """Every file but the locks: its bytes, or what else it is."""
        found = {}
        for root in self.roots:
            for path in sorted(root.rglob("*")):
                if not path.name.endswith(".lock"):
                    found[str(path)] = _content(path)
        return found

    def temporary(self) -> list[Path]:
        """Half-written files that nobody took away."""
        return [path for root in self.roots for path in root.rglob("*.tmp")]


def _content(path: Path) -> bytes:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 24:
        size = "" if stat.S_ISDIR(status.st_mode) else status.st_size
        return f"{stat.filemode(status.st_mode)} {status.st_uid} {size}".encode()
    return path.read_bytes()


class Snapshot:
    """The files below some folders, to be put back as often as needed."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots = roots
        self._files = {
            path: None if path.is_dir() else path.read_bytes() for root in roots for path in sorted(root.rglob("*"))
        }

    def restore(self) -> None:
        for root in self._roots:
            for path in root.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path, data in self._files.items():
            if data is None:
                path.mkdir(mode=0o700)
            else:
                path.touch(mode=0o600)
                path.write_bytes(data)


# -- trouble at a call ---------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


WRITING = ("write", "pwrite", "ftruncate", "fsync", "rename", "mkdir", "unlink", "rmdir", "open")


@dataclass
class _Step:
    """A change that may be lost until what it touches is synced: every path of it, and how to take it back."""

    paths: tuple[str, ...]
    needs: set[str]
    undo: Callable[[], None]


class Calls:
    """Counts the calls that change files, and makes one of them end in trouble. Nothing really waits for the disk.

    ``before``/``after``/``middle``: the process ends there, and whatever its cleaning up would do does not happen.
    An error number: the call fails, and with ``ever`` each one after it. Opens for reading count only where ``opens``.
    """

    def __init__(self, at: int = 0, how: str | int = "", *, ever: bool = False, opens: bool = False) -> None:
        self.at = at
        self.how = how
        self.ever = ever
        self.opens = opens
        self.names: list[str] = []
        self.dead = False
        self.volatile: list[_Step] = []
        self._real = {name: getattr(os, name) for name in WRITING}

    @contextmanager
    def happening(self) -> Iterator[Calls]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name in WRITING:
                monkeypatch.setattr(os, name, self._wrapped(name))
            yield self

    def losses(self, most: int = 6) -> list[set[int]]:
        """What may be lost with the power, of all that is not synced: the numbers of the changes."""
        every = range(1, 1 << len(self.volatile))
        chosen = random.Random(len(self.names)).sample(every, min(most, len(every)))
        return [{number for number in range(len(self.volatile)) if bits >> number & 1} for bits in chosen]

    def lose(self, numbers: set[int]) -> None:
        """The power went: these changes were not on the disk yet, nor what depends on them."""
        lost: list[_Step] = []
        for number, step in enumerate(self.volatile):
            if number in numbers or any(_touch(step, earlier) for earlier in lost):
                lost.append(step)
        for step in reversed(lost):
            step.undo()

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not self.opens and not args[1] & os.O_CREAT:
                return self._real[name](*args, **kwargs)
            if self.dead:
                raise Crash
            self.names.append(name)
            hit = len(self.names) == self.at
            if isinstance(self.how, int) and (hit or (self.ever and len(self.names) > self.at)):
                raise OSError(self.how, os.strerror(self.how))
            if hit and self.how in {"before", "middle"}:
                self.dead = True
                if self.how == "middle" and name in {"write", "pwrite"}:
                    self._do(name, (args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:]), kwargs)
                raise Crash
            result = self._do(name, args, kwargs)
            if hit and self.how == "after":
                self.dead = True
                if name == "open":
                    os.close(result)
                raise Crash
            return result

        return call

    def _do(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name == "fsync":
            self._synced(_path_of(args[0]))
            return None
        step = self._step(name, args, kwargs)
        result = self._real[name](*args, **kwargs)
        if step is not None:
            self.volatile.append(step)
        return result

    def _synced(self, path: str) -> None:
        for step in self.volatile:
            step.needs.discard(path)
        self.volatile = [step for step in self.volatile if step.needs]

    def _step(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Step | None:
        if name == "rename":
            source = Path(_path_of(kwargs["src_dir_fd"]), args[0])
            target = Path(_path_of(kwargs["dst_dir_fd"]), args[1])
            before = target.read_bytes() if target.is_file() else None
            return _Step(
                (str(source), str(target)),
                {str(source.parent), str(target.parent)},
                lambda: self._rename_back(source, target, before),
            )
        if name == "mkdir":
            made = Path(_path_of(kwargs["dir_fd"]), args[0])
            return _Step((str(made),), {str(made.parent)}, lambda: shutil.rmtree(made))
        if name == "pwrite":
            path = Path(_path_of(args[0]))
            if path.name.endswith(".lock"):  # what it says is for people
                return None
            before = path.read_bytes()
            return _Step((str(path),), {str(path)}, lambda: path.write_bytes(before) and None)  # type: ignore[arg-type]
        return None

    def _rename_back(self, source: Path, target: Path, before: bytes | None) -> None:
        self._real["rename"](target, source)
        if source.name.endswith(".tmp"):
            source.unlink()
        if before is not None:
            target.touch(mode=0o600)
            target.write_bytes(before)


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _touch(one: _Step, other: _Step) -> bool:
    return any(
        path == before or path.startswith(f"{before}/") or before.startswith(f"{path}/")
        for path in one.paths
        for before in other.paths
    )


# -- damage --------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def relabelled(path: Path) -> None:
    """One generation on: a checksum does not cover it, the tag does."""
    path.write_bytes(path.read_bytes().replace(b'"generation":', b'"generation":1', 1))


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def gone(path: Path) -> None:
    path.unlink()


def a_hard_link(path: Path) -> None:
    os.link(path, path.with_name("another"))


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def sparse(path: Path) -> None:
    os.truncate(path, 3 << 30)


def writable_by_all(path: Path) -> None:
    path.chmod(0o666)


def of_another_user(path: Path) -> None:
    os.chown(path, 10002, 10002)


def forged(path: Path) -> None:
    """As somebody would write it who has no key, and hopes that nobody asks for it."""
    head, _, _ = path.read_bytes().partition(b'"nonce":"')
    header = head.replace(b"AES-256-GCM", b"HMAC-SHA256") + b'"nonce":"","payload":\n'
    body = b'{"version":"1.0"}'
    digest = hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(b'%b%b\n,"sha256":"%b","tag":"%b"}\n' % (header, body, digest, b"0" * 64))


DAMAGES: tuple[Damage, ...] = (
    truncated,
    emptied,
    changed,
    relabelled,
    a_fifo,
    a_link,
    a_dangling_link,
    a_hard_link,
    a_folder,
    sparse,
    writable_by_all,
    forged,
    *((of_another_user,) if os.geteuid() == 0 else ()),
)
