"""The coordinator's hold on the broker: it is started for the first run that needs it, and told who may call what.

A broker belongs to one user and one project. Others find it by its socket; who comes takes a lock, and the broker takes
the same one before it ends, so that nobody registers with one that is about to go.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any, Final, Self

from sage_sandbox.broker.booting import booted
from sage_sandbox.broker.client import Connection, Hungup, Late, Line, specs_of
from sage_sandbox.broker.runs import Keeping, Registration
from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import open_runtime, user_config
from sage_sandbox.disk.settings import user_settings
from sage_sandbox.disk.sockets import bind, connect
from sage_sandbox.errors import SageError, UsageError
from sage_sandbox.escaping import clip
from sage_sandbox.events import Notice
from sage_sandbox.frozen import frozen
from sage_sandbox.observe.progress import ago
from sage_sandbox.providers import Provider
from sage_sandbox.sandbox.calls import ToolSpec
from sage_sandbox.toolservers.definition import Server

PROTOCOL: Final = 1
START_S: Final = 30.0
"""How long a broker may take to answer its first registration."""
LOCK_WAIT_S: Final = 30.0
RESTARTS_MAX: Final = 1
LOOK_S: Final = 120.0
"""How long a server may take to start and to say what it offers."""
_WIDTH: Final = 400

_SERVER_NAMES: Final = frozenset({"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"})
_OWN_NAMES: Final = _SERVER_NAMES | {
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
}
_PROXY_NAMES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})

Tell = Callable[[Notice], None]
AskStale = Callable[[str, float, int], bool]
"""Whether answers that are so old (seconds) may stand in for a server; it ends once a descriptor becomes readable."""


def socket_name(project: str) -> str:
    """The name of a project's broker (``project`` is its real path): short, and another one for other code of ours."""
    parts = (str(PROTOCOL), str(Path(__file__).resolve().parent), project)
    return "broker-" + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


@frozen
class Needs:
    """What a run needs of the broker: approved servers, and by operation (``phase/operation``) what it was granted.

    ``values`` are those of the variables that the definitions name, ``environ`` what a program that is started gets
    besides its own, ``shared`` the servers whose sessions serve several runs. ``models`` are the models granted, by
    operation too, ``providers`` who answers for them.
    """

    servers: tuple[Server, ...]
    grants: Mapping[str, tuple[str, ...]]
    values: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    providers: tuple[Provider, ...] = ()


def needs_of(
    servers: Iterable[Server],
    grants: Mapping[str, tuple[str, ...]],
    environ: Mapping[str, str],
    shared: Iterable[str] = (),
) -> Needs:
    """What to register for these servers, their values taken from an environment."""
    servers = tuple(servers)
    names = {name for server in servers for name in server.variables()}
    return Needs(
        servers,
        grants,
        {name: environ[name] for name in sorted(names) if name in environ},
        {name: value for name, value in environ.items() if name in _SERVER_NAMES},
        tuple(shared),
    )


def shared_servers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """``shared_servers`` in the user's ``config.toml``: whose sessions serve all runs. UsageError if it is no list."""
    config = user_config(environ)
    found = user_settings(config).get("shared_servers", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"{config}/config.toml: shared_servers is no list of names", 'write ["NAME"]')
    return tuple(found)


class Tools:
    """One run's registration, from `open` to `close`; a thread hears what the broker has to tell.

    A broker that dies is started once again, under the same token: workers find it at the same place.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        registration: Registration,
        environ: Mapping[str, str],
        tell: Tell,
        ask: AskStale | None = None,
    ) -> None:
        self.line = Line(f"{folder.path}/{name}", registration.token)
        self._folder = folder
        self._name = name
        self._registration = registration
        self._environ = environ
        self._tell = tell
        self._ask_stale = ask
        self._closing = threading.Event()
        self._restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = -1
        self._connection = self._arrive()
        self._give_up_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._hear, name="sage-tools", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        project: str,
        needs: Needs,
        *,
        run: str,
        feature: str,
        audit_key: bytes = b"",
        keeping: Keeping | None = None,
        environ: Mapping[str, str] | None = None,
        tell: Tell = lambda _: None,
        ask: AskStale | None = None,
    ) -> Self:
        """Register a run with its project's broker, starting that if there is none. SageError.

        ``keeping`` says how answers are kept; None: none is. ``tell`` is called from another thread with what
        happens to the servers, ``ask`` where old answers could stand in for one, if ``keeping`` says that it may be.
        """
        environ = os.environ if environ is None else environ
        real = os.path.realpath(project)
        registration = Registration(
            secrets.token_hex(32),
            run,
            feature,
            real,
            needs.grants,
            needs.servers,
            needs.values,
            needs.environ,
            needs.shared,
            needs.models,
            needs.providers,
            audit_key.hex(),
            keeping,
        )
        folder = open_runtime(environ)
        try:
            return cls(folder, socket_name(real), registration, environ, tell, ask)
        except BaseException:
            folder.close()
            raise

    def ask(self, head: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Ask the broker something, as its client. SageError if it does not answer."""
        try:
            connection = Connection(connect(self.line.path))
        except (OSError, Untrusted) as error:
            raise SageError(f"the tool broker cannot be reached: {error}") from error
        try:
            return connection.ask({**head, "token": self.line.token}, until=time.monotonic() + timeout_s)
        except (Hungup, Late) as error:
            raise SageError(f"the tool broker does not answer{self._last_words()}") from error
        finally:
            connection.close()

    def close(self) -> None:
        """Hang up: the sessions of this run end, and with its last run the broker. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._connection.hang_up()
        os.eventfd_write(self._give_up_fd, 1)
        self._thread.join()
        os.close(self._give_up_fd)
        self._connection.close()
        self._folder.close()
        if self._process is not None:
            _reap_later(self._process)
        if self._stderr >= 0:
            os.close(self._stderr)

    # -- inside --------------------------------------------------------------------------------------------------

    def _arrive(self) -> Connection:
        """Come to the broker that is there, or start one; registered, or about to be before anybody else is heard."""
        head = {"do": "register", **self._registration.document()}
        with acquire(self._folder, f"{self._name}.lock", wait_s=LOCK_WAIT_S, who="tools"):
            until = time.monotonic() + START_S
            with suppress(OSError, Untrusted, Hungup, Late):
                connection = Connection(connect(self.line.path))
                try:
                    _check(connection.ask(head, until=until)[0])
                except BaseException:
                    connection.close()
                    raise
                return connection
            self._spawn()
            connection = Connection(connect(self.line.path))
            connection.send(head, until=until)
            return connection

    def _spawn(self) -> None:
        listener = bind(self._folder, self._name)
        if self._stderr >= 0:
            os.close(self._stderr)
        self._stderr = os.memfd_create("broker", os.MFD_CLOEXEC)
        if self._process is not None:
            _reap_later(self._process)
        try:
            self._process = subprocess.Popen(
                booted("broker_process", str(listener.fileno()), self.line.path),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=_own_environment(self._environ),
                cwd="/",
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            raise SageError(f"the tool broker cannot be started: {error.strerror}") from error
        finally:
            listener.close()

    def _hear(self) -> None:
        """Pass on what the broker tells, until this run closes; start it again once if it dies."""
        while not self._closing.is_set():
            try:
                event, _ = self._connection.receive(until=float("inf"))
            except Hungup:
                if self._closing.is_set() or not self._again():
                    return
                continue
            match event:
                case {"event": "ask", "server": str(server), "ageS": int() | float() as age_s}:
                    self._decide(server, age_s)
                case _ if notice := notice_of(event):
                    self._tell(notice)

    def _decide(self, server: str, age_s: float) -> None:
        """Ask the user whether old answers may stand in, and pass on what they said: without a word nothing does."""
        use = self._ask_stale is not None and self._ask_stale(server, age_s, self._give_up_fd)
        if self._closing.is_set():
            return
        self._tell(Notice("info", f"cached data of {server} is {'used' if use else 'not used'}, as you said"))
        with suppress(SageError):  # the broker has died: the call that asked has failed
            self.ask({"do": "decide", "server": server, "use": use}, START_S)

    def _again(self) -> bool:
        words = self._last_words()
        if self._restarts >= RESTARTS_MAX:
            self._tell(Notice("error", f"the tool broker died again{words}: no tool can be called any more"))
            return False
        self._restarts += 1
        self._connection.close()
        try:
            self._connection = self._arrive()
        except (SageError, OSError) as error:
            self._tell(Notice("error", f"the tool broker died{words} and cannot be started again: {error}"))
            return False
        self._tell(Notice("warning", f"the tool broker died{words}; it was started again, calls under way have failed"))
        return True

    def _last_words(self) -> str:
        """What the broker complained of, if it ended by itself."""
        if self._process is None or self._stderr < 0:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        text = os.pread(self._stderr, 1 << 16, 0).decode("utf-8", "replace").strip()
        return f" ({clip(text.splitlines()[-1], _WIDTH)})" if text else ""


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    """Have a broker reaped when it ends, which is after its last run: it may serve others longer than this one."""
    with suppress(RuntimeError):  # no thread is free: then it stays a zombie
        threading.Thread(target=process.wait, name="sage-tools-reaper", daemon=True).start()


def _check(said: Mapping[str, Any]) -> None:
    if said.get("event") != "registered":
        raise SageError(f"the tool broker refused this run: {said.get('error')}", str(said.get("hint", "")))


def _own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the broker itself gets: no variable of the user's but those it cannot do without."""
    kept = {name: value for name, value in environ.items() if name in _OWN_NAMES or name.upper() in _PROXY_NAMES}
    return {**kept, "PYTHONSAFEPATH": "1"}


def notice_of(event: Mapping[str, Any]) -> Notice | None:
    """What a run's user should read of an event; None if it is nothing to read."""
    match event:
        case {"event": "breaker", "server": str(server), "after": "open", "why": str(why)}:
            return Notice("warning", f"{server} is left alone for a minute: it failed 5 times in a row ({why})")
        case {"event": "breaker", "server": str(server), "after": "half-open"}:
            return Notice("info", f"{server} is tried again with one call")
        case {"event": "breaker", "server": str(server), "after": "closed"}:
            return Notice("info", f"{server} is called again")
        case {"event": "stale", "server": str(server), "ageS": int() | float() as age_s}:
            return Notice("warning", f"External API unavailable ({server}) · ✓ using cached data from {ago(age_s)}")
        case {"event": "attempt", "operation": str(operation), "tool": str(tool), "error": str(error), "waitS": wait_s}:
            return Notice("info", f"{operation}: {tool} again in {wait_s} s: {error}")
        case {"event": "progress", "operation": str(operation), "tool": str(tool), "done": done, "total": total}:
            share = f"{done:g} of {total:g}" if total else f"{done:g}"
            text = str(event.get("text", ""))
            return Notice("info", f"{operation}: {tool}: {share}" + (f", {text}" if text else ""))
        case {"event": "refused", "error": str(error)}:
            return Notice("error", f"the tool broker refused this run: {error}")
    return None


def try_one(project: str, environ: Mapping[str, str]) -> None:
    """Start a project's broker for nobody's sake, until it answers, and end it. SageError."""
    tools = Tools.open(project, Needs((), {}), run="", feature="", environ=environ)
    try:
        tools.ask({"do": "nothing"}, START_S)
    finally:
        tools.close()


# -- looking -------------------------------------------------------------------------------------------------------


@frozen
class Seen:
    """How a server stands: the state of its breaker, what it offers, and why it could not be asked (or empty)."""

    name: str
    state: str
    error: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[ToolSpec, ...] = ()


def look(
    servers: Sequence[Server],
    project: str,
    environ: Mapping[str, str],
    *,
    audit_key: bytes,
    reset: Collection[str] = (),
) -> Iterator[Seen]:
    """Ask approved servers, through the project's broker, what they offer; one that fails costs no other.

    That each is asked is written down before it is. Those in ``reset`` are called again, also if they were left alone.
    """
    needs = needs_of(servers, {}, environ, shared_servers(environ))
    tools = Tools.open(project, needs, run="", feature="", audit_key=audit_key, environ=environ)
    try:
        # One after the other: they are few, and each may be a program that is fetched first.
        for server in servers:
            if server.name in reset:
                tools.ask({"do": "reset", "server": server.name}, LOOK_S)
            yield _seen(server, *tools.ask({"do": "look", "server": server.name, "start": True}, LOOK_S))
    finally:
        tools.close()


def _seen(server: Server, said: Mapping[str, Any], body: bytes) -> Seen:
    about = said.get("about")
    return Seen(
        server.name,
        str(said.get("state", "")),
        str(said.get("error", "")),
        about if isinstance(about, dict) else {},
        specs_of(body),
    )
