"""A small program that means to survive anything, and ways to get it wrong that the harness has to catch.

    toy.py VARIANT FOLDER ACKNOWLEDGED

Each step writes `step.N` once and replaces `state`, then appends N to the file ACKNOWLEDGED (outside of what is
crashed): from then on the step must be there. Every second step is the work of a forked child. Started again, it goes
on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STEPS = 4


def content(step: int) -> bytes:
    """What a step leaves: long enough for a short write to show."""
    return b"%d\n" % step * 1000


class Folder:
    """The right way to put a file in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def put(self, name: str, data: bytes) -> None:
        """Temporary file, fsync, rename, fsync of the folder."""
        temporary = f"{name}.tmp"
        self.write(temporary, data)
        os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.sync()

    def write(self, name: str, data: bytes) -> None:
        """All of it, durable."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self.fd)
        try:
            while data:
                data = data[os.write(fd, data) :]
            self.sync_file(fd)
        finally:
            os.close(fd)

    def sync_file(self, fd: int) -> None:
        """Make what was written durable."""
        os.fsync(fd)

    def sync(self) -> None:
        """Make the names durable."""
        os.fsync(self.fd)


class FolderNotSynced(Folder):
    """The name may be gone after a power cut."""

    def sync(self) -> None:
        """Nothing."""


class FileNotSynced(Folder):
    """The file may be empty after a power cut."""

    def sync_file(self, fd: int) -> None:
        """Nothing."""


class InPlace(Folder):
    """A crash in the middle leaves half a file, and nothing of what was there."""

    def put(self, name: str, data: bytes) -> None:
        """Over what is there."""
        self.write(name, data)
        self.sync()


class AcknowledgedFirst(Folder):
    """What was promised may be missing."""


VARIANTS = {
    "right": Folder,
    "folder-not-synced": FolderNotSynced,
    "file-not-synced": FileNotSynced,
    "in-place": InPlace,
    "acknowledged-first": AcknowledgedFirst,
}


def main(variant: str, path: str, acknowledged: str) -> int:
    """Take the steps that are missing."""
    folder = VARIANTS[variant](Path(path))
    for name in os.listdir(folder.fd):
        if name.endswith(".tmp"):
            os.unlink(name, dir_fd=folder.fd)

    def acknowledge(step: int) -> None:
        with Path(acknowledged).open("a", encoding="ascii") as file:
            file.write(f"{step}\n")

    for step in range(1, STEPS + 1):
        if not Path(path, f"step.{step}").exists():
            take(folder, step, acknowledge, first=variant == "acknowledged-first")
    return 0


def take(folder: Folder, step: int, acknowledge: Callable[[int], None], *, first: bool) -> None:
    """One step; every second one in a child."""
    if step % 2 == 0 and (child := os.fork()):
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"step {step} failed")
        return
    code = 1
    with suppress(OSError):
        if first:
            acknowledge(step)
        folder.put("state", content(step))
        folder.put(f"step.{step}", content(step))
        if not first:
            acknowledge(step)
        code = 0
    if step % 2 == 0:
        os._exit(code)
    if code:
        raise SystemExit(f"step {step} failed")


def problems(folder: Path, acknowledged: Path) -> list[str]:
    """What is wrong with what a crash left."""
    said = [int(line) for line in acknowledged.read_text("ascii").split()] if acknowledged.exists() else []
    there = {int(path.suffix[1:]): path.read_bytes() for path in folder.glob("step.[0-9]")}
    found = [f"step {step} was acknowledged and is gone" for step in said if step not in there]
    found += [f"step {step} is damaged" for step, data in there.items() if data != content(step)]
    state = folder / "state"
    if said and not state.exists():
        found.append("there is no state")
    elif state.exists() and state.read_bytes() not in [content(step) for step in range(1, STEPS + 1)]:
        found.append("the state is damaged")
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
