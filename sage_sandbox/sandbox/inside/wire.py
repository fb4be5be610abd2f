"""What passes between a supervisor, its zygote and the children: frames, and the steps a child applies.

Down (supervisor to zygote and child): marshal, for both ends are ours until user code starts. Up (child to supervisor):
a kind byte and JSON or fixed structs, length-capped, never unmarshalled: whoever runs in the child may have written it.

A frame is a 4-byte big-endian length, then that many bytes.
"""

from __future__ import annotations

import marshal
import struct
from _socket import SCM_RIGHTS, SOL_SOCKET
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from _socket import socket

LENGTH = struct.Struct(">I")
_FD = struct.Struct("=i")
DOWN_MAX = 1 << 27

# What a child sends: the first byte of a frame.
LISTENER = b"L"  # empty body; the socket that the egress proxy accepts on comes with it
WORK_FOLDER = b"W"  # empty body; a descriptor of the work folder's root comes with it
READY = b"R"  # every step applied; body: JSON object of capabilities
REFUSED = b"F"  # a step failed; body: JSON [step, errno, message]
VALUE = b"V"  # python: what run() returned; body: JSON
ERROR = b"E"  # python: what it raised; body: JSON object
EXITED = b"X"  # command: how it ended; body: EXIT_STATUS
TOOLS = b"T"  # before any code of the operation's; empty body; the socket that listens for its tool calls comes with it
NOT_GRANTED = b"N"  # python, where no tool is granted: one that it called; body: the name

ORDER = struct.Struct(">BII")
"""What a supervisor sends a zygote that stands: SPAWN, a serial and descriptors, or MAP, an owner's uid and gid."""
SPAWN = 0
MAP = 1

EXIT_STATUS = struct.Struct(">i")
# What a zygote sends. SPAWNED comes with a pidfd, which it opened while it alone could reap the child: no other process
# can be behind it. CHILD_GONE: serial, wait status, user and system CPU seconds, peak resident set (KiB).
SPAWNED = b"S"
CHILD_GONE = struct.Struct(">Iiddq")

# The pantry is a mount namespace that the zygote keeps and that only children with grants enter. In it:
HOST = "/host"
"""A recursive bind of the host."""
ROOT = "/new"
"""The shared root: the whole view of the zygote, and of every child without grants."""
OWN_ROOT = "/own"
"""Where a child with grants builds a root of its own."""
WORK = "/work"
"""Where a child mounts its capped tmpfs; ``box`` beneath it is what the operation sees, ``stage`` what it does not."""
LAYERS = "/layers"
"""Mount points for the lower layers of overlays, numbered."""
MASKS = "/masks"
"""Mount points for what stands over these layers."""
SHOWN = "/shown"
"""Mount points where what a grant shows is put together, before it is moved to its place."""
LAYERS_MAX = 64
# An operation's own, never the host's.
TMP = "/tmp"  # noqa: S108
SHARED_MEMORY = "/dev/shm"  # noqa: S108
BOX = "/sandbox/box"
"""Where ``box`` appears inside. Its parent is the zygote's: a Landlock rule there covers what is mounted below."""
PROGRAMS = "/sandbox/bin"
"""Programs of ours, which operations find on their PATH."""


class Namespaces(NamedTuple):
    """Own session, mount namespace (a copy of the ``pantry``, or the lean one) and, if ``network``, loopback."""

    network: bool
    pantry: bool


class Listen(NamedTuple):
    """A listener at ``port`` of the child's own loopback, passed out: beyond it stands the egress proxy."""

    port: int


class Work(NamedTuple):
    """The capped tmpfs at ``target``: size in bytes, inodes, owner. ``box`` is its part that the operation sees."""

    target: str
    box: str
    size: int
    inodes: int
    uid: int
    gid: int


class OwnRoot(NamedTuple):
    """A root of the child's own, with the shared root's mounts and links in it."""

    mounts: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


class Place(NamedTuple):
    """The box at its place in an own root, ``/tmp`` as a mount of its own, for grants may lie beneath it."""

    root: str


class Attach(NamedTuple):
    """One grant: bound, or as an overlay.

    ``masks`` are (relative path, replacement or None to hide) pairs; in a direct bind what is hidden is covered by
    nothing of the same kind.

    ``device`` and ``inode`` are what the supervisor found at ``path``; ``owner`` the uid and gid that own it. ``layer``
    numbers it; ``direct`` is a bind, not an overlay. ``staged`` gives the overlay an upper layer in the work folder.
    """

    path: str
    device: int
    inode: int
    owner: tuple[int, int]
    folder: bool
    writable: bool
    layer: int
    direct: bool
    staged: bool
    masks: tuple[tuple[str, bytes | None], ...]
    root: str


class Proc(NamedTuple):
    """A /proc of the operation's own pid namespace; where the host forbids one, there is none."""

    root: str


class Pivot(NamedTuple):
    """``root`` becomes the root (empty: it is already); ``entries`` is all that may be in it. Go to ``cwd``."""

    root: str
    cwd: str
    entries: tuple[str, ...]


class Identity(NamedTuple):
    """A user namespace in which only ``uid`` and ``gid`` exist. ``switch``: become them first."""

    uid: int
    gid: int
    switch: bool


class Descriptors(NamedTuple):
    """Result to 3, ruleset to 4, and nothing above."""


class Defaults(NamedTuple):
    """umask 077. Signals are at their defaults since the zygote set them (see `rlimits.default_signals`)."""


class Rlimits(NamedTuple):
    """(resource, value) pairs, soft = hard. ``address_space``: bytes above what is mapped already, 0 for no limit."""

    values: tuple[tuple[int, int], ...]
    address_space: int


class Powerless(NamedTuple):
    """Bounding set, ambient set, securebits and capabilities: nothing; undumpable; no new privileges."""


class Landlock(NamedTuple):
    """The zygote's ruleset, or one for an ``own`` root and its ``writable`` paths; ``files`` are no folders.

    ``network`` leaves TCP alone; else ``port`` is the only one that can be connected to, 0 for none.
    """

    own: bool
    root: str
    writable: tuple[str, ...]
    files: tuple[str, ...]
    network: bool
    port: int


class Restrict(NamedTuple):
    """Put the ruleset in force."""


class Seccomp(NamedTuple):
    """The filter that takes away what the steps before needed."""


class SelfCheck(NamedTuple):
    """What must now hold, read back from the kernel."""


Step = (
    Namespaces | Listen | Work | OwnRoot | Place | Attach | Proc | Pivot | Identity | Descriptors | Defaults |
    Rlimits | Powerless | Landlock | Restrict | Seccomp | SelfCheck
)  # fmt: skip

STEPS: dict[str, type[Step]] = {
    kind.__name__: kind
    for kind in (
        Namespaces, Listen, Work, OwnRoot, Place, Attach, Proc, Pivot, Identity, Descriptors, Defaults, Rlimits,
        Powerless, Landlock, Restrict, Seccomp, SelfCheck,
    )
}  # fmt: skip


class Foundation(NamedTuple):
    """What a zygote builds once: everything its children share.

    ``binds`` are (host path, path inside, is a folder), read-only; ``files`` (path, content) pairs; ``links``
    (path, target) pairs; ``folders`` empty ones. ``owner`` is the uid and gid that own the project: with ``privileged``
    its files are shown to the operation as its own. ``seccomp`` are the zygote's program and the one that locks a
    child.
    """

    binds: tuple[tuple[str, str, bool], ...]
    files: tuple[tuple[str, bytes], ...]
    links: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    devices: tuple[str, ...]
    owner: tuple[int, int]
    uid: int
    gid: int
    privileged: bool
    seccomp: tuple[bytes, bytes]
    landlock_abi: int
    packages: tuple[str, ...]


class PythonRequest(NamedTuple):
    """Source text to run, and what it is called with (JSON text). ``tools``: some are granted."""

    code: str
    file: str
    files: tuple[tuple[str, str], ...]
    params: bytes
    inputs: bytes
    env: tuple[tuple[str, str], ...]
    result_max: int
    tools: bool


class CommandRequest(NamedTuple):
    """A program and its arguments. ``terminal``: descriptor 0 becomes the controlling terminal."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    terminal: bool


REQUESTS: dict[str, type[PythonRequest | CommandRequest | Foundation]] = {
    "PythonRequest": PythonRequest,
    "CommandRequest": CommandRequest,
    "Foundation": Foundation,
}


def pack(*records: tuple[Any, ...]) -> bytes:
    """Records, each with its name, as one frame."""
    body = marshal.dumps(tuple((type(record).__name__, *record) for record in records))
    return LENGTH.pack(len(body)) + body


def unpack_steps(body: bytes) -> tuple[Step, ...]:
    """The steps of a frame that `pack` made."""
    return tuple(STEPS[name](*fields) for name, *fields in marshal.loads(body))  # noqa: S302 - see above


def unpack_request(body: bytes) -> PythonRequest | CommandRequest | Foundation:
    """The one request of a frame that `pack` made."""
    ((name, *fields),) = marshal.loads(body)  # noqa: S302 - see above
    return REQUESTS[name](*fields)


def send(sock: socket, kind: bytes, body: bytes = b"") -> None:
    """One upward frame."""
    sock.sendall(LENGTH.pack(1 + len(body)) + kind + body)


def send_descriptor(sock: socket, kind: bytes, body: bytes, fd: int) -> None:
    """One upward frame with a descriptor; small enough to leave in one piece."""
    sock.sendmsg([LENGTH.pack(1 + len(body)) + kind + body], [(SOL_SOCKET, SCM_RIGHTS, _FD.pack(fd))])


def receive(sock: socket) -> bytes:
    """One downward frame; EOFError where the other side is gone."""
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH.size))
    if length > DOWN_MAX:
        raise EOFError(f"a frame of {length} bytes")
    return _exactly(sock, length)


def _exactly(sock: socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
