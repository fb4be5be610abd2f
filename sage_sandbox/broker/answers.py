"""Answers of tools and models that are kept for the time when who gave them is unavailable, or as a template says.

What an answer may stand for is its key. Of a tool: the definition as approved, the values of the variables it names (so
the credentials), what a program gets of the user's environment, the tool, and the arguments in one way of writing them.
Of a model: its provider with address and key, and the whole question. Whoever asks was granted the tool or the model
before anybody looks here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sage_sandbox.broker.runs import Keeping, Registration, Run
from sage_sandbox.errors import SageError
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import MiB
from sage_sandbox.toolservers.definition import Server

if TYPE_CHECKING:
    from sage_sandbox.results.scrub import Scrubber
    from sage_sandbox.store.cache import CacheStore

FORMAT: Final = 1
"""Another number for another meaning of the fields: what was kept before is not found any more."""
WAITING_MAX: Final = 64 * MiB
"""Bytes of answers that wait to be kept; what comes meanwhile is not."""
_OF_A_TERMINAL: Final = frozenset({"TERM"})
_HEADS: Final = {True: b'{"readOnly":true,"value":', False: b'{"readOnly":false,"value":'}


@frozen
class Found:
    """An answer of before: JSON text, and how old it is."""

    value: bytes
    age_s: float


class Asking(Protocol):
    """What an operation asks, as far as the answer hangs on it."""

    @property
    def operation(self) -> str:
        """Who asks: ``phase/operation``."""

    def parts(self, registration: Registration) -> Mapping[str, Any]:
        """All that the answer hangs on, as plain data."""


@frozen
class Request:
    """A call of a tool."""

    operation: str
    server: Server
    tool: str
    arguments: Mapping[str, Any]

    def parts(self, registration: Registration) -> Mapping[str, Any]:
        """As `Asking` says."""
        environ = registration.environ.items() if self.server.command else ()
        return {
            "definition": self.server.digest,
            "values": {name: registration.values.get(name) for name in self.server.variables()},
            "environ": {name: value for name, value in environ if name not in _OF_A_TERMINAL},
            "tool": self.tool,
            "arguments": self.arguments,
        }


class Answers:
    """What one run keeps and finds, in a thread of its own: reading, sealing and writing take time.

    Nothing hangs on it: what cannot be kept or read was not there.
    """

    def __init__(
        self, registration: Registration, keeping: Keeping, store: CacheStore, secret: bytes, scrubber: Scrubber
    ) -> None:
        self.said: set[str] = set()
        """The servers of which the run's user was told that old answers stand in for them."""
        self._registration = registration
        self._keeping = keeping
        self._store = store
        self._secret = secret
        self._scrubber = scrubber
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sage-answers")
        self._waiting = 0
        self._decided: dict[str, asyncio.Future[bool]] = {}

    async def first(self, request: Asking) -> Found | None:
        """The answer that makes a call needless, where the operation's template says that there may be one."""
        ttl_s = self._keeping.first.get(request.operation)
        return await self._find(request, ttl_s) if ttl_s is not None else None

    async def instead(self, request: Asking) -> Found | None:
        """The answer for a call whose server is unavailable."""
        if request.operation in self._keeping.never:
            return None
        return await self._find(request, self._keeping.ttl_s)

    async def allowed(self, server: str, ask: Callable[[], None]) -> bool:
        """Whether old answers may stand in for a server: ``ask`` where there is somebody to ask, once in a run."""
        if not self._keeping.asks:
            return True
        if server not in self._decided:
            self._decided[server] = asyncio.get_running_loop().create_future()
            ask()
        return await asyncio.shield(self._decided[server])

    def decide(self, server: str, *, use: bool) -> None:
        """What they said; the first word counts."""
        if server in self._decided and not self._decided[server].done():
            self._decided[server].set_result(use)

    def keep(self, request: Asking, value: bytes, *, read_only: bool) -> None:
        """Keep an answer, soon. Of a tool that may change something only where the template says so.

        That a mail was sent is true once: told again in a time when none can be sent, it would be a lie.
        """
        declared = request.operation in self._keeping.first
        if request.operation in self._keeping.never or not (read_only or declared):
            return
        if self._waiting + len(value) > WAITING_MAX:
            return
        self._waiting += len(value)
        keeping = asyncio.get_running_loop().run_in_executor(self._thread, self._put, request, value, read_only)
        keeping.add_done_callback(lambda _: self._kept(len(value)))

    async def close(self) -> None:
        """Keep what waits, and let go."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        self._thread.shutdown(wait=False)

    # -- the thread ----------------------------------------------------------------------------------------------

    async def _find(self, request: Asking, ttl_s: float) -> Found | None:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, request, ttl_s)

    def _get(self, request: Asking, ttl_s: float) -> Found | None:
        found = self._store.get(self._key(request), ttl_s)
        if found is None:
            return None
        # Kept on the word of one operation's template it is not for those whose templates say nothing.
        heads = _HEADS.values() if request.operation in self._keeping.first else (_HEADS[True],)
        for head in heads:
            if found.content.startswith(head):
                return Found(found.content[len(head) : -1], found.age_s)
        return None

    def _put(self, request: Asking, value: bytes, read_only: bool) -> None:
        with suppress(OSError, SageError, ValueError):
            if not self._scrubber.json(value)[1]:  # secrets are not saved, sealed or not
                self._store.put(self._key(request), _HEADS[read_only] + value + b"}")

    def _kept(self, size: int) -> None:
        self._waiting -= size

    def _end(self) -> None:
        with suppress(OSError, SageError):
            self._store.evict()
        self._store.close()

    def _key(self, request: Asking) -> str:
        return answer_key(request, self._registration, self._secret)


def answer_key(request: Asking, registration: Registration, secret: bytes) -> str:
    """The name under which the answer to a request is kept: it tells nothing of what it stands for."""
    from sage_sandbox.store.cache import KEY_LENGTH, TOOL_PREFIX

    # JSON is one way to write plain data, so two requests with one text are the same.
    text = json.dumps({"format": FORMAT, **request.parts(registration)}, sort_keys=True, separators=(",", ":"))
    return (TOOL_PREFIX + hmac.new(secret, text.encode("ascii"), "sha256").hexdigest())[:KEY_LENGTH]


def ask_age(run: Run, service: str, found: Found) -> None:
    """Ask a run's user whether old answers may stand in for a service."""
    run.tell({"event": "ask", "server": service, "ageS": round(found.age_s, 3)})


def tell_age(run: Run, service: str, found: Found, said: set[str]) -> None:
    """Tell a run's user, once for each service, that old answers stand in for it."""
    if service not in said:
        said.add(service)
        run.tell({"event": "stale", "server": service, "ageS": round(found.age_s, 3)})


def open_answers(registration: Registration, now: Callable[[], float] = time.time) -> Answers | None:
    """What a run keeps answers in; None where it keeps none, or none can be kept."""
    keeping = registration.keeping
    if keeping is None:
        return None
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.results.scrub import Scrubber
    from sage_sandbox.store.cache import CacheStore
    from sage_sandbox.store.keys import Keys

    project = Path(registration.project)
    keys = Keys([bytes.fromhex(keeping.key)], encrypt=keeping.encrypt)
    try:
        place = project_place(project)
        with place.folder:
            store = CacheStore(project, place.id, place.folder, keys, now=now)
    except (OSError, SageError):
        return None  # the run's own cache lies there, too, and has said so
    secrets = (*registration.values.values(), *(provider.key for provider in registration.providers))
    return Answers(registration, keeping, store, keys.cache_key(place.id), Scrubber(secrets))
