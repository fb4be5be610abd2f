"""What the demo plants for its hostile operations, what they get at outside, and how it is told that they got nothing.

The verdict rests on what the demo itself can see: whether the planted token came back, and whether its own sockets
heard anything. An operation's claim that it was refused is shown, but never proof.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from sage_sandbox.frozen import frozen

HOSTILE: Final = Path(__file__).parent / "hostile"
KEYS_MAX: Final = 3

# Run with -I: neither the environment nor the working directory may lend a module to it.
_OUTSIDE: Final = (
    "import importlib, json, sys; sys.path.insert(0, sys.argv[1]); "
    "print(json.dumps(importlib.import_module(sys.argv[2]).run(json.load(sys.stdin))))"
)


@frozen
class Answer:
    """What came of one act, as the operation tells it: ``loot`` is what it took away."""

    act: str
    done: bool
    answer: str
    loot: Any = None


@frozen
class Act:
    """One act beside itself: outside, where it must succeed to prove anything, and inside, where it must not."""

    name: str
    what: str
    outside: str
    inside: str
    succeeded_outside: bool
    denied_inside: bool


@frozen
class Bait:
    """What is planted: a secret file, a process with a secret in its environment, two sockets. Lives for one demo."""

    token: str
    home: Path
    folder: Path
    keys: tuple[Path, ...]
    neighbour: int
    tcp: socket.socket
    udp: socket.socket

    @property
    def secret(self) -> Path:
        """The planted file; it holds the token."""
        return self.folder / "secret"

    @property
    def port(self) -> int:
        """Where both sockets are, on 127.0.0.1."""
        return int(self.tcp.getsockname()[1])

    def params(self) -> dict[str, Any]:
        """The parameters of the hostile workflow: they know exactly where to go."""
        return {
            "secret": str(self.secret),
            "home": str(self.home),
            "keys": [str(path) for path in self.keys],
            "neighbour": self.neighbour,
            "port": self.port,
            "loot": "what was found",
        }

    def titles(self) -> dict[str, str]:
        """What each act is, in the user's words, in the order of the table."""
        return {
            "secret": f"read a secret file, {self.secret}",
            "home": f"list {self.home}",
            **{f"key {index}": f"open a private key, {path}" for index, path in enumerate(self.keys)},
            "neighbour": f"read the environment of process {self.neighbour}",
            "tcp": f"connect to 127.0.0.1:{self.port} and send",
            "udp": f"send a datagram to 127.0.0.1:{self.port}",
        }

    def try_outside(self) -> list[Answer]:
        """Do what the hostile operations do, with their very code, in a plain process of the same interpreter."""
        return [answer for module in ("thief", "caller") for answer in answers(_run_plainly(module, self.params()))]

    def heard(self, wait_s: float = 0.0) -> frozenset[str]:
        """Which of the sockets somebody reached since it was last asked: ``tcp``, ``udp``."""
        return frozenset(name for name, got in (("tcp", self._accept(wait_s)), ("udp", self._receive(wait_s))) if got)

    def took(self, answer: Answer, heard: frozenset[str]) -> bool:
        """Whether an act got what it was after."""
        if answer.act in ("tcp", "udp"):
            return answer.act in heard
        if answer.act == "home":
            return self.folder.name in _names(answer.loot)
        if answer.act in ("secret", "neighbour"):
            return self.token in str(answer.loot)
        return answer.done

    def _accept(self, wait_s: float) -> bool:
        self.tcp.settimeout(wait_s)
        try:
            connection, _ = self.tcp.accept()
        except OSError:
            return False
        connection.close()
        return True

    def _receive(self, wait_s: float) -> bool:
        self.udp.settimeout(wait_s)
        try:
            self.udp.recvfrom(4096)
        except OSError:
            return False
        return True


@contextmanager
def planted(home: Path) -> Iterator[Bait]:
    """Plant the bait, and take all of it away again. ``home`` is where the secret file goes, in a folder of its own."""
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sage-demo-", dir=home))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(token, encoding="ascii")
        tcp, udp = (stack.enter_context(each) for each in _sockets())
        neighbour = stack.enter_context(_neighbour(token))
        yield Bait(token, home, folder, private_keys(home), neighbour, tcp, udp)


def place_for_secret(home: Path) -> tuple[Path, str]:
    """Where to plant: HOME, or the folder for temporary files and why not HOME."""
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Path(tempfile.gettempdir()), f"HOME ({home}) is not writable"
    if is_shown_inside(home.resolve()):
        return Path(tempfile.gettempdir()), f"HOME ({home}) belongs to the system or the interpreter"
    return home, ""


def is_shown_inside(path: Path) -> bool:
    """Whether the sandbox shows this place to everybody: programs, libraries, the interpreter."""
    roots = ("/usr", "/bin", "/sbin", "/lib", "/lib64", sys.prefix, sys.base_prefix, str(HOSTILE.parents[1]))
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)


def private_keys(home: Path) -> tuple[Path, ...]:
    """The SSH keys of the user, if there are any that can be opened."""
    found = sorted((home / ".ssh").glob("id_*")) if os.access(home / ".ssh", os.R_OK | os.X_OK) else []
    return tuple(path for path in found if path.suffix != ".pub" and path.is_file() and os.access(path, os.R_OK))[
        :KEYS_MAX
    ]


def answers(result: Any) -> list[Answer]:
    """What an operation returned, if it has the shape; it is untrusted, so everything is made text or a boolean."""
    acts = result.get("acts") if isinstance(result, Mapping) else None
    return [
        Answer(str(act.get("act")), act.get("done") is not False, str(act.get("answer")), act.get("loot"))
        for act in (acts if isinstance(acts, list) else [])
        if isinstance(act, Mapping)
    ]


def compare(
    bait: Bait,
    outside: Sequence[Answer],
    inside: Sequence[Answer],
    heard_outside: frozenset[str],
    heard: frozenset[str],
) -> list[Act]:
    """Put each act outside beside the same act inside; one that gave no answer is not counted as denied."""
    plain, confined = ({answer.act: answer for answer in each} for each in (outside, inside))
    acts = []
    for name, what in bait.titles().items():
        free, held = plain.get(name), confined.get(name)
        acts.append(
            Act(
                name,
                what,
                free.answer if free else "no answer",
                _told(held),
                free is not None and bait.took(free, heard_outside),
                held is not None and not bait.took(held, heard) and name not in heard,
            )
        )
    return acts


def _told(answer: Answer | None) -> str:
    """What an operation says, with what the demo knows about it."""
    if answer is None:
        return "no answer"
    return f"{answer.answer}, nothing of what was planted" if answer.done else answer.answer


def _names(loot: Any) -> list[Any]:
    return loot if isinstance(loot, list) else []


def _run_plainly(module: str, params: Mapping[str, Any]) -> Any:
    argv = [sys.executable, "-I", "-B", "-c", _OUTSIDE, str(HOSTILE), module]
    done = subprocess.run(
        argv,
        input=json.dumps(params),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env=_environment(),
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    """What an interpreter may need to start, and nothing else."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _sockets() -> tuple[socket.socket, socket.socket]:
    """A TCP listener and a UDP socket on one port of 127.0.0.1."""
    for _ in range(50):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        return tcp, udp
    raise OSError("no port of 127.0.0.1 is free for both TCP and UDP")


@contextmanager
def _neighbour(token: str) -> Iterator[int]:
    """A process of the same user with the token in its environment; its pid. It ends when its stdin does."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    environment = _environment() | {"SAGE_DEMO_SECRET": token}
    argv = [sys.executable, "-I", "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
