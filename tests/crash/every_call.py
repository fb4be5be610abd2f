"""Makes every call that the shim counts, some of them in other processes. Its argument is the folder it works in."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SYSCALLS = {"x86_64": {"renameat2": 316}, "aarch64": {"renameat2": 276}}
OPENAT2 = 437
AT_FDCWD = -100


def files(top: Path) -> None:
    """What is done with open files."""
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    fd = os.open("one", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    os.write(fd, b"some bytes")
    os.pwrite(fd, b"more", 3)
    os.writev(fd, [b"", b"ab", b"c"])
    os.pwritev(fd, [b"ab", b"c"], 1)
    os.ftruncate(fd, 5)
    os.posix_fallocate(fd, 0, 8192)
    os.fsync(fd)
    os.fdatasync(fd)
    os.fchmod(fd, 0o640)
    os.fchown(fd, -1, -1)
    os.utime(fd)
    with suppress(OSError):  # not every file system has them
        os.setxattr(fd, "user.crash", b"1")
    other = os.open(top / "two", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.copy_file_range(fd, other, 100, 0, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.sendfile(other, fd, 0, 100)
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.splice(reader, other, 100)
    os.fsync(folder)
    for each in (reader, writer, other, fd, folder):
        os.close(each)


def names(top: Path) -> None:
    """What is done with names, some by way of a folder's descriptor, a link, or the working directory."""
    os.chdir(top)
    Path("folder").mkdir()
    folder = os.open("folder", os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("folder", "way")
    Path("way/three").write_bytes(b"through a link")
    os.rename("one", "folder/one")
    os.rename("one", "eins", src_dir_fd=folder, dst_dir_fd=folder)
    os.link("two", "folder/zwei")
    os.unlink("zwei", dir_fd=folder)
    os.mkfifo("fifo")
    Path("fifo").unlink()
    os.truncate("two", 1)
    Path("two").chmod(0o600)
    Path(f"/proc/self/fd/{folder}").chmod(0o700)
    os.chown("two", -1, -1, follow_symlinks=False)
    os.utime("two", (1, 1))
    with suppress(OSError):
        Path("is", "not", "there").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    shutil.copytree("folder", "copy")
    shutil.rmtree("copy")
    os.close(folder)


def raw(top: Path) -> None:
    """Calls for which libc has no function, or Python none."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("=QQQ", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, 0)
    fd = libc.syscall(ctypes.c_long(OPENAT2), AT_FDCWD, os.fsencode(top / "four"), how, ctypes.c_size_t(len(how)))
    os.write(fd, b"4")
    os.close(fd)
    number = SYSCALLS[os.uname().machine]["renameat2"]
    libc.syscall(
        ctypes.c_long(number),
        AT_FDCWD,
        os.fsencode(top / "four"),
        AT_FDCWD,
        os.fsencode(top / "vier"),
        ctypes.c_uint(1),
    )


def not_counted(top: Path) -> None:
    """What changes no file: reading, locks, pipes, other folders."""
    import fcntl

    with Path(top, "two").open("rb") as file:
        file.read()
        fcntl.flock(file, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(reader)
    os.close(writer)
    outside = top.parent / "outside"
    outside.write_bytes(b"x")
    outside.unlink()


def main(top: Path) -> None:
    """All of it; a part of it in a forked child, a part in a new program."""
    files(top)
    if (child := os.fork()) == 0:
        names(top)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    subprocess.run([sys.executable, "-I", "-S", __file__, str(top), "raw"], check=True)
    not_counted(top)


if __name__ == "__main__":
    (raw if len(sys.argv) > 2 else main)(Path(sys.argv[1]))
