"""What strace says a program did to the files of a folder, in the shim's words: a second witness for its count."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# The shim's word for each system call, and which of its arguments says what it is about: a descriptor that -y has
# spelled, or the first of a folder's descriptor and a name.
_BY_FD = {
    "write": "write",
    "pwrite64": "pwrite",
    "writev": "writev",
    "pwritev": "writev",
    "pwritev2": "writev",
    "sendfile": "sendfile",
    "ftruncate": "ftruncate",
    "fallocate": "fallocate",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "fchmod": "chmod",
    "fchown": "chown",
    "fsetxattr": "setxattr",
}
_BY_NAME = {
    "open": "open",
    "creat": "open",
    "mkdir": "mkdir",
    "mknod": "mknod",
    "rename": "rename",
    "unlink": "unlink",
    "rmdir": "rmdir",
    "truncate": "truncate",
    "chmod": "chmod",
    "chown": "chown",
    "lchown": "chown",
    "setxattr": "setxattr",
    "lsetxattr": "setxattr",
}
_BY_NAME_AT = {
    "openat": "open",
    "openat2": "open",
    "mkdirat": "mkdir",
    "mknodat": "mknod",
    "renameat": "rename",
    "renameat2": "rename",
    "linkat": "link",
    "unlinkat": "unlink",
    "fchmodat": "chmod",
    "fchmodat2": "chmod",
    "fchownat": "chown",
    "utimensat": "utimes",
}
_OTHERS = {"link": "link", "symlink": "symlink", "symlinkat": "symlink", "copy_file_range": "copy_file_range"}
_OTHERS |= {"splice": "splice", "bind": "bind"}
CALLS = sorted({*_BY_FD, *_BY_NAME, *_BY_NAME_AT, *_OTHERS})
WORDS = sorted({*_BY_FD.values(), *_BY_NAME.values(), *_BY_NAME_AT.values(), *_OTHERS.values()})
_LINE = re.compile(r"(\w+)\((.*)\) += (?:-?\d|\?)")
_FD = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")


def argv(output: Path) -> list[str]:
    """What to put before a command: one file a process at ``output.PID``, descriptors with their paths."""
    return ["strace", "-ff", "-y", "-s", "4096", "-o", str(output), "-e", f"trace=?{',?'.join(CALLS)}"]


def counted(output: Path, top: Path) -> Counter[str]:
    """How often each call was made below ``top``, which is taken for the working directory where a name needs one."""
    return Counter(
        word
        for path in output.parent.glob(f"{output.name}.*")
        for word, about in _calls(path.read_text("utf-8", "replace"), str(top))
        if about.startswith("/proc/self/fd/") or Path(about).is_relative_to(top)
    )


def _calls(text: str, cwd: str) -> Iterator[tuple[str, str]]:  # noqa: C901 - a table of calls, one line each
    for line in text.splitlines():
        if not (match := _LINE.match(line)):
            continue
        name, arguments = match[1], match[2]
        fds, strings = _FD.findall(arguments), re.findall(r'"([^"]*)"', arguments)
        if name in {"open", "openat", "openat2"} and not re.search("O_CREAT|O_TRUNC|O_TMPFILE", arguments):
            continue
        if name in _BY_FD:
            yield _BY_FD[name], fds[0]
        elif name == "utimensat" and not strings:
            yield "utimes", fds[0]
        elif name in _BY_NAME_AT:
            word = "rmdir" if "AT_REMOVEDIR" in arguments else _BY_NAME_AT[name]
            yield word, os.path.join(fds[0], strings[0])
        elif name in {"copy_file_range", "splice"}:
            yield name, fds[1]
        elif name in {"link", "symlink"}:
            yield name, os.path.join(cwd, strings[1])
        elif name == "symlinkat":
            yield "symlink", os.path.join(fds[0], strings[1])
        elif name == "bind":
            yield from [("bind", os.path.join(cwd, string)) for string in strings]
        else:
            yield _BY_NAME[name], os.path.join(cwd, strings[0])
