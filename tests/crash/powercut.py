"""File systems of our own on loop devices, whose power can be cut: what was not made durable by then is gone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
GOINGDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32): the same for ext4 and xfs
NOLOGFLUSH = 2
PATIENCE_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Kind:
    """A file system that knows FS_IOC_GOINGDOWN, and how it forgets the most."""

    name: str
    size: int
    make: tuple[str, ...]
    options: str


# ext4: no commit by the clock, and no help for programs that rename before they fsync (auto_da_alloc).
KINDS = {
    "ext4": Kind("ext4", 64 << 20, ("mkfs.ext4", "-q", "-F"), "commit=600,noauto_da_alloc"),
    "xfs": Kind("xfs", 320 << 20, ("mkfs.xfs", "-q", "-f"), "defaults"),
}


def missing(kind: str) -> str:
    """Why there cannot be such a file system here; empty if there can."""
    if os.geteuid() != 0:
        return "cutting power needs root"
    for program in (KINDS[kind].make[0], "losetup", "mount", "umount"):
        if shutil.which(program) is None:
            return f"cutting power on {kind} needs {program}"
    if not Path("/dev/loop-control").exists():
        return "cutting power needs loop devices (/dev/loop-control)"
    return ""


@dataclass
class Disk:
    """A mounted image. ``replay()`` is what happens when the power comes back."""

    kind: Kind
    device: str
    mount: Path

    def attach(self) -> None:
        """Mount it, replaying its journal."""
        _run("mount", "-t", self.kind.name, "-o", self.kind.options, self.device, str(self.mount))

    def detach(self) -> None:
        """Unmount it, and wait until nobody has it open: the mount namespace of a killed sandbox lets go late."""
        until = time.monotonic() + PATIENCE_S
        while self._is_mounted():
            done = subprocess.run(["umount", self.mount], capture_output=True, text=True, check=False)
            if done.returncode:
                assert time.monotonic() < until, done.stderr
                time.sleep(0.01)
        while Path("/sys/fs", self.kind.name, Path(self.device).name).exists():
            assert time.monotonic() < until, f"{self.device} is still in use"
            time.sleep(0.002)

    def _is_mounted(self) -> bool:
        # Not os.path.ismount: a file system without power cannot even be asked. Not /proc/self: that is another thread.
        mounts = Path("/proc/thread-self/mountinfo").read_text("ascii")
        return any(line.split()[4] == str(self.mount) for line in mounts.splitlines())

    def sync(self) -> None:
        """Make all of it durable, so that a trial starts from there."""
        folder = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(folder):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(folder)

    def replay(self) -> None:
        """Off and on again."""
        self.detach()
        self.attach()


def with_disk(kind: str, folder: Path, act: Callable[[Disk], T]) -> T:
    """Do something with a fresh file system, mounted below ``folder`` for this alone and gone afterwards.

    It is mounted in a mount namespace that only a thread made for the purpose is in: a sandbox that some other program
    starts meanwhile would copy the mount, and keep it alive.
    """
    with ThreadPoolExecutor(1, initializer=_leave_mounts) as thread:
        return thread.submit(_with_disk, KINDS[kind], folder, act).result()


def cut(mount: Path) -> None:
    """Cut the power of what is mounted there, as the shim does it."""
    folder = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, GOINGDOWN, NOLOGFLUSH.to_bytes(4, sys.byteorder))
    finally:
        os.close(folder)


def _with_disk(kind: Kind, folder: Path, act: Callable[[Disk], T]) -> T:
    image, mount = folder / f"{kind.name}.image", folder / kind.name
    with image.open("wb") as file:
        file.truncate(kind.size)
    mount.mkdir()
    _run(*kind.make, str(image))
    device = _run("losetup", "--find", "--show", str(image)).strip()
    # Detached now, a device goes when the last who has it open has closed it: whatever becomes of this process.
    held = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    _run("losetup", "--detach", device)
    disk = Disk(kind, device, mount)
    try:
        disk.attach()
        return act(disk)
    finally:
        try:
            disk.detach()
        finally:
            os.close(held)
            image.unlink()


def _leave_mounts() -> None:
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace for the test")


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
